"""The command line as tests call it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Outcome:
    """What a command printed and how it ended."""

    def __init__(self, finished: subprocess.CompletedProcess[str]) -> None:
        self.code = finished.returncode
        self.out = finished.stdout
        self.err = finished.stderr

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def __repr__(self) -> str:
        return f"exit {self.code}\n--- out\n{self.out}\n--- err\n{self.err}"


Paceline = Callable[..., Outcome]


def wait_until(holds: Callable[[], bool], *, within_s: float) -> None:
    """Return once it holds; a test that waits for nothing fails."""
    deadline_s = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline_s, "it did not come to pass"
        time.sleep(0.02)


def program_in(folder: Path) -> Path:
    """Make the program `paceline` of these tests in a folder of its own, for a PATH."""
    program = folder / "paceline"
    folder.mkdir(parents=True, exist_ok=True)
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m paceline "$@"\n')
    program.chmod(0o755)
    return program


def session_of(document: str) -> list[str]:
    """The lines that a document has its reader type, of its only console session."""
    (session,) = re.findall(r"```console\n(.*?)```", document, re.DOTALL)
    return [line.removeprefix("$ ") for line in session.splitlines()]
