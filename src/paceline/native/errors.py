"""The one error a user of the engine can meet.

Every message says what happened and where; `hint` says what to change next. A step that
cannot be trusted (a NaN, memory that ran out, a rank that died) ends in this error and
never in a token.
"""

from __future__ import annotations

__all__ = ["NativeError"]


class NativeError(Exception):
    """The engine cannot load, run or go on; nothing it was working on is a result."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n  Next: {self.hint}"
