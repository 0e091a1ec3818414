"""The host as a program sees it: its files and its tools. The one place that touches either.

A test gives a Host of its own, with another root and other answers.
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Host", "this_host"]

_TOOL_TIMEOUT_S = 20.0


def _run(*command: str) -> str:
    """What a tool prints; nothing when it is not there, fails or does not end."""
    try:
        finished = subprocess.run(
            command, capture_output=True, timeout=_TOOL_TIMEOUT_S, check=False, text=True
        )
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return ""
    return finished.stdout if finished.returncode == 0 else ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Host:
    """A host: its name, the root of its files, and how to run its tools."""

    name: str
    root: Path = field(default=Path("/"))
    run: Callable[..., str] = _run

    def read(self, path: str) -> str:
        """A file's text, stripped; nothing when it cannot be read."""
        try:
            return (self.root / path.lstrip("/")).read_text(errors="replace").strip()
        except OSError:
            return ""

    def exists(self, path: str) -> bool:
        """Whether a file or folder is there."""
        return (self.root / path.lstrip("/")).exists()

    def names(self, path: str) -> list[str]:
        """The names in a folder, sorted; none when it is not there."""
        try:
            return sorted(entry.name for entry in (self.root / path.lstrip("/")).iterdir())
        except OSError:
            return []

    def resolve(self, path: str) -> str:
        """Where a link leads, as text."""
        return str((self.root / path.lstrip("/")).resolve())


def this_host() -> Host:
    """The machine that this process runs on."""
    return Host(name=socket.gethostname())
