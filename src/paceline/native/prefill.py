"""Attention of prompt chunks over the paged cache, the chunk's own keys included.

    chunk_attention_ref   the definition, in plain PyTorch
    _chunk_attention      the Triton kernel
    chunk_attention       what `model` calls: checks arguments, launches

Shape letters (this file)
    T   rows of queries: the tokens of all chunks, packed
    Q   query heads held here; G = Q / H share one KV head
    d   head size
    B   prompt chunks of the step
    J   query tiles of the chunks, `TILE` queries each, none across two chunks

Not here: decodes, and the types both share (`attention`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from paceline.native.attention import (
    PagedKV,
    attend,
    check_attention,
    compute_type,
    score_scale,
    write_rows,
)
from paceline.native.compiler import pow2, tl, triton, uses_kernel

__all__ = ["TILE", "Chunks", "chunk_attention", "chunk_attention_ref"]

# Queries that a program takes; the host cuts chunks into tiles of it.
TILE = 16


@dataclass(frozen=True, slots=True)
class Chunks:
    """Prompt chunks, all int32.

    slot_B, row_B     the sequence's slot; the chunk's first row among the queries
    start_B, len_B    position of its first token; its length
    chunk_J, first_J  the chunk that a tile is of; the tile's first query within it
    """

    slot_B: Tensor
    row_B: Tensor
    start_B: Tensor
    len_B: Tensor
    chunk_J: Tensor
    first_J: Tensor


def chunk_attention_ref(
    q_TQd: Tensor, kv: PagedKV, chunks: Chunks, *, out_TQd: Tensor, out_scale: Tensor | None
) -> None:
    """Attend with each query to its sequence's tokens up to its own."""
    fields = (chunks.slot_B, chunks.row_B, chunks.start_B, chunks.len_B)
    for slot, row, start, length in zip(*(column.tolist() for column in fields), strict=True):
        rows = slice(row, row + length)
        write_rows(out_TQd[rows], attend(q_TQd[rows], kv, slot, start), out_scale)


@triton.jit
def _chunk_attention(
    q_ptr,
    k_ptr,
    v_ptr,
    table_ptr,
    slot_ptr,
    row_ptr,
    start_ptr,
    len_ptr,
    tile_chunk_ptr,
    tile_first_ptr,
    out_ptr,
    out_scale_ptr,
    qk_scale,
    v_scale,
    num_pages_per_slot,
    page_len,
    num_kv_heads,
    GROUP: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_N: tl.constexpr,
    D: tl.constexpr,
    COMPUTE: tl.constexpr,
    HAS_OUT_SCALE: tl.constexpr,
):
    tile = tl.program_id(0)
    kv_head = tl.program_id(1)
    chunk = tl.load(tile_chunk_ptr + tile)
    first = tl.load(tile_first_ptr + tile)
    chunk_len = tl.load(len_ptr + chunk)
    chunk_start = tl.load(start_ptr + chunk)
    # Rows are the tile's queries times the heads of the group: all read the same keys.
    m = tl.arange(0, BLOCK_Q * BLOCK_G)
    query = first + m // BLOCK_G
    group = m % BLOCK_G
    position = chunk_start + query
    held = ((query < chunk_len) & (group < GROUP))[:, None]
    d = tl.arange(0, D)
    row = (tl.load(row_ptr + chunk) + query).to(tl.int64)
    offs = ((row * num_kv_heads + kv_head) * GROUP + group)[:, None] * D + d[None, :]
    q = tl.load(q_ptr + offs, mask=held, other=0.0).to(COMPUTE)
    table = table_ptr + tl.load(slot_ptr + chunk) * num_pages_per_slot
    end = chunk_start + tl.minimum(chunk_len, first + BLOCK_Q)
    top = tl.full((BLOCK_Q * BLOCK_G,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_Q * BLOCK_G,), tl.float32)
    acc = tl.zeros((BLOCK_Q * BLOCK_G, D), tl.float32)
    n = tl.arange(0, BLOCK_N)
    for start in range(0, end, BLOCK_N):
        token = start + n
        seen = token < end
        page = tl.load(table + token // page_len, mask=seen, other=0).to(tl.int64)
        cell = ((page * num_kv_heads + kv_head) * page_len + token % page_len) * D
        k = tl.load(k_ptr + cell[:, None] + d[None, :], mask=seen[:, None], other=0.0)
        v = tl.load(v_ptr + cell[:, None] + d[None, :], mask=seen[:, None], other=0.0)
        s = tl.dot(q, tl.trans(k.to(COMPUTE)), input_precision="ieee") * qk_scale
        s = tl.where(token[None, :] <= position[:, None], s, float("-inf"))
        new_top = tl.maximum(top, tl.max(s, axis=1))
        p = tl.exp2(s - new_top[:, None])
        fade = tl.exp2(top - new_top)
        total = total * fade + tl.sum(p, axis=1)
        acc = tl.dot(p.to(COMPUTE), v.to(COMPUTE), acc * fade[:, None], input_precision="ieee")
        top = new_top
    out = acc * v_scale / total[:, None]
    if HAS_OUT_SCALE:
        out = tl.minimum(tl.maximum(out / tl.load(out_scale_ptr), -448.0), 448.0)
    tl.store(out_ptr + offs, out.to(out_ptr.dtype.element_ty), mask=held)


def chunk_attention(
    q_TQd: Tensor, kv: PagedKV, chunks: Chunks, *, out_TQd: Tensor, out_scale: Tensor | None
) -> None:
    """Causal attention of prompt chunks, whatever of each sequence came in earlier steps.

    Shapes
        q_TQd    (T, Q, d) model dtype, contiguous: the chunks' rows, packed
        out_TQd  (T, Q, d) model dtype, or float8_e4m3fn with out_scale () float32; written
    Raises
        ValueError  a shape, stride or dtype is not the above.
    Cost
        4Qd operations for each query and key: under two percent of a step at 300 tokens.
    Source
        Dao et al. 2022 (arXiv:2205.14135), algorithm 1, over pages.
    """
    check_attention(q_TQd, kv, out_TQd, out_scale)
    if q_TQd.shape[0] == 0:
        return
    if not uses_kernel(q_TQd):
        chunk_attention_ref(q_TQd, kv, chunks, out_TQd=out_TQd, out_scale=out_scale)
        return
    _, num_heads, head_size = q_TQd.shape
    _, num_kv_heads, page_len, _ = kv.keys_PHNd.shape
    group = num_heads // num_kv_heads
    num_rows = TILE * pow2(group)
    _chunk_attention[(chunks.chunk_J.shape[0], num_kv_heads)](
        q_TQd,
        kv.keys_PHNd,
        kv.values_PHNd,
        kv.page_table_SI,
        chunks.slot_B,
        chunks.row_B,
        chunks.start_B,
        chunks.len_B,
        chunks.chunk_J,
        chunks.first_J,
        out_TQd,
        out_TQd if out_scale is None else out_scale,
        score_scale(kv),
        kv.scale.value,
        kv.page_table_SI.shape[1],
        page_len,
        num_kv_heads,
        GROUP=group,
        BLOCK_G=pow2(group),
        BLOCK_Q=TILE,
        BLOCK_N=32 if q_TQd.dtype == torch.float32 else 64,
        D=head_size,
        COMPUTE=compute_type(q_TQd.dtype, kv.keys_PHNd.dtype),
        HAS_OUT_SCALE=out_scale is not None,
        num_warps=8 if num_rows > 64 else 4,
        num_stages=2,
    )
