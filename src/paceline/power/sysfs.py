"""A file of the kernel's, which holds one word or one number: the one way in which meters read it.

Such a file may be there and refuse to be read, or come to be gone between two readings.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["number_of", "text_of"]


def text_of(path: Path) -> str | None:
    """The file's text without its line end; None where it cannot be read."""
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None


def number_of(path: Path) -> int | None:
    """The file's whole number; None where it cannot be read or is none."""
    text = text_of(path)
    try:
        return None if text is None else int(text)
    except ValueError:
        return None
