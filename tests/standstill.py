"""Tests marked `timed` hold this machine's times to bounds; they are repeated where it stood still.

A virtual machine that its host leaves waiting for a second makes anything a second longer, and no
bound that is worth testing allows for it. Another process, which only sleeps and wakes, tells for
how long nothing ran; a program that is merely slow, or beside which others compute, does not hinder
it. A test that fails in such a time is run again, twice at the most, and each is told at the end.
Hypothesis holds each example to a deadline, so its tests are such tests without the mark.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from _pytest.runner import runtestprotocol

# The second is Hypothesis's own.
_MARKS = ("timed", "hypothesis")
_TIMES = 3
# Less than this has not made a test fail.
_LEAST_S = 0.1
_PROPERTY = "repeated, as the machine stood still"
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


@dataclass
class Standstill:
    """For how long the machine did nothing, once the block is over; and the process that tells."""

    sleeper: subprocess.Popen[str]
    seconds: float = 0.0


@contextlib.contextmanager
def watched() -> Iterator[Standstill]:
    """A block in which standstills are looked for."""
    command = [sys.executable, "-S", "-E", "-c", _SLEEPER]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as sleeper:
        assert sleeper.stdout is not None
        assert sleeper.stdout.readline() == "ready\n"
        standstill = Standstill(sleeper)
        yield standstill
        told, _ = sleeper.communicate()
        standstill.seconds = float(told)


class Repeater:
    """The plugin: runs such tests, and says at the end which it ran again."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> bool | None:
        if not any(map(item.get_closest_marker, _MARKS)):
            return None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        stood = []
        while True:
            with watched() as standstill:
                reports = runtestprotocol(item, log=False, nextitem=nextitem)
            has_failed = any(report.failed for report in reports)
            if not has_failed or standstill.seconds < _LEAST_S or len(stood) + 1 == _TIMES:
                break
            stood.append(f"{standstill.seconds:.1f} s")
        for report in reports:
            if stood and report.when == "call":
                report.user_properties.append((_PROPERTY, " and ".join(stood)))
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for reports in terminalreporter.stats.values():
            for report in reports:
                said = dict(getattr(report, "user_properties", ())).get(_PROPERTY)
                if said:
                    terminalreporter.write_line(f"{_PROPERTY} for {said}: {report.nodeid}")
