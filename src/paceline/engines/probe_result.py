"""What a probe says of an engine's speed, and how sure that is."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from paceline.engines.pace import Slice

__all__ = ["ProbeResult", "error_of_mean", "rate"]

# Fewer of them say nothing of the error, which is then taken to be so much.
_FEWEST_BLOCKS, _ERROR_OF_FEW = 3, 0.25


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeResult:
    """A predicted speed. `relative_error` is one standard error of tokens/s, as a fraction.

    `ramp_s` is what went by before the engine was full; `is_full` whether it came to that. With
    `is_modelled` it was not as full as it can be, and the speed is what follows for one that is.
    """

    samples_per_second: float
    tokens_per_second: float
    tokens_per_sample: float
    relative_error: float
    seconds: float
    answered: int
    ramp_s: float
    is_full: bool
    is_modelled: bool = False

    @property
    def high_samples_per_second(self) -> float:
        """What the speed is hardly above: sized by this, a run is long enough."""
        return self.samples_per_second * (1 + 2 * self.relative_error)


def rate(slices: Sequence[Slice]) -> float:
    """Tokens/s of all the slices together."""
    seconds = sum(one.seconds for one in slices)
    return sum(one.tokens for one in slices) / seconds if seconds else 0.0


def error_of_mean(rates: Sequence[float]) -> float:
    """One standard error of the mean of rates."""
    if len(rates) < _FEWEST_BLOCKS:
        return statistics.fmean(rates) * _ERROR_OF_FEW
    return statistics.stdev(rates) / math.sqrt(len(rates))
