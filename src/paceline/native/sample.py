"""Greedy choice: the largest logit of each row, on the device.

    argmax_rows_ref   the definition, in plain PyTorch
    _argmax_rows      the Triton kernel
    argmax_rows       what `model` calls: checks arguments, launches

Shape letters (this file)
    R   rows that sample
    V   vocabulary
    E   end-of-sequence ids
"""

from __future__ import annotations

import torch
from torch import Tensor

from paceline.native.compiler import tl, triton, uses_kernel

__all__ = ["argmax_rows", "argmax_rows_ref"]


def _ban(logits_RV: Tensor, bans_R: Tensor, eos_E: Tensor) -> None:
    """Give the end-of-sequence ids of the rows in `bans_R` no chance; NaN stays NaN."""
    if eos_E.numel() == 0:
        return
    columns = logits_RV[:, eos_E]
    banned = columns.masked_fill(bans_R.bool()[:, None] & ~columns.isnan(), float("-inf"))
    logits_RV[:, eos_E] = banned


def argmax_rows_ref(logits_RV: Tensor, bans_R: Tensor, eos_E: Tensor) -> tuple[Tensor, Tensor]:
    """id[r] = least v with the largest logit; num_bad = rows that hold a NaN."""
    _ban(logits_RV, bans_R, eos_E)
    num_bad = logits_RV.isnan().any(dim=1).sum(dtype=torch.int32)
    return logits_RV.argmax(dim=1).to(torch.int32), num_bad


@triton.jit
def _argmax_rows(logits_ptr, id_ptr, bad_ptr, vocab_size, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    base = logits_ptr + row.to(tl.int64) * vocab_size
    offs = tl.arange(0, BLOCK)
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    best_id = tl.zeros((BLOCK,), tl.int32)
    bad = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, vocab_size, BLOCK):
        x = tl.load(base + start + offs, mask=start + offs < vocab_size, other=float("-inf"))
        x = x.to(tl.float32)
        bad = bad | (x != x).to(tl.int32)
        # Strictly greater, and lanes keep their first: ties go to the least id below.
        better = x > best
        best_id = tl.where(better, start + offs, best_id)
        best = tl.where(better, x, best)
    top = tl.max(best, axis=0)
    winner = tl.min(tl.where(best == top, best_id, vocab_size), axis=0)
    # A row of NaN has no winner; its id must still be one, for the step already on its way.
    tl.store(id_ptr + row, tl.minimum(winner, vocab_size - 1))
    tl.atomic_add(bad_ptr, tl.max(bad, axis=0))


def argmax_rows(logits_RV: Tensor, bans_R: Tensor, eos_E: Tensor) -> tuple[Tensor, Tensor]:
    """The greedy id of each row, and how many rows hold a NaN.

    Shapes
        logits_RV  (R, V) float, contiguous; the banned entries become -inf
        bans_R     (R,) int32, nonzero where no end-of-sequence id may come yet
        eos_E      (E,) int64
        returns    ids (R,) int32 under V, num_bad () int32
    Raises
        ValueError  logits_RV is not contiguous or bans_R is not of its height.
    """
    if not logits_RV.is_contiguous() or bans_R.shape[0] != logits_RV.shape[0]:
        raise ValueError("logits_RV must be contiguous and as high as bans_R")
    if not uses_kernel(logits_RV):
        return argmax_rows_ref(logits_RV, bans_R, eos_E)
    _ban(logits_RV, bans_R, eos_E)
    num_rows, vocab_size = logits_RV.shape
    id_R = torch.empty(num_rows, dtype=torch.int32, device=logits_RV.device)
    num_bad = torch.zeros((), dtype=torch.int32, device=logits_RV.device)
    _argmax_rows[(num_rows,)](logits_RV, id_R, num_bad, vocab_size, BLOCK=2048, num_warps=8)
    return id_R, num_bad
