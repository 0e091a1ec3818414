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
    folder = tmp_path_factory.mktemp("runs")
    out = folder / "fake"
    program = [sys.executable, "-m", "paceline"]
    made = [*program, "data", "synthetic", "syn", "--samples", "64"]
    subprocess.run(made, cwd=folder, capture_output=True, check=True, timeout=120)
    command = [*program, "run", "--benchmark", "llama2-70b-99.9", "--engine", "fake"]
    command += ["--data", "syn/dataset.parquet", "--out", "fake"]
    for setting in (
        "data.tokenizer=syn",
        "engine.fake.answers=syn/dataset.parquet",
        "engine.fake.tokens_per_second=4000",
        "run.num_samples=32",
        "loadgen.min_duration_ms=0",
    ):
        command += ["--set", setting]
    finished = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, timeout=120
    )
    assert (out / "verdict.json").exists(), finished.stderr
    return out


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium; the test is skipped, saying so, where there is none."""
    with a_browser() as started:
        yield started
