"""Products with weights of four bits, which stay packed in memory and are widened on the way in.

    packed_linear_ref   the definition, in plain PyTorch
    _packed_linear      the Triton kernel
    packed_sm90         for FP8 activations on Hopper, in CUDA C++
    packed_linear       what `gemm.linear` calls: checks arguments, launches

FP8 activations (w4a8): a code of int4 is an e4m3 number as it is, so the product of codes runs on
FP8 tensor cores; a group's scale is applied to the group's sum, in float32. 16-bit activations:
the weight is widened to code * scale, rounded to the activations' type, and multiplied.

A byte holds two codes that are half a block apart, not neighbours (`lay_out`): the lower bits
belong to the first half of a block of K, the upper bits to the second, so that each half meets
activations that lie side by side. A code of int4 is held as its sign and, below it, the value or
its complement: 0 to 7 are 0 to 7, and -1 to -8 are 8 to 15. Four of them, a byte each, then become
e4m3 numbers in a few integer operations on one register; taken byte by byte they cost the loop
three times the instructions of all else in it.

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
from paceline.native.compiler import HAS_TRITON, tl, triton, uses_kernel
from paceline.native.formats import fp4_values, unpack_nibbles
from paceline.native.fused import Quantized

__all__ = [
    "PackedWeight",
    "block_len_of",
    "lay_out",
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


@dataclass(slots=True)
class PackedWeight:
    """A weight of four bits: value = code * (scale * row_scale).

    packed      (N, K / 2) uint8, as `lay_out` leaves it, with its `kind` and `block_len`
    scale_GN    (G, N) any float type
    row_scale_N (N,) float32, or None for 1
    kind        int4 or fp4
    takes_fp8   activations come as FP8 codes
    """

    packed: Tensor
    scale_GN: Tensor
    row_scale_N: Tensor | None
    kind: str
    block_len: int
    takes_fp8: bool = False

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


def lay_out(packed: Tensor, block: int, kind: str) -> Tensor:
    """Neighbours in a byte, as stored, to halves of a block: (N, K / 2) uint8 both.

    Stored codes of int4 have 8 added; they become sign and value or complement.
    """
    code_NK = unpack_nibbles(packed)
    if kind == "int4":
        code_NK = torch.where(code_NK >= 8, code_NK ^ 8, code_NK ^ 15)
    halves = code_NK.view(code_NK.shape[0], -1, 2, block // 2)
    return (halves[:, :, 0] | (halves[:, :, 1] << 4)).flatten(1)


def _codes(weight: PackedWeight) -> Tensor:
    """(N, K) float32 values of the codes alone."""
    blocks = weight.packed.view(weight.packed.shape[0], -1, 1, weight.block_len // 2)
    code_NK = torch.cat((blocks & 0xF, blocks >> 4), dim=2).flatten(1)
    if weight.kind != "int4":
        return fp4_values(code_NK)
    low_NK = (code_NK & 7).float()
    return torch.where(code_NK >= 8, -1.0 - low_NK, low_NK)


def _scales(weight: PackedWeight) -> Tensor:
    scale_NG = weight.scale_GN.t().float()
    return scale_NG if weight.row_scale_N is None else scale_NG * weight.row_scale_N[:, None]


def widen(weight: PackedWeight) -> Tensor:
    """(N, K) float32 values of the weight."""
    return _codes(weight) * _scales(weight).repeat_interleave(weight.group_len, dim=1)


def packed_linear_ref(
    x: Tensor | Quantized, weight: PackedWeight, out_dtype: torch.dtype
) -> Tensor:
    """16 bit: out[t, n] = sum over k of x[t, k] * weight[n, k], the weight rounded to x's type.

    FP8: out[t, n] = x_scale[t] * sum over g of scale[n, g] * (sum over k in g of x * code).
    """
    if isinstance(x, Quantized):
        num_tokens, width = x.codes_TD.shape
        groups_TGK = x.codes_TD.float().view(num_tokens, -1, weight.group_len)
        codes_NGK = _codes(weight).view(-1, width // weight.group_len, weight.group_len)
        sums_GTN = torch.bmm(groups_TGK.transpose(0, 1), codes_NGK.permute(1, 2, 0))
        out_TN = torch.einsum("gtn,ng->tn", sums_GTN, _scales(weight))
        return (out_TN * x.scale.reshape(-1, 1)).to(out_dtype).contiguous()
    return torch.nn.functional.linear(x, widen(weight).to(x.dtype)).to(out_dtype)


# Four bytes at a time: e4m3 counts evenly up to 16, so the bits of a magnitude are the magnitude.
# It is the lower three bits, plus the sign bit; 0x81 puts that bit in both places at once.
_WIDEN_ASM = """{
.reg .b32 sign, rest;
shr.b32 sign, $2, 3;
and.b32 sign, sign, 0x01010101;
and.b32 rest, $2, 0x07070707;
mad.lo.u32 $0, sign, 0x81, rest;
shr.b32 rest, $2, 4;
shr.b32 sign, $2, 7;
and.b32 sign, sign, 0x01010101;
and.b32 rest, rest, 0x07070707;
mad.lo.u32 $1, sign, 0x81, rest;
}"""
_WIDEN = tl.constexpr(_WIDEN_ASM) if HAS_TRITON else None


@triton.jit
def _int4_to_e4m3(byte, IS_ASM: tl.constexpr):
    """The two codes of each byte as e4m3 numbers of code * 2^-9."""
    if IS_ASM:
        low, high = tl.inline_asm_elementwise(
            _WIDEN, "=r,=r,r", [byte], dtype=(tl.uint8, tl.uint8), is_pure=True, pack=4
        )
    else:
        low = ((byte >> 3) & 1) * 0x81 + (byte & 7)
        high = (byte >> 7) * 0x81 + ((byte >> 4) & 7)
    return low.to(tl.float8e4nv, bitcast=True), high.to(tl.float8e4nv, bitcast=True)


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
    IS_ASM: tl.constexpr,
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
            low, high = _int4_to_e4m3(byte, IS_ASM)
            part_NT = tl.dot(low, x_low)
            part_NT = tl.dot(high, x_high, part_NT)
            scale = tl.load(scale_column_ptr + start // GROUP * num_out, mask=is_n, other=0.0)
            sum_NT += part_NT * (scale.to(tl.float32) * 512.0)[:, None]
        else:
            low_group, high_group = (start + half) // GROUP, (start + HALF + half) // GROUP
            low_ptrs = scale_column_ptr[:, None] + low_group[None, :] * num_out
            high_ptrs = scale_column_ptr[:, None] + high_group[None, :] * num_out
            low = _widened(byte & 0xF, low_ptrs, row_scale, is_n[:, None], KIND, HAS_ROW_SCALE)
            high = _widened(byte >> 4, high_ptrs, row_scale, is_n[:, None], KIND, HAS_ROW_SCALE)
            sum_NT = tl.dot(low.to(x_low.dtype), x_low, sum_NT, input_precision="ieee")
            sum_NT = tl.dot(high.to(x_low.dtype), x_high, sum_NT, input_precision="ieee")
    if IS_FP8:
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
        ValueError  widths differ, x is FP8 and the weight is not int4 or not of one group a
                    block, or a block is narrower than the tensor cores take.
    Accuracy
        FP8: codes are exact, sums are float32 with the tensor cores' fast mode inside a group.
        16 bit: the weight is rounded once, to x's type; sums are float32.
    Cost
        Reads N K / 2 bytes of codes once for every tile of tokens that the L2 cache lost.
    """
    is_fp8 = isinstance(x, Quantized)
    rows_TK = x.codes_TD if isinstance(x, Quantized) else x
    if rows_TK.dim() != 2 or rows_TK.shape[1] != weight.width or not rows_TK.is_contiguous():
        raise ValueError(f"x {tuple(rows_TK.shape)} must be contiguous (T, {weight.width})")
    if is_fp8 and (weight.kind != "int4" or weight.row_scale_N is not None):
        raise ValueError("FP8 activations go with int4 weights")
    if not uses_kernel(rows_TK):
        return packed_linear_ref(x, weight, out_dtype)
    if weight.block_len < _LEAST_BLOCK[is_fp8] or (is_fp8 and weight.group_len % weight.block_len):
        raise ValueError(
            f"groups of {weight.group_len} in a width of {weight.width} are too narrow to run"
        )
    num_tokens, num_out = rows_TK.shape[0], weight.packed.shape[0]
    out_TN = torch.empty((num_tokens, num_out), dtype=out_dtype, device=rows_TK.device)
    if isinstance(x, Quantized) and packed_sm90.can_run(rows_TK, weight.scale_GN, out_TN):
        packed_sm90.launch(rows_TK, x.scale, weight.packed, weight.scale_GN, out_TN)
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
        KIND=0 if weight.kind == "int4" else 1,
        HAS_ROW_SCALE=weight.row_scale_N is not None,
        GROUP=weight.group_len,
        BLOCK=weight.block_len,
        TILE_N=_TILE_N,
        TILE_T=tile_t,
        IS_ASM=rows_TK.is_cuda and torch.version.hip is None,
        num_warps=8,
        num_stages=3,
    )
    return out_TN


def token_counts() -> tuple[int, ...]:
    """Steps of these many tokens reach every variant of the kernel."""
    return _TILES_T
