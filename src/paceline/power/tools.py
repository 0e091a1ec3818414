"""A vendor's tool, run for what it prints: the one way in which meters run programs."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Answer", "ask"]

_SAID_LEN = 120


@dataclass(frozen=True, slots=True)
class Answer:
    """What a tool printed, and in a few words what it said, for when that is not a reading."""

    printed: str
    said: str


def ask(command: Sequence[str], *, timeout_s: float) -> Answer:
    """Run a tool to its end. One that cannot be run or does not end has printed nothing."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except (OSError, UnicodeDecodeError, subprocess.SubprocessError) as error:
        return Answer("", type(error).__name__)
    lines = (done.stderr.strip() or done.stdout.strip() or "no answer").splitlines()
    return Answer(done.stdout, lines[0][:_SAID_LEN])
