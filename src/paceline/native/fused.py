"""Elementwise work fused around the products, so that activations cross memory once.

The time of a step belongs to the products and to attention. Norm, rotation, activation and
quantisation are therefore no passes of their own: each function here reads its input once
and writes what the next product or the cache takes.

Per operation, in this order:
    <name>_ref   the definition, in plain PyTorch; the tests hold the kernel to it
    _<name>      the Triton kernel
    <name>       what `model` calls: checks arguments, launches; runs the definition on a CPU

Shape letters (this file)
    T   tokens in the step, sequences packed end to end
    D   width of a row: the model's, or the MLP's

An output is FP8 where the next product's weight is (`Target`). A scale is for dequantisation:
value ~ code * scale; it is never zero, so a row of zeros gives zeros and not NaN.

Not here: anything that reduces across tokens (`attention`) or ranks (`parallel`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from paceline.native.compiler import pow2, tl, triton, uses_kernel

__all__ = [
    "FP8_DTYPE",
    "FP8_MAX",
    "PLAIN",
    "Quantized",
    "Target",
    "add_rms_norm",
    "add_rms_norm_ref",
    "quantize_ref",
    "quantize_rows",
    "quantize_rows_ref",
    "silu_mul",
    "silu_mul_ref",
]

FP8_DTYPE = torch.float8_e4m3fn
# Largest e4m3 value: Micikevicius et al. 2022 (arXiv:2209.05433), table 1.
FP8_MAX = 448.0
_SCALE_MIN = 2.0**-126


@dataclass(frozen=True, slots=True)
class Quantized:
    """FP8 codes of a (T, D) activation; `scale` is () float32, or (T,) with one per token."""

    codes_TD: Tensor
    scale: Tensor


@dataclass(frozen=True, slots=True)
class Target:
    """What the next product reads: FP8 or not, with a fixed scale () float32 or one per token."""

    is_fp8: bool
    scale: Tensor | None = None

    @property
    def mode(self) -> int:
        """0: not quantised, 1: fixed scale, 2: a scale per token."""
        return 0 if not self.is_fp8 else (1 if self.scale is not None else 2)


PLAIN = Target(is_fp8=False)


def quantize_ref(x_TD: Tensor, target: Target, dtype: torch.dtype) -> Tensor | Quantized:
    """Float32 rows to what `target` asks for.

    scale[t]  = max(max over d of |x[t, d]| / 448, 2^-126)      where none is given
    code[t,d] = nearest e4m3fn to x[t, d] / scale, clipped to +-448
    """
    if not target.is_fp8:
        return x_TD.to(dtype)
    if target.scale is not None:
        codes = (x_TD / target.scale).clamp(-FP8_MAX, FP8_MAX).to(FP8_DTYPE)
        return Quantized(codes, target.scale)
    scale_T = (x_TD.abs().amax(dim=1) / FP8_MAX).clamp(min=_SCALE_MIN)
    codes = (x_TD / scale_T[:, None]).clamp(-FP8_MAX, FP8_MAX).to(FP8_DTYPE)
    return Quantized(codes, scale_T)


@triton.jit
def _store_row(out_ptr, scale_ptr, row, y, fixed_scale_ptr, offs, mask, MODE: tl.constexpr):
    """Store a float32 row as MODE says; `out_ptr` points at the row."""
    if MODE == 1:
        y = y / tl.load(fixed_scale_ptr)
    if MODE == 2:
        scale = tl.maximum(tl.max(tl.abs(y), axis=0) / 448.0, 1.1754943508222875e-38)
        tl.store(scale_ptr + row, scale)
        y = y / scale
    if MODE != 0:
        y = tl.minimum(tl.maximum(y, -448.0), 448.0)
    tl.store(out_ptr + offs, y.to(out_ptr.dtype.element_ty), mask=mask)


def _outputs(like_TD: Tensor, width: int, target: Target) -> tuple[Tensor, Tensor]:
    """An output of (T, width) as `target` asks for, and its scale (a dummy in mode 0)."""
    num_tokens = like_TD.shape[0]
    dtype = FP8_DTYPE if target.is_fp8 else like_TD.dtype
    out_TD = torch.empty((num_tokens, width), dtype=dtype, device=like_TD.device)
    if target.mode == 2:
        return out_TD, torch.empty(num_tokens, dtype=torch.float32, device=like_TD.device)
    # A kernel takes a pointer whether or not its mode reads it.
    return out_TD, target.scale if target.scale is not None else out_TD


def _wrap(out_TD: Tensor, scale: Tensor, target: Target) -> Tensor | Quantized:
    return Quantized(out_TD, scale) if target.is_fp8 else out_TD


def _check_rows(x_TD: Tensor, width: int, name: str) -> None:
    if x_TD.dim() != 2 or x_TD.shape[1] != width or x_TD.stride(1) != 1:
        raise ValueError(f"{name} must be row-contiguous (T, {width}), is {tuple(x_TD.shape)}")


def add_rms_norm_ref(
    residual_TD: Tensor, delta_TD: Tensor | None, weight_D: Tensor, *, eps: float, target: Target
) -> Tensor | Quantized:
    """residual += delta; then y[t, d] = residual / sqrt(mean of residual^2 + eps) * weight[d]."""
    if delta_TD is not None:
        residual_TD.add_(delta_TD)
    x_TD = residual_TD.float()
    normed_TD = x_TD * torch.rsqrt(x_TD.pow(2).mean(dim=1, keepdim=True) + eps)
    return quantize_ref(normed_TD * weight_D.float(), target, residual_TD.dtype)


@triton.jit
def _add_rms_norm(
    residual_ptr,
    delta_ptr,
    weight_ptr,
    out_ptr,
    scale_ptr,
    fixed_scale_ptr,
    width,
    eps,
    HAS_DELTA: tl.constexpr,
    MODE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    offs = tl.arange(0, BLOCK)
    mask = offs < width
    base = row.to(tl.int64) * width
    x = tl.load(residual_ptr + base + offs, mask=mask, other=0.0).to(tl.float32)
    if HAS_DELTA:
        x += tl.load(delta_ptr + base + offs, mask=mask, other=0.0).to(tl.float32)
        rounded = x.to(residual_ptr.dtype.element_ty)
        tl.store(residual_ptr + base + offs, rounded, mask=mask)
        # The sum that the next layer will see is the one that is normalised here.
        x = rounded.to(tl.float32)
    weight = tl.load(weight_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    y = x * tl.rsqrt(tl.sum(x * x, axis=0) / width + eps) * weight
    _store_row(out_ptr + base, scale_ptr, row, y, fixed_scale_ptr, offs, mask, MODE)


def add_rms_norm(
    residual_TD: Tensor, delta_TD: Tensor | None, weight_D: Tensor, *, eps: float, target: Target
) -> Tensor | Quantized:
    """Add a block's output to the residual, normalise it, and quantise it, in one pass.

    Shapes
        residual_TD  (T, D) model dtype, rows contiguous; updated in place
        delta_TD     (T, D) model dtype, or None before the first block
        weight_D     (D,)
        returns      (T, D) model dtype, or FP8 codes with their scale
    Raises
        ValueError  a shape or stride is not the above.
    Accuracy
        Arithmetic in float32; |y - code * scale| <= max(|y| / 16, 2^-10 * scale).
    Cost
        Reads 4TD bytes and writes 3TD in FP8: bound by memory, one program per token.
    Source
        Zhang and Sennrich 2019 (arXiv:1910.07467), eq. 4.
    """
    width = weight_D.shape[0]
    _check_rows(residual_TD, width, "residual_TD")
    if delta_TD is not None:
        _check_rows(delta_TD, width, "delta_TD")
    if not uses_kernel(residual_TD):
        return add_rms_norm_ref(residual_TD, delta_TD, weight_D, eps=eps, target=target)
    out_TD, scale = _outputs(residual_TD, width, target)
    block = pow2(width)
    _add_rms_norm[(residual_TD.shape[0],)](
        residual_TD,
        residual_TD if delta_TD is None else delta_TD,
        weight_D,
        out_TD,
        scale,
        scale,
        width,
        eps,
        HAS_DELTA=delta_TD is not None,
        MODE=target.mode,
        BLOCK=block,
        num_warps=8 if block >= 4096 else 4,
    )
    return _wrap(out_TD, scale, target)


def silu_mul_ref(gate_up_TD: Tensor, *, target: Target) -> Tensor | Quantized:
    """y[t, d] = g / (1 + exp(-g)) * u with g = gate_up[t, d], u = gate_up[t, D + d]."""
    gate_TD, up_TD = gate_up_TD.float().chunk(2, dim=1)
    return quantize_ref(torch.nn.functional.silu(gate_TD) * up_TD, target, gate_up_TD.dtype)


@triton.jit
def _silu_mul(
    gate_up_ptr,
    out_ptr,
    scale_ptr,
    fixed_scale_ptr,
    width,
    MODE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    offs = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < width
    base = row.to(tl.int64) * width
    gate = tl.load(gate_up_ptr + 2 * base + offs, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + 2 * base + width + offs, mask=mask, other=0.0).to(tl.float32)
    y = gate / (1.0 + tl.exp(-gate)) * up
    _store_row(out_ptr + base, scale_ptr, row, y, fixed_scale_ptr, offs, mask, MODE)


def silu_mul(gate_up_TD: Tensor, *, target: Target) -> Tensor | Quantized:
    """The MLP's gate, and its quantisation, in one pass.

    Shapes
        gate_up_TD  (T, 2D) model dtype, contiguous: gate's columns, then up's
        returns     (T, D) model dtype, or FP8 codes with their scale
    Raises
        ValueError  gate_up_TD is not contiguous or not of even width.
    Cost
        Reads 4TD bytes, writes TD in FP8. A scale per token needs the whole row in one
        program; a fixed scale spreads a row over several.
    """
    width = gate_up_TD.shape[1] // 2
    if not gate_up_TD.is_contiguous() or gate_up_TD.shape[1] != 2 * width:
        raise ValueError("gate_up_TD must be contiguous and of even width")
    if not uses_kernel(gate_up_TD):
        return silu_mul_ref(gate_up_TD, target=target)
    out_TD, scale = _outputs(gate_up_TD, width, target)
    block = pow2(width) if target.mode == 2 else min(4096, pow2(width))
    _silu_mul[(gate_up_TD.shape[0], -(-width // block))](
        gate_up_TD,
        out_TD,
        scale,
        scale,
        width,
        MODE=target.mode,
        BLOCK=block,
        num_warps=16 if block > 8192 else 8,
    )
    return _wrap(out_TD, scale, target)


def quantize_rows_ref(x_TD: Tensor, *, target: Target) -> Tensor | Quantized:
    """`quantize_ref` of a model-dtype activation."""
    return quantize_ref(x_TD.float(), target, x_TD.dtype)


@triton.jit
def _quantize_rows(
    x_ptr, out_ptr, scale_ptr, fixed_scale_ptr, width, MODE: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0)
    offs = tl.arange(0, BLOCK)
    mask = offs < width
    base = row.to(tl.int64) * width
    y = tl.load(x_ptr + base + offs, mask=mask, other=0.0).to(tl.float32)
    _store_row(out_ptr + base, scale_ptr, row, y, fixed_scale_ptr, offs, mask, MODE)


def quantize_rows(x_TD: Tensor, *, target: Target) -> Tensor | Quantized:
    """Quantise what no fused pass could: attention's output when a token has its own scale.

    Shapes
        x_TD     (T, D) model dtype, contiguous
        returns  x_TD itself if the target is not FP8, else codes with their scale
    Raises
        ValueError  x_TD is not row-contiguous.
    """
    _check_rows(x_TD, x_TD.shape[1], "x_TD")
    if not target.is_fp8:
        return x_TD
    if not uses_kernel(x_TD):
        return quantize_rows_ref(x_TD, target=target)
    out_TD, scale = _outputs(x_TD, x_TD.shape[1], target)
    block = pow2(x_TD.shape[1])
    _quantize_rows[(x_TD.shape[0],)](
        x_TD, out_TD, scale, scale, x_TD.shape[1], MODE=target.mode, BLOCK=block, num_warps=8
    )
    return _wrap(out_TD, scale, target)
