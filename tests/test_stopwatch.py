"""The tests' watch leaves out the time in which nothing ran, and no other."""

from __future__ import annotations

import signal
import time

import pytest

from stopwatch import Stopwatch


def test_a_block_that_is_slow_is_timed_whole() -> None:
    with Stopwatch() as watch:
        time.sleep(0.3)
    assert watch.seconds + watch.stood_s >= 0.3
    assert watch.stood_s < 0.3


def test_time_that_stood_still_is_left_out() -> None:
    with Stopwatch() as watch:
        watch.sleeper.send_signal(signal.SIGSTOP)
        time.sleep(0.4)
        watch.sleeper.send_signal(signal.SIGCONT)
        time.sleep(0.1)
    assert watch.stood_s >= 0.35
    assert watch.seconds == pytest.approx(0.1, abs=0.1)
