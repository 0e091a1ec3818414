"""What calibration keeps of activations: histograms of magnitudes, and the widest per channel.

A percentile may be of all values |x|, or of the widest value of each token. Models of this family
have a few values, mostly of the first token, that are a hundred times wider than all others and
that everything after depends on: they are far above the 99.9 percentile of values, and well below
that of tokens.

The percentile of a tensor seen in pieces is read from a histogram with 2,048 bins of equal width
from 0 to a power of two above the widest value. When a wider one comes, neighbouring bins are
added up until it fits, so the result does not depend on where the pieces were cut, except that a
value counts in the bin it falls into. The percentile is the upper edge of the bin in which it
lies, and never above the widest value.

Shape letters (this file)
    T   tokens
    K   channels
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["NUM_BINS", "Histogram", "Magnitudes"]

NUM_BINS = 2048


class Histogram:
    """Numbers from 0 up, counted in bins that widen when they must."""

    def __init__(self) -> None:
        self.counts = torch.zeros(NUM_BINS, dtype=torch.int64)
        self.bound = 0.0
        self.widest = 0.0

    def add(self, magnitude: Tensor) -> None:
        """Count a piece."""
        self._widen(float(magnitude.max()))
        if not self.bound:
            self.counts[0] += magnitude.numel()
            return
        scaled = magnitude.flatten() * (NUM_BINS / self.bound)
        index = scaled.to(torch.int64).clamp_(max=NUM_BINS - 1)
        self.counts += torch.bincount(index, minlength=NUM_BINS).cpu()

    def percentile(self, percent: float) -> float:
        """The number that `percent` of all are not above, to the bin's upper edge."""
        if percent >= 100.0:
            return self.widest
        needed = math.ceil(int(self.counts.sum()) * percent / 100.0)
        index = int(torch.searchsorted(self.counts.cumsum(0), torch.tensor(needed)))
        return min((index + 1) * self.bound / NUM_BINS, self.widest)

    def _widen(self, widest: float) -> None:
        self.widest = max(self.widest, widest)
        if widest <= self.bound:
            return
        bound = 2.0 ** math.ceil(math.log2(widest))
        while self.bound and self.bound < bound:
            pairs = self.counts.view(-1, 2).sum(dim=1)
            self.counts = torch.cat((pairs, torch.zeros_like(pairs)))
            self.bound *= 2.0
        self.bound = bound


class Magnitudes:
    """|x| of a stream of (T, K) pieces: by value, by token, by channel."""

    def __init__(self) -> None:
        self.of_values = Histogram()
        self.of_tokens = Histogram()
        self.channel_max_K: Tensor | None = None

    def add(self, x_TK: Tensor) -> None:
        """Take a piece."""
        magnitude_TK = x_TK.float().abs()
        self.of_values.add(magnitude_TK)
        self.of_tokens.add(magnitude_TK.amax(dim=1))
        peaks = magnitude_TK.amax(dim=0)
        before = self.channel_max_K
        self.channel_max_K = peaks if before is None else torch.maximum(before, peaks)
