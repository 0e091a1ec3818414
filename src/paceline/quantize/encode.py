"""Values to codes and scales, to the nearest code; what the codes mean is in `native.formats`.

A group's scale is, of a few candidates, the one whose rounding has the least squared error: the
widest value alone would decide otherwise, and clipping it a little often serves the rest. Where
scales are not powers of two, the best is then fitted: the least-squares scale of the codes that it
gives, and once more. FP8 scales clip nothing: the widest value gets the widest code.

A weight of w4a8 becomes a number of four significant bits. Scales near the best one differ in how
well their fifteen multiples bear that, so more are tried there, and a value takes the code whose
number is nearest: together they cost no more error than int4 without that rounding.

Shape letters (this file)
    N   output width of a weight
    K   input width
    G   groups of K that share a scale
    L   length of a group
    T   tokens of a sequence
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from paceline.native.formats import PACKED_KINDS, fp4_values, pack_nibbles, round_significand
from paceline.native.fused import FP8_DTYPE, FP8_MAX

__all__ = [
    "Grid",
    "code_values",
    "encode_fp8",
    "fp8_scale",
    "int4_words",
    "read_by_token",
    "round_codes",
]

# The widest e2m1 value, and the widest int4 code taken as half its range.
_FP4_MAX, _INT4_HALF_RANGE = 6.0, 7.5
# Shares of the scale that fits the widest value.
_INT4_SHARES = (15 / 14, 1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
# Shares of the best scale; a number of four significant bits is up to 6 % from its like.
_NEAR_SHARES = (0.92, 0.94, 0.96, 0.98, 1.02, 1.04, 1.06, 1.08)
_NVFP4_SHARES = (1.0, 1.5, 0.95, 0.9, 0.85, 0.8)
# Halves between the magnitudes of e2m1: an even code takes the tie.
_FP4_UP_AFTER, _FP4_UP_FROM = (0.25, 1.25, 2.5, 5.0), (0.75, 1.75, 3.5)
_SCALE_MIN = 2.0**-126
# The second fit still moves a scale or two; a third changes nothing that matters.
_NUM_FITS = 2
# Keeps the global scale of a weight of zeros finite.
_AMAX_MIN = 2.0**-100


def round_codes(scaled: Tensor, kind: str) -> Tensor:
    """The nearest four-bit code of value / scale, as stored: int4 with 8 added, or e2m1."""
    if kind != "fp4":
        return (scaled.round().clamp(-8, 7) + 8).to(torch.uint8)
    magnitude, code = scaled.abs(), torch.zeros_like(scaled, dtype=torch.uint8)
    for bound in _FP4_UP_AFTER:
        code += magnitude > bound
    for bound in _FP4_UP_FROM:
        code += magnitude >= bound
    # A zero has no sign, so that equal values have equal bytes.
    return torch.where((scaled < 0) & (code > 0), code + 8, code)


def code_values(code: Tensor, kind: str) -> Tensor:
    """What codes stand for, float32."""
    return fp4_values(code) if kind == "fp4" else code.float() - 8


@dataclass(frozen=True, slots=True)
class Grid:
    """A four-bit format of one weight: which scales it may have, and its codes.

    `global_scale` is nvfp4's, the float32 number that stored scales are divided by.
    """

    name: str
    group_len: int
    global_scale: float = 1.0

    @property
    def kind(self) -> str:
        return PACKED_KINDS[self.name]

    @staticmethod
    def nvfp4_global(amax: float) -> float:
        """The widest group's scale becomes the widest e4m3 number."""
        return float(torch.tensor(FP8_MAX * _FP4_MAX / max(amax, _AMAX_MIN)).float())

    def scales(self, value_GL: Tensor, importance_GL: Tensor | None = None) -> Tensor:
        """The scales of groups, in the type they are stored in: (..., L) to (...).

        `importance_GL` weighs squared errors, as the mean square of the inputs does; None: alike.
        """
        amax = value_GL.abs().amax(dim=-1)
        candidates = self._candidates(amax)
        best, least = candidates[0], torch.full_like(amax, torch.inf)
        for candidate in candidates:
            best, least = self._better(candidate, best, least, value_GL, importance_GL)
        for _ in range(_NUM_FITS if self.name != "mxfp4" else 0):
            fitted = self._fitted(best, value_GL, importance_GL)
            best, least = self._better(fitted, best, least, value_GL, importance_GL)
        found = best.float()
        for share in _NEAR_SHARES if self.name == "w4a8" else ():
            near = (found * share).to(best.dtype)
            best, least = self._better(near, best, least, value_GL, importance_GL)
        return best

    def _better(
        self,
        candidate: Tensor,
        best: Tensor,
        least: Tensor,
        value_GL: Tensor,
        importance_GL: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """The better of two scales for each group, and its error."""
        _, rounded = self.nearest(value_GL, candidate)
        square = (rounded - value_GL).square()
        error = (square if importance_GL is None else square * importance_GL).sum(dim=-1)
        is_better = error < least
        # torch.where takes no FP8.
        chosen = torch.where(is_better, candidate.float(), best.float()).to(candidate.dtype)
        return chosen, torch.where(is_better, error, least)

    def _fitted(self, stored: Tensor, value_GL: Tensor, importance_GL: Tensor | None) -> Tensor:
        """The scale that suits the codes of `stored` best: sum(v code) / sum(code^2)."""
        code_GL = code_values(self.codes(value_GL, stored), self.kind)
        weighed = code_GL if importance_GL is None else code_GL * importance_GL
        size = (weighed * code_GL).sum(dim=-1)
        scale = (weighed * value_GL).sum(dim=-1) / size.clamp(min=_SCALE_MIN)
        # A group whose codes are all zero fits any scale; it keeps the one it has.
        scale = torch.where((size > 0) & (scale > 0), scale, self.effective(stored))
        if self.name == "nvfp4":
            return self._e4m3(scale * self.global_scale)
        return scale.clamp(min=_SCALE_MIN).to(stored.dtype)

    def effective(self, stored: Tensor) -> Tensor:
        """Stored scales as the float32 numbers that codes are multiplied by."""
        if self.name == "nvfp4":
            # In float32 throughout: the engines compute the same number from the stored ones.
            inverse = 1.0 / torch.tensor(self.global_scale, device=stored.device)
            return stored.float() * inverse
        return stored.float()

    def codes(self, value: Tensor, stored: Tensor) -> Tensor:
        """Codes of (..., L) values with scales (...)."""
        return self.nearest(value, stored)[0]

    def nearest(self, value: Tensor, stored: Tensor) -> tuple[Tensor, Tensor]:
        """Codes of (..., L) values with scales (...), and the values that they stand for."""
        if self.name == "w4a8":
            return _from_table(value, *self._table(stored))
        codes = round_codes(value / self.effective(stored)[..., None], self.kind)
        return codes, self.values(codes, stored)

    def by_column(self, scale_NG: Tensor) -> Callable[[Tensor, int], tuple[Tensor, Tensor]]:
        """`nearest` for one column (N, 1) of a group at a time, with what can be known before."""
        stored_GN = scale_NG.t().contiguous()
        if self.name != "w4a8":
            return lambda column_N1, group: self.nearest(column_N1, stored_GN[group])
        levels_GN16, bounds_GN15 = self._table(stored_GN)
        return lambda column_N1, group: _from_table(
            column_N1, levels_GN16[group], bounds_GN15[group]
        )

    def _table(self, stored: Tensor) -> tuple[Tensor, Tensor]:
        """The values of all sixteen codes for scales (...), and what lies halfway between."""
        code = torch.arange(16, dtype=torch.uint8, device=stored.device)
        levels = self.values(code.expand(*stored.shape, 16), stored)
        return levels, (levels[..., 1:] + levels[..., :-1]) / 2

    def values(self, codes: Tensor, stored: Tensor) -> Tensor:
        """The float32 values of (..., L) codes with scales (...)."""
        value = code_values(codes, self.kind) * self.effective(stored)[..., None]
        return round_significand(value) if self.name == "w4a8" else value

    def _candidates(self, amax: Tensor) -> list[Tensor]:
        if self.name == "mxfp4":
            exponent = torch.floor(torch.log2(amax.clamp(min=_SCALE_MIN))) - 2
            powers = [(exponent + up).clamp(-126, 127) for up in (0, 1)]
            return [torch.exp2(power).to(torch.bfloat16) for power in powers]
        if self.name == "nvfp4":
            fitting = amax / _FP4_MAX * self.global_scale
            return [self._e4m3(fitting * share) for share in _NVFP4_SHARES]
        fitting = (amax / _INT4_HALF_RANGE).clamp(min=_SCALE_MIN)
        return [(fitting * share).to(torch.bfloat16) for share in _INT4_SHARES]

    @staticmethod
    def _e4m3(scale: Tensor) -> Tensor:
        least = torch.finfo(FP8_DTYPE).smallest_normal
        return scale.clamp(least, FP8_MAX).to(FP8_DTYPE)

    def stored(self, codes_NK: Tensor, scale_NG: Tensor) -> dict[str, Tensor]:
        """The tensors of a weight, by the ends of their names in compressed-tensors' layout."""
        packed = pack_nibbles(codes_NK)
        if self.kind != "fp4":
            shape = torch.tensor(codes_NK.shape, dtype=torch.int64)
            return {
                "weight_packed": int4_words(packed),
                "weight_scale": scale_NG,
                "weight_shape": shape,
            }
        if self.name == "mxfp4":
            exponent = (scale_NG.view(torch.int16) >> 7).to(torch.uint8)
            return {"weight_packed": packed, "weight_scale": exponent}
        return {
            "weight_packed": packed,
            "weight_scale": scale_NG,
            "weight_global_scale": torch.tensor([self.global_scale], dtype=torch.float32),
        }


def _from_table(value: Tensor, levels: Tensor, bounds: Tensor) -> tuple[Tensor, Tensor]:
    """Codes of the nearest of sixteen levels in order, and those levels."""
    codes = torch.searchsorted(bounds, value.contiguous())
    return codes.to(torch.uint8), levels.gather(-1, codes)


def int4_words(packed: Tensor) -> Tensor:
    """Bytes of two codes as int32 words of eight, the first code lowest."""
    return packed.contiguous().view(torch.int32)


def fp8_scale(amax: Tensor) -> Tensor:
    """The scale that gives the widest value the widest code."""
    return (amax.float() / FP8_MAX).clamp(min=_SCALE_MIN)


def encode_fp8(weight_NK: Tensor, scale: Tensor) -> Tensor:
    """FP8 codes; `scale` is () or (N,) float32."""
    divisor = scale if scale.dim() == 0 else scale[:, None]
    return (weight_NK.float() / divisor).clamp(-FP8_MAX, FP8_MAX).to(FP8_DTYPE)


def read_by_token(x_TK: Tensor) -> Tensor:
    """Activations to e4m3 and back, one scale a token: its widest value gets the widest code."""
    scale_T = fp8_scale(x_TK.abs().amax(dim=-1))
    return encode_fp8(x_TK, scale_T).float() * scale_T[:, None]
