"""What Ctrl-C and SIGTERM do to a verb: they end it, and where work is kept the user is told how.

listen()                  from now on SIGTERM is what Ctrl-C is
keeping(what, way_on)     a block whose finished work is kept when it is stopped
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

from paceline.errors import InterruptedRun

__all__ = ["STOPPED", "keeping", "listen"]

STOPPED = "Stopped by Ctrl-C or SIGTERM."


def listen() -> None:
    """SIGTERM is how schedulers and containers stop a program."""
    signal.signal(signal.SIGTERM, _interrupt)


@contextlib.contextmanager
def keeping(what: str, way_on: str) -> Iterator[None]:
    """Raises InterruptedRun where the block is stopped; `what` is a sentence on what is kept."""
    try:
        yield
    except KeyboardInterrupt:
        raise InterruptedRun(f"{STOPPED} {what}", hint=way_on) from None


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
