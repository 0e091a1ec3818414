"""A source's weights, one layer at a time, to a rank's fused and quantised share.

A weight is read, sent to the device and quantised there before the next is read, so the
host holds one weight at a time and the disk sets the pace.

Shape letters (this file)
    N   output width of a weight
    K   input width
    D   model width
    V   vocabulary
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from paceline.native.checkpoint import Part, Source
from paceline.native.errors import NativeError
from paceline.native.fused import FP8_DTYPE
from paceline.native.gemm import Linear, quantize_weight
from paceline.native.model import LayerWeights, Weights
from paceline.native.parallel import TensorGroup
from paceline.native.rotary import KVScale

__all__ = ["LoadOptions", "build_linear", "load"]

_ALL = slice(None)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadOptions:
    """Where weights go and as what. `quantization` is as in EngineConfig."""

    device: torch.device
    dtype: torch.dtype
    quantization: str


def load(
    source: Source,
    options: LoadOptions,
    *,
    group: TensorGroup,
    progress: Callable[[float], None] = lambda fraction: None,
) -> Weights:
    """Load a rank's share of the model; `progress` gets the fraction of layers done.

    Raises
        NativeError  a tensor is missing or of no known layout, or the device is full.
    """
    config = source.config
    try:
        layers = []
        for index in range(config.num_layers):
            layers.append(_load_layer(source, index, options, group))
            progress((index + 1) / config.num_layers)
        embed_VD = _whole(source, "model.embed_tokens", options)
        head_VD = embed_VD if config.tied_embeddings else _whole(source, "lm_head", options)
        norm_D = source.vector("model.norm.weight", options.device).to(options.dtype)
    except torch.OutOfMemoryError as error:
        raise NativeError(
            f"the weights do not fit {options.device}",
            hint="quantise them, or raise tensor_parallel",
        ) from error
    return Weights(embed_VD=embed_VD, layers=layers, final_norm_D=norm_D, head_VD=head_VD)


def _whole(source: Source, name: str, options: LoadOptions) -> Tensor:
    part = source.part(name, rows=_ALL, columns=_ALL, device=options.device)
    return _dequantize(part).to(options.dtype).contiguous()


def _load_layer(
    source: Source, index: int, options: LoadOptions, group: TensorGroup
) -> LayerWeights:
    config, device = source.config, options.device
    prefix = f"model.layers.{index}"
    heads = group.share(config.num_heads * config.head_size)
    kv_heads = group.share(config.num_kv_heads * config.head_size)
    hidden = group.share(config.intermediate_size)

    def linear(shares: dict[str, tuple[slice, slice]]) -> Linear:
        parts = [
            source.part(f"{prefix}.{name}", rows=rows, columns=columns, device=device)
            for name, (rows, columns) in shares.items()
        ]
        return build_linear(parts, options.quantization, options.dtype)

    def norm(name: str) -> Tensor:
        return source.vector(f"{prefix}.{name}.weight", device).to(options.dtype)

    key_scale, value_scale = source.kv_scale(index)
    return LayerWeights(
        attn_norm_D=norm("input_layernorm"),
        qkv=linear(
            {
                "self_attn.q_proj": (heads, _ALL),
                "self_attn.k_proj": (kv_heads, _ALL),
                "self_attn.v_proj": (kv_heads, _ALL),
            }
        ),
        out=linear({"self_attn.o_proj": (_ALL, heads)}),
        mlp_norm_D=norm("post_attention_layernorm"),
        gate_up=linear({"mlp.gate_proj": (hidden, _ALL), "mlp.up_proj": (hidden, _ALL)}),
        down=linear({"mlp.down_proj": (_ALL, hidden)}),
        kv_scale=KVScale(key_scale, value_scale),
    )


def _dequantize(part: Part) -> Tensor:
    if part.weight_scale is None:
        return part.weight_NK
    scale = part.weight_scale if part.weight_scale.dim() == 0 else part.weight_scale[:, None]
    return part.weight_NK.float() * scale


def build_linear(parts: list[Part], quantization: str, dtype: torch.dtype) -> Linear:
    """Stack the outputs of `parts` into one layer, quantised as asked.

        none        the model's dtype; FP8 codes are dequantised
        fp8-tensor  one scale for the whole weight; the activations' is fixed if all parts fix it
        fp8-token   one scale per output channel; the activations' is found per token

    FP8 codes are kept as they are wherever their scale can be said in the layout asked for.
    """
    if quantization == "none":
        return Linear(_stack([_dequantize(part).to(dtype) for part in parts]))
    if quantization == "fp8-token":
        pairs = [_per_channel(part) for part in parts]
        return Linear(_stack([codes for codes, _ in pairs]), _stack([scale for _, scale in pairs]))
    fixed = [part.input_scale for part in parts if part.input_scale is not None]
    # Parts of one product read the same activation; the widest of their scales clips nothing.
    input_scale = torch.stack(fixed).amax() if len(fixed) == len(parts) else None
    scales = [part.weight_scale for part in parts]
    first = scales[0]
    if first is not None and all(
        scale is not None and scale.dim() == 0 and bool(scale == first) for scale in scales
    ):
        return Linear(_stack([part.weight_NK for part in parts]), first, input_scale)
    codes_NK, scale = quantize_weight(
        _stack([_dequantize(part) for part in parts]), per_channel=False
    )
    return Linear(codes_NK, scale, input_scale)


def _per_channel(part: Part) -> tuple[Tensor, Tensor]:
    if part.weight_NK.dtype != FP8_DTYPE:
        return quantize_weight(part.weight_NK, per_channel=True)
    assert part.weight_scale is not None
    return part.weight_NK, part.weight_scale.expand(part.weight_NK.shape[0]).contiguous()


def _stack(tensors: list[Tensor]) -> Tensor:
    if len(tensors) == 1:
        return tensors[0].contiguous()
    # Concatenation moves bytes; not every build of torch has it for FP8.
    raw = [tensor.contiguous().view(torch.uint8) for tensor in tensors]
    is_fp8 = tensors[0].dtype == FP8_DTYPE
    return torch.cat(raw).view(FP8_DTYPE) if is_fp8 else torch.cat(tensors)
