"""What other programs take of the machine is known, and is not what a measurement takes itself."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time

import pytest

from paceline.harness.neighbours import Neighbours
from paceline.harness.trial import crowding

pytestmark = pytest.mark.timed

SPIN = "import time\nend = time.monotonic() + {0}\nwhile time.monotonic() < end: pass"


def spin(seconds: float) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", SPIN.format(seconds)])


def own_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_a_program_beside_the_measurement_is_seen() -> None:
    neighbours = Neighbours()
    with spin(30) as beside:
        time.sleep(1.0)
        seen = neighbours.cores()
        beside.kill()
    assert seen is not None
    # The half of a core that it gets at least where two others want each.
    assert 0.3 < seen <= neighbours.num_cores + 0.1


def test_what_the_measurement_takes_itself_does_not_count() -> None:
    """Children on all cores: what is left of them is what others can have had."""
    neighbours, start_s, before_s = Neighbours(), time.monotonic(), own_s()
    for one in [spin(1.0) for _ in range(len(os.sched_getaffinity(0)))]:
        one.wait()
    seen, took_s = neighbours.cores(), time.monotonic() - start_s
    own = (own_s() - before_s) / took_s
    assert own > 0.3
    assert seen is not None
    assert seen <= neighbours.num_cores - own + 0.2


def test_only_what_slows_is_told() -> None:
    assert crowding({}) == ""
    assert crowding({"machine": None}) == ""
    assert crowding({"machine": {"cores": 4, "other_cores": None}}) == ""
    assert crowding({"machine": {"cores": 4, "other_cores": 0.1}}) == ""
    told = crowding({"machine": {"cores": 4, "other_cores": 1.26}})
    assert told == "other programs took 1.3 of 4 cores meanwhile"
