"""GPTQ: round a weight column by column, and let the columns not yet rounded make up for it.

For a layer's inputs x the error of its output is minimal, column after column, if the error e of
rounding column k is spread over the later columns by the inverse of H = sum of x x^T:

    w[:, j] -= e / U[k, k] * U[k, j]      U the upper Cholesky factor of H^-1, j > k

and e costs e^2 / U[k, k]^2. Columns go by the mean square of their inputs, the largest first,
while there are many left to make up for them. Scales are found beforehand, by that cost, so that
groups stay neighbours as they are stored and no loader has to know of the order. Columns are taken
in blocks, so that most of the work is products of matrices.

The fewer tokens H was seen on, the less its small directions mean, and a correction along them
fits the calibration set alone: the share of the mean diagonal that is added to H grows with
K / tokens.

Where the engine rounds what a layer reads, x becomes y and H the sum of y y^T. The weights that
are rounded are then those of the least error before any is,

    min over V of  sum |W x - V y|^2 + damping |V - W|^2,   V = W + W (C - H) / (H + damping)

with C = sum of x y^T: they make up for what the inputs' rounding does on average.

Shape letters (this file)
    N   output width of a weight
    K   input width
    G   groups of K that share a scale
    B   columns of a block

Source
    Frantar et al. 2022 (arXiv:2210.17323), algorithm 1; the order is "act-order" of its authors'
    code, the scales found beforehand "static groups".
"""

from __future__ import annotations

import torch
from torch import Tensor

from paceline.errors import EnvironmentProblem
from paceline.quantize.encode import Grid

__all__ = ["DAMPING", "DAMPING_BY_SCARCITY", "gptq"]

# The paper's share of the mean diagonal, and what is added to it for each K / tokens.
DAMPING, DAMPING_BY_SCARCITY = 0.01, 0.1
_BLOCK = 128


def gptq(
    weight_NK: Tensor,
    hessian_KK: Tensor,
    grid: Grid,
    *,
    num_tokens: int,
    crossed_KK: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Codes and stored scales of a weight.

    Shapes
        weight_NK   (N, K) float32
        hessian_KK  (K, K) float32, the sum of y y^T over the `num_tokens` inputs as read
        crossed_KK  (K, K) float32, the sum of x y^T, x the inputs before they are rounded; None
                    where they are not
        returns     codes (N, K) uint8, scale_NG (N, G)
    Raises
        EnvironmentProblem  the Hessian has no Cholesky factor even when damped.
    """
    num_rows, width = weight_NK.shape
    damping = DAMPING + DAMPING_BY_SCARCITY * width / num_tokens
    order_K = torch.argsort(hessian_KK.diagonal(), descending=True, stable=True)
    upper_KK = _inverse_factor(hessian_KK[order_K][:, order_K], damping)
    if crossed_KK is not None:
        pull_NK = (weight_NK @ (crossed_KK - hessian_KK))[:, order_K]
        weight_NK = weight_NK.clone()
        weight_NK[:, order_K] += pull_NK @ upper_KK.t() @ upper_KK
    cost_K = torch.empty_like(hessian_KK[0])
    cost_K[order_K] = upper_KK.diagonal().square().reciprocal()
    value_NGL = weight_NK.view(num_rows, -1, grid.group_len)
    scale_NG = grid.scales(value_NGL, cost_K.view(-1, grid.group_len))
    group_of_K = (order_K // grid.group_len).tolist()
    nearest = grid.by_column(scale_NG)
    rest_NK = weight_NK[:, order_K]
    codes_NK = torch.empty_like(rest_NK, dtype=torch.uint8)
    for start in range(0, width, _BLOCK):
        stop = min(start + _BLOCK, width)
        errors_NB = torch.zeros_like(rest_NK[:, start:stop])
        for k in range(start, stop):
            column = rest_NK[:, k : k + 1]
            codes, values = nearest(column, group_of_K[k])
            codes_NK[:, k] = codes[:, 0]
            error = (column - values) / upper_KK[k, k]
            rest_NK[:, k:stop] -= error * upper_KK[k, k:stop]
            errors_NB[:, k - start] = error[:, 0]
        rest_NK[:, stop:] -= errors_NB @ upper_KK[start:stop, stop:]
    in_place_NK = torch.empty_like(codes_NK)
    in_place_NK[:, order_K] = codes_NK
    return in_place_NK, scale_NG


def _inverse_factor(hessian_KK: Tensor, damping: float) -> Tensor:
    """The upper Cholesky factor of the damped Hessian's inverse."""
    hessian_KK = hessian_KK.clone()
    diagonal = hessian_KK.diagonal()
    # An input that is always zero has no say; one on the diagonal keeps the factor finite.
    diagonal[diagonal == 0] = 1.0
    mean = diagonal.mean()
    for times in (1, 10, 100):
        diagonal += times * damping * mean
        try:
            lower_KK = torch.linalg.cholesky(hessian_KK)
            inverse_KK = torch.cholesky_inverse(lower_KK)
            upper_KK: Tensor = torch.linalg.cholesky(inverse_KK, upper=True)
            return upper_KK
        except RuntimeError:  # LinAlgError is one
            continue
    raise EnvironmentProblem(
        "GPTQ: the inputs of a layer are too alike for their Hessian to be inverted.",
        hint="calibrate with more samples, or leave --gptq out",
    )
