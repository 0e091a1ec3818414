"""Products with weights of four bits, which stay packed in memory and are widened on the way in.

    packed_linear_ref   the definition, in plain PyTorch
    _packed_linear      the Triton kernel
    packed_sm90         for FP8 activations on Hopper, in CUDA C++
    packed_linear       what `gemm.linear` calls: checks arguments, launches

FP8 activations (w4a8): a weight is code * scale rounded to an e4m3 number, so that FP8 tensor cores
sum over the whole of K. Scales are held as bfloat16 of 2^-6 to 32, beside a power of two for each
output: their multiples are then e4m3 numbers that are not subnormal. 16-bit activations: the weight
is widened to code * scale, rounded to the activations' type, and multiplied.

A byte holds two codes that are half a block apart, not neighbours (`lay_out`): the lower bits
belong to the first half of a block of K, the upper bits to the second, so that each half meets
activations that lie side by side. A code of int4 is held as its sign and, below it, the value or
its complement: 0 to 7 are 0 to 7, and -1 to -8 are 8 to 15. `packed_sm90` has a layout of its own.

Shape letters (this file)
    T   tokens in the step
    N   output width
    K   input width
    G   groups of K that share a scale
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from paceline.native import packed_sm90
from paceline.native.compiler import tl, triton, uses_kernel
from paceline.native.formats import fp4_values, round_significand, unpack_nibbles
from paceline.native.fused import Quantized

__all__ = [
    "PackedWeight",
    "block_len_of",
    "lay_out",
    "normal_scales",
    "packed_linear",
    "packed_linear_ref",
    "token_counts",
    "widen",
]

_BLOCK_MAX = 128
_TILE_N = 128
# Tokens of a tile; a step takes the least that holds it, or the last.
_TILES_T = (16, 64, 128)
# Halves of a block are the inner width of a product: tensor cores take 32 of FP8, 16 of 16 bit.
_LEAST_BLOCK = {True: 64, False: 32}


# The least scale whose multiples are no e4m3 subnormals, and the widest whose multiples fit.
_LEAST_SCALE, _WIDEST_LOG2 = 2.0**-6, 5


@dataclass(slots=True)
class PackedWeight:
    """A weight of four bits: value = code * (scale * row_scale), rounded for int4-e4m3.

    packed      (N, K / 2) uint8, as `lay_out` leaves it, with its `kind` and `block_len`; or as
                `packed_sm90.lay_out` does, where `is_for_sm90`
    scale_GN    (G, N) any float type; int4-e4m3: bfloat16 of `normal_scales`
    row_scale_N (N,) float32, or None for 1
    kind        int4, int4-e4m3 or fp4
    """

    packed: Tensor
    scale_GN: Tensor
    row_scale_N: Tensor | None
    kind: str
    block_len: int
    is_for_sm90: bool = False

    @property
    def takes_fp8(self) -> bool:
        """Whether activations come as FP8 codes."""
        return self.kind == "int4-e4m3"

    @property
    def width(self) -> int:
        return 2 * int(self.packed.shape[1])

    @property
    def group_len(self) -> int:
        return self.width // int(self.scale_GN.shape[0])


def block_len_of(width: int, group_len: int) -> int:
    """The widest block, a power of two, that K is a multiple of; wide groups hold whole blocks."""
    block = min(_BLOCK_MAX, width & -width)
    return block if group_len < _LEAST_BLOCK[True] else min(block, group_len & -group_len)


def normal_scales(scale_NG: Tensor) -> tuple[Tensor, Tensor]:
    """Scales as (N, G) bfloat16 of 2^-6 to 32, and (N,) float32 powers of two to multiply them by.

    A scale under a 2048th of its output's widest is taken as that: even its widest weight is
    less than the widest's rounding.
    """
    _, exponent_N = torch.frexp(scale_NG.float().amax(dim=-1))
    row_scale_N = torch.exp2((exponent_N - _WIDEST_LOG2).float())
    ratio_NG = scale_NG.float() / row_scale_N[:, None]
    return ratio_NG.clamp(min=_LEAST_SCALE).to(torch.bfloat16), row_scale_N


def lay_out(packed: Tensor, block: int, kind: str) -> Tensor:
    """Neighbours in a byte, as stored, to halves of a block: (N, K / 2) uint8 both.

    Stored codes of int4 have 8 added; they become sign and value or complement.
    """
    code_NK = unpack_nibbles(packed)
    if kind != "fp4":
        code_NK = packed_sm90.sign_and_rest(code_NK)
    halves = code_NK.view(code_NK.shape[0], -1, 2, block // 2)
    return (halves[:, :, 0] | (halves[:, :, 1] << 4)).flatten(1)


def _codes(weight: PackedWeight) -> Tensor:
    """(N, K) float32 values of the codes alone."""
    if weight.is_for_sm90:
        code_NK = packed_sm90.read_codes(weight.packed)
    else:
        blocks = weight.packed.view(weight.packed.shape[0], -1, 1, weight.block_len // 2)
        code_NK = torch.cat((blocks & 0xF, blocks >> 4), dim=2).flatten(1)
    if weight.kind == "fp4":
        return fp4_values(code_NK)
    low_NK = (code_NK & 7).float()
    return torch.where(code_NK >= 8, -1.0 - low_NK, low_NK)


def _multiples(weight: PackedWeight) -> Tensor:
    """(N, K) float32 code * scale, before `row_scale_N`; e4m3 numbers for int4-e4m3."""
    scale_NG = weight.scale_GN.t().float()
    value_NK = _codes(weight) * scale_NG.repeat_interleave(weight.group_len, dim=1)
    return round_significand(value_NK) if weight.kind == "int4-e4m3" else value_NK


def widen(weight: PackedWeight) -> Tensor:
    """(N, K) float32 values of the weight."""
    value_NK = _multiples(weight)
    return value_NK if weight.row_scale_N is None else value_NK * weight.row_scale_N[:, None]


def packed_linear_ref(
    x: Tensor | Quantized, weight: PackedWeight, out_dtype: torch.dtype
) -> Tensor:
    """16 bit: out[t, n] = sum over k of x[t, k] * weight[n, k], the weight rounded to x's type.

    FP8: out[t, n] = x_scale[t] * row_scale[n] * sum over k of x[t, k] * e4m3(code * scale)[n, k].
    """
    if isinstance(x, Quantized):
        assert weight.row_scale_N is not None, "a weight for FP8 products has row scales"
        out_TN = x.codes_TD.float() @ _multiples(weight).t()
        return (out_TN * weight.row_scale_N * x.scale.reshape(-1, 1)).to(out_dtype)
    return torch.nn.functional.linear(x, widen(weight).to(x.dtype)).to(out_dtype)


@triton.jit
def _rounded(value):
    """Float32 numbers as the bytes of the nearest e4m3 number, none of them subnormal."""
    bits = value.to(tl.int32, bitcast=True)
    return ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - 960


@triton.jit
def _int4_to_e4m3(code, one, three, five, seven):
    """Codes times a scale whose odd multiples are given, as e4m3: twice as much is 8 further on."""
    magnitude = (code & 7).to(tl.int32) + (code >> 3).to(tl.int32)
    byte = tl.where((magnitude == 3) | (magnitude == 6), three, one)
    byte = tl.where(magnitude == 5, five, tl.where(magnitude == 7, seven, byte))
    byte += tl.where((magnitude == 2) | (magnitude == 6), 8, 0)
    byte += tl.where(magnitude == 4, 16, tl.where(magnitude == 8, 24, 0))
    byte = tl.where(magnitude == 0, 0, byte) | ((code >> 3).to(tl.int32) << 7)
    return byte.to(tl.uint8).to(tl.float8e4nv, bitcast=True)


@triton.jit
def _widened(code, scale_ptrs, row_scale, mask, KIND: tl.constexpr, HAS_ROW_SCALE: tl.constexpr):
    """A tile of codes times their scales, float32."""
    if KIND == 0:
        below = (code & 7).to(tl.float32)
        value = tl.where(code >= 8, -1.0 - below, below)
    else:
        magnitude = (code & 7).to(tl.int32)
        step = (magnitude & 1).to(tl.float32)
        power = (1 << (magnitude >> 1)).to(tl.float32)
        value = tl.where(magnitude < 2, step * 0.5, (2.0 + step) * power * 0.25)
        value = tl.where(code >= 8, -value, value)
    scale = tl.load(scale_ptrs, mask=mask, other=0.0).to(tl.float32)
    if HAS_ROW_SCALE:
        scale = scale * row_scale[:, None]
    return value * scale


@triton.jit(do_not_specialize=["num_tokens"])
def _packed_linear(
    x_ptr,
    x_scale_ptr,
    packed_ptr,
    scale_ptr,
    row_scale_ptr,
    out_ptr,
    num_tokens,
    num_out,
    width,
    IS_FP8: tl.constexpr,
    KIND: tl.constexpr,
    HAS_ROW_SCALE: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE_N: tl.constexpr,
    TILE_T: tl.constexpr,
):
    # Tiles of tokens change fastest, so that a tile of weights is read from memory once.
    num_tiles_t = tl.cdiv(num_tokens, TILE_T)
    n = tl.program_id(0) // num_tiles_t * TILE_N + tl.arange(0, TILE_N)
    t = tl.program_id(0) % num_tiles_t * TILE_T + tl.arange(0, TILE_T)
    HALF: tl.constexpr = BLOCK // 2
    half = tl.arange(0, HALF)
    is_n, is_t = n < num_out, t < num_tokens
    row_ptrs = packed_ptr + n.to(tl.int64)[:, None] * (width // 2) + half[None, :]
    x_ptrs = x_ptr + t.to(tl.int64)[None, :] * width + half[:, None]
    scale_column_ptr = scale_ptr + n.to(tl.int64)
    row_scale = tl.zeros([TILE_N], tl.float32)
    if HAS_ROW_SCALE:
        row_scale = tl.load(row_scale_ptr + n, mask=is_n, other=0.0)
    sum_NT = tl.zeros([TILE_N, TILE_T], tl.float32)
    for start in range(0, width, BLOCK):
        byte = tl.load(row_ptrs + start // 2, mask=is_n[:, None], other=0)
        x_low = tl.load(x_ptrs + start, mask=is_t[None, :], other=0.0)
        x_high = tl.load(x_ptrs + start + HALF, mask=is_t[None, :], other=0.0)
        if IS_FP8:
            scale = tl.load(scale_column_ptr + start // GROUP * num_out, mask=is_n, other=1.0)
            scale = scale.to(tl.float32)[:, None]
            one, three = _rounded(scale), _rounded(scale * 3.0)
            five, seven = _rounded(scale * 5.0), _rounded(scale * 7.0)
            low = _int4_to_e4m3(byte & 0xF, one, three, five, seven)
            high = _int4_to_e4m3(byte >> 4, one, three, five, seven)
            sum_NT = tl.dot(low, x_low, sum_NT)
            sum_NT = tl.dot(high, x_high, sum_NT)
        else:
            low_group, high_group = (start + half) // GROUP, (start + HALF + half) // GROUP
            low_ptrs = scale_column_ptr[:, None] + low_group[None, :] * num_out
            high_ptrs = scale_column_ptr[:, None] + high_group[None, :] * num_out
            low = _widened(byte & 0xF, low_ptrs, row_scale, is_n[:, None], KIND, HAS_ROW_SCALE)
            high = _widened(byte >> 4, high_ptrs, row_scale, is_n[:, None], KIND, HAS_ROW_SCALE)
            sum_NT = tl.dot(low.to(x_low.dtype), x_low, sum_NT, input_precision="ieee")
            sum_NT = tl.dot(high.to(x_low.dtype), x_high, sum_NT, input_precision="ieee")
    if IS_FP8:
        sum_NT = sum_NT * row_scale[:, None]
        sum_NT = sum_NT * tl.load(x_scale_ptr + t, mask=is_t, other=0.0)[None, :]
    out_ptrs = out_ptr + t.to(tl.int64)[:, None] * num_out + n[None, :]
    mask = is_t[:, None] & is_n[None, :]
    tl.store(out_ptrs, tl.trans(sum_NT).to(out_ptr.dtype.element_ty), mask=mask)


def packed_linear(x: Tensor | Quantized, weight: PackedWeight, out_dtype: torch.dtype) -> Tensor:
    """Multiply by a weight of four bits.

    Shapes
        x        (T, K) 16 bit or float32, or FP8 codes with a scale a token; rows contiguous
        returns  (T, N) out_dtype
    Raises
        ValueError  widths differ, x is FP8 and the weight is not int4-e4m3 or not of one group
                    a block, or a block is narrower than the tensor cores take.
    Accuracy
        FP8: operands are exact, sums are float32 in the tensor cores' fast mode.
        16 bit: the weight is rounded once, to x's type; sums are float32.
    Cost
        Reads N K / 2 bytes of codes once for every tile of tokens that the L2 cache lost.
    """
    is_fp8 = isinstance(x, Quantized)
    rows_TK = x.codes_TD if isinstance(x, Quantized) else x
    if rows_TK.dim() != 2 or rows_TK.shape[1] != weight.width or not rows_TK.is_contiguous():
        raise ValueError(f"x {tuple(rows_TK.shape)} must be contiguous (T, {weight.width})")
    if is_fp8 != weight.takes_fp8:
        raise ValueError(
            "FP8 activations go with int4-e4m3 weights, and with no other of four bits"
        )
    if not uses_kernel(rows_TK):
        return packed_linear_ref(x, weight, out_dtype)
    if weight.block_len < _LEAST_BLOCK[is_fp8] or (is_fp8 and weight.group_len % weight.block_len):
        raise ValueError(
            f"groups of {weight.group_len} in a width of {weight.width} are too narrow to run"
        )
    num_tokens, num_out = rows_TK.shape[0], weight.packed.shape[0]
    out_TN = torch.empty((num_tokens, num_out), dtype=out_dtype, device=rows_TK.device)
    if isinstance(x, Quantized) and weight.is_for_sm90:
        assert weight.row_scale_N is not None, "a weight for FP8 products has row scales"
        scales = (x.scale, weight.scale_GN, weight.row_scale_N)
        packed_sm90.launch(rows_TK, weight.packed, scales, out_TN)
        return out_TN
    tile_t = next((tile for tile in _TILES_T if tile >= num_tokens), _TILES_T[-1])
    grid = (-(-num_out // _TILE_N) * -(-num_tokens // tile_t),)
    _packed_linear[grid](
        rows_TK,
        x.scale if isinstance(x, Quantized) else rows_TK,
        weight.packed,
        weight.scale_GN,
        weight.scale_GN if weight.row_scale_N is None else weight.row_scale_N,
        out_TN,
        num_tokens,
        num_out,
        weight.width,
        IS_FP8=is_fp8,
        KIND=1 if weight.kind == "fp4" else 0,
        HAS_ROW_SCALE=weight.row_scale_N is not None,
        GROUP=weight.group_len,
        BLOCK=weight.block_len,
        TILE_N=_TILE_N,
        TILE_T=tile_t,
        num_warps=8,
        num_stages=3,
    )
    return out_TN


def token_counts() -> tuple[int, ...]:
    """Steps of these many tokens reach every variant of the kernel."""
    return _TILES_T
