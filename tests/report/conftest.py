"""Runs that reports are made of, and a browser to read them with."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, a_browser


@pytest.fixture(scope="session")
def fake_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the fake engine, slow enough for a timeline: two tests of some seconds."""
    out = tmp_path_factory.mktemp("runs") / "fake"
    command = [sys.executable, "-m", "paceline", "run", "--engine", "fake", "--out", str(out)]
    command += ["--set", "engine.fake.tokens_per_second=250", "--set", "run.num_samples=32"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (out / "verdict.json").exists(), finished.stderr
    return out


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium; the test is skipped, saying so, where there is none."""
    with a_browser() as started:
        yield started
