"""A watch that does not run while the whole machine stands still.

A virtual machine that its host leaves waiting for a second makes anything a second longer. Another
process, which only sleeps and wakes, tells how long that was; a program that is merely slow, or
beside which others compute, does not hinder it.
"""

from __future__ import annotations

import subprocess
import sys
import time
from types import TracebackType
from typing import Self

# Sums what it slept beyond a hundredth of a second, where that is more than a fair wait for a core.
_SLEEPER = """
import sys, threading, time
over, stood_s = threading.Event(), 0.0
threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
woke_s = time.monotonic()
print("ready", flush=True)
while not over.is_set():
    time.sleep(0.01)
    slept_s, woke_s = time.monotonic() - woke_s, time.monotonic()
    stood_s += slept_s - 0.01 if slept_s > 0.06 else 0.0
print(stood_s, flush=True)
"""


class Stopwatch:
    """Use it as a context manager; `seconds` are those of the block, less what `stood_s` has."""

    def __init__(self) -> None:
        self.seconds = self.stood_s = 0.0

    def __enter__(self) -> Self:
        self.sleeper = subprocess.Popen(
            [sys.executable, "-S", "-E", "-c", _SLEEPER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.sleeper.stdout is not None
        assert self.sleeper.stdout.readline() == "ready\n"
        self._start_s = time.monotonic()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        took_s = time.monotonic() - self._start_s
        told, _ = self.sleeper.communicate()
        self.stood_s = float(told)
        self.seconds = took_s - self.stood_s
