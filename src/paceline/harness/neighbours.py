"""What other programs take of this machine while something on it is measured.

An engine on the processor is slower beside them, and its run is as fast as it was measured only
where they go on: two threads of one core alone are a third slower each.
"""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

__all__ = ["Neighbours"]

_STAT = Path("/proc/stat")
# user, nice, system, irq, softirq, steal; what guests take is in user. Idle and iowait are not.
_BUSY_FIELDS = (1, 2, 3, 6, 7, 8)


class Neighbours:
    """Counts from when it is made; of the cores that this process may use."""

    def __init__(self) -> None:
        self.num_cores = len(os.sched_getaffinity(0))
        self._start_s = time.monotonic()
        self._before_s = _others_s()

    def cores(self) -> float | None:
        """Cores that programs other than this one and its ended children took, in the mean; a
        machine that holds this one counts as well. None where the kernel does not say.
        """
        after_s, took_s = _others_s(), time.monotonic() - self._start_s
        if after_s is None or self._before_s is None or took_s <= 0:
            return None
        return max(0.0, after_s - self._before_s) / took_s


def _others_s() -> float | None:
    """Processor seconds so far, less those of this process."""
    try:
        lines = _STAT.read_text().splitlines()
    except OSError:
        return None
    wanted = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    fields = [line.split() for line in lines]
    ticks = sum(int(one[at]) for one in fields if one and one[0] in wanted for at in _BUSY_FIELDS)
    own_s = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        used = resource.getrusage(who)
        own_s += used.ru_utime + used.ru_stime
    return ticks / os.sysconf("SC_CLK_TCK") - own_s
