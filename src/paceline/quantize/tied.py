"""The scales of w4a8: one number for each output, times a power of two for each group.

A code of -7 to 7 times a power of two is an e4m3 number, without rounding. So the FP8 tensor cores
can take a group's values as they are, and sums need no scale for each group (`native.tied_sm90`);
an engine that keeps group scales in e4m3 beside one an output, as vLLM does, rounds none of them.

Of an output's numbers in an octave, eight are tried; for each, a group takes the power that its
widest value asks for or the one below, whichever rounds it better. The number that the codes found
suit best, by least squares, is tried last, and once more.

Shape letters (this file)
    N   output width of a weight
    G   groups of K that share a scale
    L   length of a group
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["CODE_MAX", "tied_scales"]

CODE_MAX = 7
# Numbers tried in an octave, and fits after them.
_NUM_STEPS, _NUM_FITS = 8, 2
# 7 times 2^-6 to 2^6 are e4m3's range without subnormals: powers of an output span so much.
_SPAN = 12
# Keeps the scales of an output of zeros normal numbers.
_AMAX_MIN = 2.0**-100


def tied_scales(value_NGL: Tensor, importance_GL: Tensor | None = None) -> Tensor:
    """The scales of groups, (N, G) bfloat16.

    `importance_GL` weighs squared errors, as the mean square of the inputs does; None: alike.
    """
    importance_GL = torch.ones_like(value_NGL[0]) if importance_GL is None else importance_GL
    amax_NG = value_NGL.abs().amax(dim=-1).clamp(min=_AMAX_MIN)
    widest_N = amax_NG.amax(dim=-1) / CODE_MAX
    best_NG, least_N = torch.empty_like(amax_NG), torch.full_like(widest_N, torch.inf)
    for step in range(_NUM_STEPS + _NUM_FITS):
        if step < _NUM_STEPS:
            number_N = widest_N * 2.0 ** (-step / _NUM_STEPS)
        else:
            number_N = _fitted(best_NG, value_NGL, importance_GL)
        # A bfloat16 times a power of two is a bfloat16.
        number_N = number_N.to(torch.bfloat16).float()
        tried_NG, error_N = _with_powers(number_N, amax_NG, value_NGL, importance_GL)
        is_better_N = error_N < least_N
        best_NG = torch.where(is_better_N[:, None], tried_NG, best_NG)
        least_N = torch.where(is_better_N, error_N, least_N)
    return best_NG.to(torch.bfloat16)


def _codes(value_NGL: Tensor, scale_NG: Tensor) -> Tensor:
    return (value_NGL / scale_NG[..., None]).round().clamp(-CODE_MAX, CODE_MAX)


def _with_powers(
    number_N: Tensor, amax_NG: Tensor, value_NGL: Tensor, importance_GL: Tensor
) -> tuple[Tensor, Tensor]:
    """The best power for each group; scales (N, G) and the error of each output (N,)."""
    fitting_NG = torch.ceil(torch.log2(amax_NG / CODE_MAX / number_N[:, None]))
    best_NG, least_NG = torch.empty_like(amax_NG), torch.full_like(amax_NG, torch.inf)
    highest_N = fitting_NG.amax(dim=-1, keepdim=True)
    for down in (0, 1):
        power_NG = torch.maximum(fitting_NG - down, highest_N - _SPAN)
        scale_NG = number_N[:, None] * torch.exp2(power_NG)
        rounded_NGL = _codes(value_NGL, scale_NG) * scale_NG[..., None]
        error_NG = ((rounded_NGL - value_NGL).square() * importance_GL).sum(dim=-1)
        best_NG = torch.where(error_NG < least_NG, scale_NG, best_NG)
        least_NG = torch.minimum(error_NG, least_NG)
    return best_NG, least_NG.sum(dim=-1)


def _fitted(scale_NG: Tensor, value_NGL: Tensor, importance_GL: Tensor) -> Tensor:
    """The number that suits the codes of `scale_NG` best, with its powers: (N,).

    The powers are taken relative to the widest group's, whose scale the number then is.
    """
    widest_N = scale_NG.amax(dim=-1)
    code_NGL = _codes(value_NGL, scale_NG) * (scale_NG / widest_N[:, None])[..., None]
    weighed_NGL = code_NGL * importance_GL
    size_N = (weighed_NGL * code_NGL).sum(dim=(-2, -1))
    number_N = (weighed_NGL * value_NGL).sum(dim=(-2, -1)) / size_N.clamp(min=_AMAX_MIN)
    # An output whose codes are all zero fits any number; it keeps the one it has.
    return torch.where((size_N > 0) & (number_N > 0), number_N, widest_N)
