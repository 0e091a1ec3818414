"""GPTQ: round a weight column by column, and let the columns not yet rounded make up for it.

For a layer's inputs x the error of its output is minimal, column after column, if the error e of
rounding column k is spread over the later columns by the inverse of H = sum of x x^T:

    w[:, j] -= e / U[k, k] * U[k, j]      U the upper Cholesky factor of H^-1, j > k

Columns are taken in blocks, so that most of the work is products of matrices.

Shape letters (this file)
    N   output width of a weight
    K   input width
    G   groups of K that share a scale

Source
    Frantar et al. 2022 (arXiv:2210.17323), algorithm 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from paceline.errors import EnvironmentProblem
from paceline.quantize.encode import Grid

__all__ = ["DAMPING", "gptq"]

# Share of the mean diagonal that is added to it, as in the paper.
DAMPING = 0.01
_BLOCK = 128


def gptq(weight_NK: Tensor, hessian_KK: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Codes and stored scales of a weight.

    A group's scale is chosen when its first column is reached, from the weights as they are then.

    Shapes
        weight_NK   (N, K) float32
        hessian_KK  (K, K) float32, the sum of x x^T over the inputs
        returns     codes (N, K) uint8, scale_NG (N, G)
    Raises
        EnvironmentProblem  the Hessian has no Cholesky factor even when damped.
    """
    weight_NK = weight_NK.clone()
    upper_KK = _inverse_factor(hessian_KK)
    num_columns, group_len = weight_NK.shape[1], grid.group_len
    codes_NK = torch.empty_like(weight_NK, dtype=torch.uint8)
    scales: list[Tensor] = []
    # A block holds whole groups.
    block = max(_BLOCK // group_len, 1) * group_len
    for start in range(0, num_columns, block):
        stop = min(start + block, num_columns)
        errors = torch.zeros_like(weight_NK[:, start:stop])
        for k in range(start, stop):
            if k % group_len == 0:
                group = weight_NK[:, k : k + group_len]
                scales.append(grid.scales(group))
            column = weight_NK[:, k : k + 1]
            codes = grid.codes(column, scales[-1])
            codes_NK[:, k] = codes[:, 0]
            error = (column - grid.values(codes, scales[-1])) / upper_KK[k, k]
            weight_NK[:, k:stop] -= error * upper_KK[k, k:stop]
            errors[:, k - start] = error[:, 0]
        weight_NK[:, stop:] -= errors @ upper_KK[start:stop, stop:]
    return codes_NK, torch.stack(scales, dim=1).contiguous()


def _inverse_factor(hessian_KK: Tensor) -> Tensor:
    """The upper Cholesky factor of the damped Hessian's inverse."""
    hessian_KK = hessian_KK.clone()
    diagonal = hessian_KK.diagonal()
    # An input that is always zero has no say; one on the diagonal keeps the factor finite.
    diagonal[diagonal == 0] = 1.0
    mean = diagonal.mean()
    for damping in (DAMPING, 10 * DAMPING, 100 * DAMPING):
        diagonal += damping * mean
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
