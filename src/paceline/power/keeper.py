"""The process that changes cards' power limits and puts them back: `python -m ...power.keeper`.

It lives as long as its standard input is open. Whatever ends the run, `kill -9` included, closes
that; then, or on SIGTERM, every limit that was changed is set to what it was, and the process ends.

    first it says     {"cards": [{"limit_w", "least_w"}, ...]}   or {"error": text}
    it is told        {"limit_w": number}                        for all cards
    it answers        {"limits_w": [number, ...]}                or {"error": text}
    at the end        {"restored": true}                         or {"error": text}
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
from collections.abc import Iterator
from typing import Any

from paceline import nvml

__all__ = ["main"]


class _LimitError(Exception):
    """What the driver said."""


class _Cards:
    """The cards, their limits before anything was changed, and what each takes at least."""

    def __init__(self, driver: Any) -> None:
        self._driver = driver
        self._devices = nvml.devices(driver)
        self._before = [self._limit_of(index) for index in range(len(self._devices))]
        self._least = [self._least_of(index) for index in range(len(self._devices))]

    def facts(self) -> list[dict[str, float]]:
        return [
            {"limit_w": limit_w, "least_w": least_w}
            for limit_w, least_w in zip(self._before, self._least, strict=True)
        ]

    def prove_right(self) -> None:
        """Set each limit to what it is: refused now, or not at all."""
        self.restore()

    def lower(self, limit_w: float) -> list[float]:
        """Give every card that limit, or its least; never more than it had before."""
        limits = [
            min(before_w, max(limit_w, least_w))
            for before_w, least_w in zip(self._before, self._least, strict=True)
        ]
        for index, value in enumerate(limits):
            self._set(index, value)
        return limits

    def restore(self) -> None:
        for index, limit_w in enumerate(self._before):
            self._set(index, limit_w)

    def _limit_of(self, index: int) -> float:
        limit_w = nvml.watts(
            self._driver, "nvmlDeviceGetPowerManagementLimit", self._devices[index]
        )
        if limit_w is None:
            raise _LimitError(f"gpu {index} does not tell its power limit")
        return limit_w

    def _least_of(self, index: int) -> float:
        found = nvml.limit_range_w(self._driver, self._devices[index])
        if found is None:
            raise _LimitError(f"gpu {index} does not tell the least power limit that it takes")
        return found[0]

    def _set(self, index: int, limit_w: float) -> None:
        code = nvml.set_limit_w(self._driver, self._devices[index], limit_w)
        if code == nvml.NO_PERMISSION:
            raise _LimitError(f"gpu {index}: the driver refuses: no permission")
        if code:
            raise _LimitError(f"gpu {index}: the driver refuses {limit_w:g} W (NVML code {code})")


def main() -> int:
    """Entry of the process."""
    # SIGTERM is noticed as a byte in a pipe, so that a change under way is finished first.
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.set_wakeup_fd(wake_write)
    with nvml.opened() as driver:
        try:
            if driver is None:
                raise _LimitError("there is no NVIDIA driver")
            cards = _Cards(driver)
            cards.prove_right()
            _say(cards=cards.facts())
        except _LimitError as error:
            _say(error=str(error))
            return 1
        for wanted in _wishes(wake_read):
            try:
                _say(limits_w=cards.lower(float(wanted["limit_w"])))
            except _LimitError as error:
                _say(error=str(error))
        try:
            cards.restore()
        except _LimitError as error:
            _say(error=str(error))
            return 1
        _say(restored=True)
    return 0


def _wishes(wake_read: int) -> Iterator[dict[str, Any]]:
    """What standard input asks for, until it closes or SIGTERM comes."""
    descriptor, buffer = sys.stdin.fileno(), b""
    while True:
        ready, _, _ = select.select([descriptor, wake_read], [], [])
        if wake_read in ready:
            return
        data = os.read(descriptor, 1 << 16)
        if not data:
            return
        *lines, buffer = (buffer + data).split(b"\n")
        for line in lines:
            yield json.loads(line)


def _say(**facts: Any) -> None:
    with contextlib.suppress(OSError):  # the run is gone; the limits are put back all the same
        os.write(sys.stdout.fileno(), json.dumps(facts).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main())
