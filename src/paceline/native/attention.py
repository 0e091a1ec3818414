"""Decode attention over the paged cache: one query a sequence.

    decode_attention_ref   the definition, in plain PyTorch
    _decode_attention      the Triton kernel, and `_merge_splits` after it; in its place, for
                           FP8 pages and heads of 128, `decode_sm89`'s kernel
    decode_attention       what `model` calls: checks arguments, launches

Shape letters (this file)
    T   rows of queries: tokens
    Q   query heads held here; G = Q / H share one KV head
    H   KV heads held here
    d   head size
    P   pages of the cache, N tokens of a page
    S   sequence slots, I pages a slot's table holds
    D   decodes of the step

    o[q] = sum over n of softmax over n of (q . k[n] / sqrt(d)) * v[n],   n up to q's position

Not here: prompt chunks (`prefill`); the rotation and the write of the step's own keys and
values (`rotary`), which come first: a query reads its own key from the cache like any other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from paceline.native import decode_sm89
from paceline.native.compiler import pow2, tl, triton, uses_kernel
from paceline.native.fused import FP8_DTYPE, FP8_MAX
from paceline.native.rotary import KVScale

__all__ = [
    "Decodes",
    "PagedKV",
    "attend",
    "check_attention",
    "compute_type",
    "decode_attention",
    "decode_attention_ref",
    "score_scale",
    "write_rows",
]

# Programs that fill a large card several times over; under it a context is split.
_ENOUGH_PROGRAMS = 1056
_MAX_SPLITS = 16
_LOG2_E = 1.4426950408889634


@dataclass(frozen=True, slots=True)
class PagedKV:
    """One layer's keys and values, (P, H, N, d) each, their scales, and the page tables (S, I)."""

    keys_PHNd: Tensor
    values_PHNd: Tensor
    page_table_SI: Tensor
    scale: KVScale


@dataclass(frozen=True, slots=True)
class Decodes:
    """slot_D and context_len_D, int32: the context counts the query's own token; 0 is padding."""

    slot_D: Tensor
    context_len_D: Tensor


def _gather(cache_PHNd: Tensor, pages: Tensor, context_len: int, scale: float) -> Tensor:
    """The first `context_len` tokens of a page list, dequantised: (H, n, d)."""
    rows = cache_PHNd[pages.long()].transpose(0, 1).flatten(1, 2)[:, :context_len]
    return rows.float() * scale if cache_PHNd.dtype == FP8_DTYPE else rows


def attend(q_TQd: Tensor, kv: PagedKV, slot: int, start: int) -> Tensor:
    """Queries at positions start, start + 1, ... of one sequence: (T, Q, d)."""
    num_tokens, num_heads, head_size = q_TQd.shape
    _, num_kv_heads, page_len, _ = kv.keys_PHNd.shape
    context_len = start + num_tokens
    pages = kv.page_table_SI[slot, : -(-context_len // page_len)]
    k_Hnd = _gather(kv.keys_PHNd, pages, context_len, kv.scale.key)
    v_Hnd = _gather(kv.values_PHNd, pages, context_len, kv.scale.value)
    q_HGTd = q_TQd.view(num_tokens, num_kv_heads, -1, head_size).permute(1, 2, 0, 3)
    scores = q_HGTd.to(k_Hnd.dtype) @ k_Hnd[:, None].transpose(2, 3) / math.sqrt(head_size)
    if num_tokens > 1:
        position_n = torch.arange(context_len, device=q_TQd.device)
        hidden = position_n[None, :] > position_n[start:, None]
        scores = scores.masked_fill(hidden, float("-inf"))
    out_HGTd = torch.softmax(scores.float(), dim=-1).to(v_Hnd.dtype) @ v_Hnd[:, None]
    return out_HGTd.permute(2, 0, 1, 3).reshape(num_tokens, num_heads, head_size)


def write_rows(out_TQd: Tensor, values_TQd: Tensor, out_scale: Tensor | None) -> None:
    """Store attention's result as the output's dtype asks for."""
    if out_scale is not None:
        values_TQd = (values_TQd.float() / out_scale).clamp(-FP8_MAX, FP8_MAX)
    out_TQd.copy_(values_TQd.to(out_TQd.dtype))


def decode_attention_ref(
    q_DQd: Tensor, kv: PagedKV, decodes: Decodes, *, out_DQd: Tensor, out_scale: Tensor | None
) -> None:
    """Attend with each row to the whole context of its slot; padding rows give zeros."""
    lengths = decodes.context_len_D.tolist()
    for row, (slot, length) in enumerate(zip(decodes.slot_D.tolist(), lengths, strict=True)):
        if length == 0:
            out_DQd[row].zero_()
            continue
        value = attend(q_DQd[row : row + 1], kv, slot, length - 1)
        write_rows(out_DQd[row : row + 1], value, out_scale)


@triton.jit(do_not_specialize=["num_splits"])
def _decode_attention(
    q_ptr,
    k_ptr,
    v_ptr,
    table_ptr,
    slot_ptr,
    len_ptr,
    out_ptr,
    out_scale_ptr,
    partial_ptr,
    qk_scale,
    v_scale,
    num_pages_per_slot,
    page_len,
    num_kv_heads,
    num_splits,
    GROUP: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_N: tl.constexpr,
    D: tl.constexpr,
    COMPUTE: tl.constexpr,
    IS_SPLIT: tl.constexpr,
    HAS_OUT_SCALE: tl.constexpr,
):
    row = tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    context_len = tl.load(len_ptr + row)
    # Splits in whole tiles, from this row's own length: no launch depends on a length.
    span = tl.cdiv(tl.cdiv(context_len, num_splits), BLOCK_N) * BLOCK_N
    begin = split * span
    end = tl.minimum(begin + span, context_len)
    table = table_ptr + tl.load(slot_ptr + row) * num_pages_per_slot
    d = tl.arange(0, D)
    group = tl.arange(0, BLOCK_G)
    head = kv_head * GROUP + group
    num_heads = GROUP * num_kv_heads
    q_offs = (row * num_heads + head)[:, None] * D + d[None, :]
    in_group = (group < GROUP)[:, None]
    q = tl.load(q_ptr + q_offs, mask=in_group, other=0.0).to(COMPUTE)
    top = tl.full((BLOCK_G,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_G,), tl.float32)
    acc = tl.zeros((BLOCK_G, D), tl.float32)
    n = tl.arange(0, BLOCK_N)
    for start in range(begin, end, BLOCK_N):
        token = start + n
        seen = token < end
        page = tl.load(table + token // page_len, mask=seen, other=0).to(tl.int64)
        cell = ((page * num_kv_heads + kv_head) * page_len + token % page_len) * D
        k = tl.load(k_ptr + cell[:, None] + d[None, :], mask=seen[:, None], other=0.0)
        v = tl.load(v_ptr + cell[:, None] + d[None, :], mask=seen[:, None], other=0.0)
        s = tl.dot(q, tl.trans(k.to(COMPUTE)), input_precision="ieee") * qk_scale
        s = tl.where(seen[None, :], s, float("-inf"))
        new_top = tl.maximum(top, tl.max(s, axis=1))
        p = tl.exp2(s - new_top[:, None])
        fade = tl.exp2(top - new_top)
        total = total * fade + tl.sum(p, axis=1)
        acc = tl.dot(p.to(COMPUTE), v.to(COMPUTE), acc * fade[:, None], input_precision="ieee")
        top = new_top
    if IS_SPLIT:
        cell = (row * num_heads + head) * num_splits + split
        base = partial_ptr + cell.to(tl.int64) * (D + 2)
        tl.store(base[:, None] + d[None, :], acc * v_scale, mask=in_group)
        tl.store(base + D, top, mask=group < GROUP)
        tl.store(base + D + 1, total, mask=group < GROUP)
    else:
        out = acc * v_scale / tl.maximum(total, 1e-30)[:, None]
        if HAS_OUT_SCALE:
            out = tl.minimum(tl.maximum(out / tl.load(out_scale_ptr), -448.0), 448.0)
        tl.store(out_ptr + q_offs, out.to(out_ptr.dtype.element_ty), mask=in_group)


@triton.jit(do_not_specialize=["num_splits"])
def _merge_splits(
    partial_ptr,
    out_ptr,
    out_scale_ptr,
    num_splits,
    BLOCK_S: tl.constexpr,
    D: tl.constexpr,
    HAS_OUT_SCALE: tl.constexpr,
):
    cell = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, BLOCK_S)
    d = tl.arange(0, D)
    base = partial_ptr + (cell * num_splits + split) * (D + 2)
    held = split < num_splits
    top = tl.load(base + D, mask=held, other=float("-inf"))
    total = tl.load(base + D + 1, mask=held, other=0.0)
    acc = tl.load(base[:, None] + d[None, :], mask=held[:, None], other=0.0)
    # An empty split has -inf; so has every split of a padding row.
    weight = tl.exp2(top - tl.maximum(tl.max(top, axis=0), -1e30))
    out = tl.sum(acc * weight[:, None], axis=0) / tl.maximum(tl.sum(total * weight, axis=0), 1e-30)
    if HAS_OUT_SCALE:
        out = tl.minimum(tl.maximum(out / tl.load(out_scale_ptr), -448.0), 448.0)
    tl.store(out_ptr + cell * D + d, out.to(out_ptr.dtype.element_ty))


def compute_type(dtype: torch.dtype, kv_dtype: torch.dtype) -> Any:
    """Triton's type of the products.

    FP8 values are exact in float16, and one instruction away; bfloat16 takes two more.
    """
    if kv_dtype == FP8_DTYPE:
        return tl.float16
    return {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}[
        dtype
    ]


def check_attention(q_TQd: Tensor, kv: PagedKV, out_TQd: Tensor, out_scale: Tensor | None) -> None:
    """Raise ValueError if queries, cache and output do not fit each other."""
    _, num_kv_heads, _, head_size = kv.keys_PHNd.shape
    if q_TQd.shape[2] != head_size or q_TQd.shape[1] % num_kv_heads:
        raise ValueError(f"queries {tuple(q_TQd.shape)} do not fit {num_kv_heads} KV heads")
    if not q_TQd.is_contiguous() or not out_TQd.is_contiguous() or q_TQd.shape != out_TQd.shape:
        raise ValueError("queries and output must be contiguous and of one shape")
    if (out_scale is not None) != (out_TQd.dtype == FP8_DTYPE):
        raise ValueError("an FP8 output needs a scale, another takes none")


def score_scale(kv: PagedKV) -> float:
    """What turns q . code into a base-2 exponent: the key's scale, 1/sqrt(d) and log2(e)."""
    return kv.scale.key * _LOG2_E / math.sqrt(kv.keys_PHNd.shape[3])


def decode_attention(
    q_DQd: Tensor, kv: PagedKV, decodes: Decodes, *, out_DQd: Tensor, out_scale: Tensor | None
) -> None:
    """Attention of one query a sequence; the G heads of a KV head read its pages once.

    Shapes
        q_DQd      (D, Q, d) model dtype, contiguous
        kv         keys and values in the model's dtype or float8_e4m3fn; N a multiple of 16
        out_DQd    (D, Q, d) model dtype, or float8_e4m3fn with out_scale () float32; written
    Raises
        ValueError  a shape, stride or dtype is not the above.
    Cost
        Reads 2nHd bytes a sequence of n tokens in FP8: bound by memory. A program per (row,
        KV head); with few rows a context is split over several and merged.
    Source
        Online softmax: Milakov and Gimelshein 2018 (arXiv:1805.02867). Split over the
        context: Flash-Decoding (Dao et al. 2023).
    """
    check_attention(q_DQd, kv, out_DQd, out_scale)
    if q_DQd.shape[0] == 0:
        return
    if not uses_kernel(q_DQd):
        decode_attention_ref(q_DQd, kv, decodes, out_DQd=out_DQd, out_scale=out_scale)
        return
    num_rows, num_heads, head_size = q_DQd.shape
    num_programs = num_rows * kv.keys_PHNd.shape[1]
    num_splits = min(_MAX_SPLITS, -(-_ENOUGH_PROGRAMS // num_programs))
    partial = out_DQd
    if num_splits > 1:
        shape = (num_rows, num_heads, num_splits, head_size + 2)
        partial = torch.empty(shape, dtype=torch.float32, device=q_DQd.device)
    tensors = (
        q_DQd,
        kv.keys_PHNd,
        kv.values_PHNd,
        kv.page_table_SI,
        decodes.slot_D,
        decodes.context_len_D,
        out_DQd,
        out_DQd if out_scale is None else out_scale,
        partial,
    )
    if decode_sm89.can_run(q_DQd, kv.keys_PHNd):
        decode_sm89.launch(
            tensors, num_splits=num_splits, qk_scale=score_scale(kv), v_scale=kv.scale.value
        )
    else:
        _launch_triton(tensors, num_splits, kv, has_out_scale=out_scale is not None)
    if num_splits > 1:
        _merge_splits[(num_rows * num_heads,)](
            partial,
            out_DQd,
            tensors[7],
            num_splits,
            BLOCK_S=_MAX_SPLITS,
            D=head_size,
            HAS_OUT_SCALE=out_scale is not None,
            num_warps=1,
        )


def _launch_triton(
    tensors: tuple[Tensor, ...], num_splits: int, kv: PagedKV, *, has_out_scale: bool
) -> None:
    q_DQd = tensors[0]
    num_rows, num_heads, head_size = q_DQd.shape
    _, num_kv_heads, page_len, _ = kv.keys_PHNd.shape
    _decode_attention[(num_rows, num_kv_heads, num_splits)](
        *tensors,
        score_scale(kv),
        kv.scale.value,
        kv.page_table_SI.shape[1],
        page_len,
        num_kv_heads,
        num_splits,
        GROUP=num_heads // num_kv_heads,
        BLOCK_G=max(16, pow2(num_heads // num_kv_heads)),
        BLOCK_N=64,
        D=head_size,
        COMPUTE=compute_type(q_DQd.dtype, kv.keys_PHNd.dtype),
        IS_SPLIT=num_splits > 1,
        HAS_OUT_SCALE=has_out_scale,
        num_warps=4,
        num_stages=3,
    )
