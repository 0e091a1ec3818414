"""Whether one setting is faster than another, from pairs of measurements made one after the other.

What drifts, as the heat of a card or a neighbour's load, is the same for both of a pair; the order
within a pair alternates. The gain is the mean of the ratios' logarithms; its 95 % interval is
Student's over the pairs.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

__all__ = ["judge_pairs"]

# A clock's ticks make as much between two measurements of the same engine, time after time.
_LEAST_GAIN = 1e-3

# The 97.5th percentile of Student's distribution by degrees of freedom, from 1 on.
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201)


def judge_pairs(pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """The gain of the second of each pair over the first, as fractions; is it more than noise?

    A pair with a 0 is a measurement that failed: the second is not better then.
    """
    if not pairs or any(min(pair) <= 0 for pair in pairs):
        return _judged(pairs, None, None, None)
    logs = [math.log(second / first) for first, second in pairs]
    mean = statistics.fmean(logs)
    if len(logs) == 1:
        return _judged(pairs, math.expm1(mean), None, None)
    factor = _STUDENT[min(len(logs) - 1, len(_STUDENT)) - 1]
    half = factor * statistics.stdev(logs) / len(logs) ** 0.5
    return _judged(pairs, math.expm1(mean), math.expm1(mean - half), math.expm1(mean + half))


def _judged(
    pairs: Sequence[tuple[float, float]],
    gain: float | None,
    low: float | None,
    high: float | None,
) -> dict[str, Any]:
    return {
        "pairs": [list(pair) for pair in pairs],
        "num_faster": sum(second > first for first, second in pairs),
        "gain": gain,
        "gain_low": low,
        "gain_high": high,
        "is_better": low is not None and low > _LEAST_GAIN,
    }
