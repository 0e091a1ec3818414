"""What Ctrl-C and SIGTERM do to a verb: they end it, and the user is told what of it is kept.

    listen()                  from now on SIGTERM is what Ctrl-C is
    keeping(what, way_on)     a block whose finished work is kept when it is stopped

A verb that ends otherwise (`power`, `serve`, `launch`) sets its own handlers while it works; a run
records that it was stopped, in `harness.run`.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

from paceline.errors import STOPPED, InterruptedRun

__all__ = ["keeping", "listen"]


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
