"""`paceline doctor` in the test's own process."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from support import Outcome, Paceline
from typer.testing import CliRunner

from paceline.cli import app


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paceline:
    """`paceline doctor --json` in this process, in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object, **_: Any) -> Outcome:
        result = CliRunner().invoke(app, ["doctor", *map(str, arguments), "--json"])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        words = subprocess.CompletedProcess("", result.exit_code, result.stdout, result.stderr)
        return Outcome(words)

    return call
