"""Rotary position, and the write of keys and values to their pages, in one pass.

    rotary_write_ref   the definition, in plain PyTorch
    _rotary_write      the Triton kernel
    rotary_write       what `model` calls: checks arguments, launches

Shape letters (this file)
    T   tokens in the step
    C   columns of a row of the QKV product: (Q + 2H) * d
    Q   query heads held here
    H   KV heads held here
    d   head size (e = d / 2)
    X   positions
    P   pages of the cache, N tokens of a page
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from paceline.native.compiler import pow2, tl, triton, uses_kernel
from paceline.native.fused import FP8_DTYPE, FP8_MAX

__all__ = ["KVScale", "RopeConfig", "rotary_table", "rotary_write", "rotary_write_ref"]


@dataclass(frozen=True, slots=True)
class KVScale:
    """A layer's scales of cached keys and values: value ~ code * scale. 1.0 if not FP8."""

    key: float = 1.0
    value: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class RopeConfig:
    """Base and scaling of the angles; `original_len` 0 means that nothing is scaled."""

    theta: float
    head_size: int
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_len: int = 0


def rotary_table(config: RopeConfig, max_len: int, device: torch.device) -> Tensor:
    """Cosines and sines of every position.

        angle[x, i] = x * theta^(-2i / d), the low frequencies divided by `factor` (Llama 3)

    Shapes
        returns (X, 2, e) float32
    Source
        Su et al. 2021 (arXiv:2104.09864), eq. 15; the scaling is Llama 3.1's.
    """
    exponent = torch.arange(0, config.head_size, 2, dtype=torch.int64, device=device).float()
    freqs = 1.0 / (config.theta ** (exponent / config.head_size))
    if config.original_len:
        wavelength = 2 * math.pi / freqs
        span = config.high_freq_factor - config.low_freq_factor
        ratio = config.original_len / wavelength
        smooth = ((ratio - config.low_freq_factor) / span).clamp(0.0, 1.0)
        freqs = (1 - smooth) * freqs / config.factor + smooth * freqs
    elif config.factor != 1.0:
        freqs = freqs / config.factor
    positions = torch.arange(max_len, dtype=torch.int64, device=device).float()
    angles = torch.outer(positions, freqs)
    return torch.stack((angles.cos(), angles.sin()), dim=1)


def _to_cache(x: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    if dtype == FP8_DTYPE:
        return (x.float() / scale).clamp(-FP8_MAX, FP8_MAX).to(dtype)
    return x.to(dtype)


def rotary_write_ref(
    qkv_TC: Tensor,
    table_X2e: Tensor,
    *,
    position_T: Tensor,
    place_T: Tensor,
    cache: tuple[Tensor, Tensor],
    scale: KVScale,
) -> Tensor:
    """q, k rotated by their position; k and v stored at `place` = page * N + offset.

    out[:e] = x[:e] * cos - x[e:] * sin;  out[e:] = x[e:] * cos + x[:e] * sin
    """
    keys_PHNd, values_PHNd = cache
    _, num_kv_heads, page_len, head_size = keys_PHNd.shape
    num_tokens, half = qkv_TC.shape[0], head_size // 2
    heads = qkv_TC.view(num_tokens, -1, head_size)
    num_heads = heads.shape[1] - 2 * num_kv_heads
    cos, sin = table_X2e[position_T.long()].unsqueeze(2).unbind(dim=1)
    rotated = heads[:, : num_heads + num_kv_heads].float()
    first, second = rotated[..., :half], rotated[..., half:]
    out = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    place_T = place_T.long()
    page_T, offset_T = place_T // page_len, place_T % page_len
    key = out[:, num_heads:]
    keys_PHNd[page_T, :, offset_T] = _to_cache(key, scale.key, keys_PHNd.dtype)
    value = heads[:, num_heads + num_kv_heads :]
    values_PHNd[page_T, :, offset_T] = _to_cache(value, scale.value, values_PHNd.dtype)
    return out[:, :num_heads].to(qkv_TC.dtype).contiguous()


@triton.jit
def _rotary_write(
    qkv_ptr,
    table_ptr,
    position_ptr,
    place_ptr,
    q_ptr,
    k_ptr,
    v_ptr,
    k_scale,
    v_scale,
    num_kv_heads,
    page_len,
    GROUP: tl.constexpr,
    BLOCK_G: tl.constexpr,
    HALF: tl.constexpr,
    IS_FP8: tl.constexpr,
):
    token = tl.program_id(0)
    kv_head = tl.program_id(1)
    D: tl.constexpr = 2 * HALF
    row_width = (GROUP + 2) * num_kv_heads * D
    row_ptr = qkv_ptr + token.to(tl.int64) * row_width
    half = tl.arange(0, HALF)
    table = table_ptr + tl.load(position_ptr + token) * D
    cos = tl.load(table + half)
    sin = tl.load(table + HALF + half)
    group = tl.arange(0, BLOCK_G)
    mask = (group < GROUP)[:, None]
    offs = (kv_head * GROUP + group)[:, None] * D + half[None, :]
    first = tl.load(row_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(row_ptr + offs + HALF, mask=mask, other=0.0).to(tl.float32)
    q_row = q_ptr + token.to(tl.int64) * (GROUP * num_kv_heads * D)
    q_type = q_ptr.dtype.element_ty
    low = first * cos[None, :] - second * sin[None, :]
    high = second * cos[None, :] + first * sin[None, :]
    tl.store(q_row + offs, low.to(q_type), mask=mask)
    tl.store(q_row + offs + HALF, high.to(q_type), mask=mask)
    key = row_ptr + (GROUP * num_kv_heads + kv_head) * D
    first = tl.load(key + half).to(tl.float32)
    second = tl.load(key + HALF + half).to(tl.float32)
    low = first * cos - second * sin
    high = second * cos + first * sin
    value = row_ptr + ((GROUP + 1) * num_kv_heads + kv_head) * D
    v_low = tl.load(value + half).to(tl.float32)
    v_high = tl.load(value + HALF + half).to(tl.float32)
    if IS_FP8:
        low = tl.minimum(tl.maximum(low / k_scale, -448.0), 448.0)
        high = tl.minimum(tl.maximum(high / k_scale, -448.0), 448.0)
        v_low = tl.minimum(tl.maximum(v_low / v_scale, -448.0), 448.0)
        v_high = tl.minimum(tl.maximum(v_high / v_scale, -448.0), 448.0)
    place = tl.load(place_ptr + token).to(tl.int64)
    page = place // page_len
    cell = ((page * num_kv_heads + kv_head) * page_len + place % page_len) * D
    kv_type = k_ptr.dtype.element_ty
    tl.store(k_ptr + cell + half, low.to(kv_type))
    tl.store(k_ptr + cell + HALF + half, high.to(kv_type))
    tl.store(v_ptr + cell + half, v_low.to(kv_type))
    tl.store(v_ptr + cell + HALF + half, v_high.to(kv_type))


def rotary_write(
    qkv_TC: Tensor,
    table_X2e: Tensor,
    *,
    position_T: Tensor,
    place_T: Tensor,
    cache: tuple[Tensor, Tensor],
    scale: KVScale,
) -> Tensor:
    """Rotate queries and keys, store keys and values; return the queries.

    Shapes
        qkv_TC      (T, (Q + 2H) * d) model dtype, contiguous: queries, keys, values
        table_X2e   (X, 2, e) float32, of `rotary_table`
        position_T  (T,) int32, under X
        place_T     (T,) int32, page * N + offset; distinct, but for the trash page's
        cache       keys and values, (P, H, N, d) model dtype or float8_e4m3fn; written
        returns     (T, Q, d) model dtype
    Raises
        ValueError  qkv_TC is not contiguous, or its width is no whole number of heads.
    Cost
        Reads 2TC bytes and writes 2TQd + 2THd in FP8: bound by memory.
    """
    keys_PHNd, values_PHNd = cache
    _, num_kv_heads, page_len, head_size = keys_PHNd.shape
    num_rows = qkv_TC.shape[1] // head_size
    group = num_rows // num_kv_heads - 2
    if not qkv_TC.is_contiguous() or qkv_TC.shape[1] != (group + 2) * num_kv_heads * head_size:
        raise ValueError(f"qkv_TC {tuple(qkv_TC.shape)} does not hold {num_kv_heads} KV groups")
    if not uses_kernel(qkv_TC):
        return rotary_write_ref(
            qkv_TC, table_X2e, position_T=position_T, place_T=place_T, cache=cache, scale=scale
        )
    num_tokens = qkv_TC.shape[0]
    q_TQd = torch.empty(
        (num_tokens, group * num_kv_heads, head_size), dtype=qkv_TC.dtype, device=qkv_TC.device
    )
    _rotary_write[(num_tokens, num_kv_heads)](
        qkv_TC,
        table_X2e,
        position_T,
        place_T,
        q_TQd,
        keys_PHNd,
        values_PHNd,
        scale.key,
        scale.value,
        num_kv_heads,
        page_len,
        GROUP=group,
        BLOCK_G=pow2(group),
        HALF=head_size // 2,
        IS_FP8=keys_PHNd.dtype == FP8_DTYPE,
        num_warps=4,
    )
    return q_TQd
