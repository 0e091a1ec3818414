"""How many samples LoadGen makes of a rate in Offline, and the rate to state for a measured speed.

LoadGen is told a rate and issues one query: what the minimum duration holds at that rate, a tenth
more for the case that the SUT is faster, and then up to whole passes over the loaded samples. The
tenth costs little, the pass may cost as much as the run: of Llama-2-70B's 24,576 samples a speed of
37.3 to 40.9 samples/s would get two, though one lasts 600 s. A rate that was measured, with its
error, needs less than a tenth; so where whole passes are what makes a run long, fewer of them are
asked for, by a rate that LoadGen makes exactly these of.
"""

from __future__ import annotations

import math

from paceline.config import LoadGenSettings

__all__ = ["lengthened_qps", "query_len", "stated_qps"]

_SLACK = 1.1
# How much longer than the minimum a query is to last at a speed that is hardly exceeded.
_MARGIN = 1.05
# Up to here LoadGen's own count is kept: its slack, and a pass that is short beside the run.
_LONG = 1.2
# The part of a short run that may have gone to its start and its tail, when steps are not full.
_UNFILLED = 0.25
_DIGITS = 4


def query_len(settings: LoadGenSettings, target_qps: float) -> int:
    """Samples of the query that LoadGen issues when it is told that rate.

    Source: mlcommons/inference@b66003e1:loadgen/test_settings_internal.cc (kSlack, cut to a whole
    number), loadgen.cc (GenerateQueries: enable_equal_issue pads to whole passes).
    """
    held = int(_SLACK * (settings.min_duration_ms / 1000) * target_qps)
    return _whole(settings, max(settings.min_query_count, held))


def stated_qps(settings: LoadGenSettings, samples_per_second: float) -> float:
    """The rate to tell LoadGen of a SUT that is hardly faster than `samples_per_second`.

    It is that speed, or one below it with which LoadGen issues fewer passes, which still last a
    twentieth longer than the minimum.
    """
    plain = float(f"{samples_per_second:.{_DIGITS}g}")
    least_s = settings.min_duration_ms / 1000
    if query_len(settings, plain) <= _LONG * least_s * samples_per_second:
        return plain
    wanted = math.ceil(_MARGIN * least_s * samples_per_second)
    fewer = _whole(settings, max(settings.min_query_count, wanted))
    if fewer >= query_len(settings, plain):
        return plain
    return _rounded_down(fewer / (_SLACK * least_s))


def lengthened_qps(
    settings: LoadGenSettings, samples_per_second: float, duration_s: float
) -> float:
    """The rate to tell LoadGen after a run at `samples_per_second` that was too short.

    A longer run is faster, as its start and its tail are less of it: the less it lacked, the less.
    """
    missing = max(0.0, 1 - duration_s / (settings.min_duration_ms / 1000))
    return stated_qps(settings, samples_per_second * (1 + _UNFILLED * missing))


def _whole(settings: LoadGenSettings, num_samples: int) -> int:
    """So many samples, up to whole passes over the loaded ones."""
    return math.ceil(num_samples / settings.performance_samples) * settings.performance_samples


def _rounded_down(value: float) -> float:
    """Four digits that are not above the value."""
    nearest = float(f"{value:.{_DIGITS}g}")
    unit = 10.0 ** (math.floor(math.log10(value)) + 1 - _DIGITS)
    return nearest if nearest <= value else float(f"{nearest - unit:.{_DIGITS}g}")
