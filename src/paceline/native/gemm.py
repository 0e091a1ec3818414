"""The matrix products of the linear layers, in the model's dtype or in FP8.

    linear_ref   the definition, in plain PyTorch
    linear       what `model` calls: checks arguments, multiplies

The kernel of this file is cuBLASLt's, reached through `torch._scaled_mm`: at the token
counts of an offline step it runs at the rate the board's power allows. Weights of four bits
have a kernel of their own, in `packed`.

Shape letters (this file)
    T   tokens in the step
    K   input width
    N   output width

Not here: what turns activations into FP8 codes (`fused`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from paceline.native.fused import FP8_DTYPE, FP8_MAX, Quantized
from paceline.native.packed import PackedWeight, packed_linear, packed_linear_ref, widen

__all__ = ["Linear", "linear", "linear_ref", "logits", "quantize_weight"]


@dataclass(slots=True)
class Linear:
    """A linear layer's weight, without bias.

    weight_NK     (N, K) model dtype, or FP8 codes
    weight_scale  None; () float32 for the whole weight; (N,) float32 per output channel
    input_scale   None: the activations' scale is found per token; () float32: it is fixed
    packed        a weight of four bits, in place of weight_NK, which is then empty
    """

    weight_NK: Tensor
    weight_scale: Tensor | None = None
    input_scale: Tensor | None = None
    packed: PackedWeight | None = None

    @property
    def takes_fp8(self) -> bool:
        """Whether activations come as FP8 codes."""
        return self.weight_scale is not None or (self.packed is not None and self.packed.takes_fp8)

    @property
    def width(self) -> int:
        """The input width, K."""
        return self.packed.width if self.packed is not None else int(self.weight_NK.shape[1])

    @property
    def num_out(self) -> int:
        """The output width, N."""
        codes = self.weight_NK if self.packed is None else self.packed.packed
        return int(codes.shape[0])

    def float_weight(self) -> Tensor:
        """(N, K) float32 values of the weight."""
        if self.packed is not None:
            return widen(self.packed)
        if self.weight_scale is None:
            return self.weight_NK.float()
        scale = self.weight_scale
        return self.weight_NK.float() * (scale if scale.dim() == 0 else scale[:, None])


def quantize_weight(weight_NK: Tensor, *, per_channel: bool) -> tuple[Tensor, Tensor]:
    """FP8 codes and scale of a weight: value ~ code * scale, no value clipped.

    Shapes
        weight_NK  (N, K) any float dtype
        returns    codes (N, K) float8_e4m3fn, scale (N,) or () float32
    """
    amax = weight_NK.abs().amax(dim=1) if per_channel else weight_NK.abs().amax()
    scale = (amax.float() / FP8_MAX).clamp(min=2.0**-126)
    codes_NK = torch.empty_like(weight_NK, dtype=FP8_DTYPE)
    # By slices: a float32 copy of a whole fused weight would double the peak of loading.
    step = max(1, (64 << 20) // max(1, weight_NK.shape[1]))
    for start in range(0, weight_NK.shape[0], step):
        rows = slice(start, start + step)
        divisor = scale[rows, None] if per_channel else scale
        values = (weight_NK[rows].float() / divisor).clamp(-FP8_MAX, FP8_MAX)
        codes_NK[rows] = values.to(FP8_DTYPE)
    return codes_NK, scale


def linear_ref(x: Tensor | Quantized, layer: Linear, out_dtype: torch.dtype) -> Tensor:
    """out[t, n] = sum over k of x[t, k] * weight[n, k], scales applied, in float32 at least."""
    if layer.packed is not None:
        return packed_linear_ref(x, layer.packed, out_dtype)
    if isinstance(x, Quantized):
        x_TK = x.codes_TD.float() * (x.scale if x.scale.dim() == 0 else x.scale[:, None])
        return (x_TK @ layer.float_weight().t()).to(out_dtype)
    return torch.nn.functional.linear(x, layer.weight_NK).to(out_dtype)


def linear(x: Tensor | Quantized, layer: Linear, out_dtype: torch.dtype) -> Tensor:
    """Multiply by a layer's weight.

    Shapes
        x        (T, K) of the weight's dtype, or its FP8 codes and scales
        returns  (T, N) out_dtype
    Raises
        ValueError  widths differ, or x is quantised and the weight is not (or the reverse).
    Accuracy
        FP8 products accumulate in the tensor cores' fast mode, as vLLM and TensorRT-LLM do.
    """
    width = x.codes_TD.shape[1] if isinstance(x, Quantized) else x.shape[1]
    if width != layer.width:
        raise ValueError(f"x is {width} wide, the weight takes {layer.width}")
    if isinstance(x, Quantized) != layer.takes_fp8:
        raise ValueError("x must be FP8 where the layer takes FP8, and only there")
    if layer.packed is not None:
        return packed_linear(x, layer.packed, out_dtype)
    if not isinstance(x, Quantized) or not x.codes_TD.is_cuda:
        return linear_ref(x, layer, out_dtype)
    assert layer.weight_scale is not None
    scale_a, scale_b = x.scale, layer.weight_scale
    if scale_a.dim() == 1 or scale_b.dim() == 1:
        num_tokens, num_out = x.codes_TD.shape[0], layer.weight_NK.shape[0]
        scale_a = scale_a.reshape(-1, 1).expand(num_tokens, 1).contiguous()
        scale_b = scale_b.reshape(1, -1).expand(1, num_out).contiguous()
    return torch._scaled_mm(
        x.codes_TD,
        layer.weight_NK.t(),
        scale_a=scale_a,
        scale_b=scale_b,
        out_dtype=out_dtype,
        use_fast_accum=True,
    )


def logits(x_TK: Tensor, weight_NK: Tensor) -> Tensor:
    """Float32 logits of the rows that sample: a 16-bit result would make ties of near ties.

    Shapes
        x_TK       (T, K) model dtype, only the rows that sample
        weight_NK  (N, K) model dtype
        returns    (T, N) float32
    """
    if x_TK.is_cuda and x_TK.dtype != torch.float32:
        return torch.mm(x_TK, weight_NK.t(), out_dtype=torch.float32)
    return torch.nn.functional.linear(x_TK, weight_NK).float()
