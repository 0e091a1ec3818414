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

from paceline.native import packed_sm90
from paceline.native.checkpoint import Part, Source
from paceline.native.errors import NativeError
from paceline.native.formats import PACKED_KINDS
from paceline.native.fused import FP8_DTYPE
from paceline.native.gemm import Linear, quantize_weight
from paceline.native.model import LayerWeights, Weights
from paceline.native.packed import PackedWeight, block_len_of, lay_out, normal_scales, widen
from paceline.native.parallel import TensorGroup
from paceline.native.rotary import KVScale

__all__ = ["LoadOptions", "build_linear", "dequantize", "load"]

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
    return dequantize(part).to(options.dtype).contiguous()


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


def dequantize(part: Part) -> Tensor:
    """The values of a stored weight: (N, K), float32 where it was quantised."""
    if part.kind is not None:
        return widen(_packed([part]))
    if part.weight_scale is None:
        return part.weight_NK
    scale = part.weight_scale if part.weight_scale.dim() == 0 else part.weight_scale[:, None]
    return part.weight_NK.float() * scale


def build_linear(parts: list[Part], quantization: str, dtype: torch.dtype) -> Linear:
    """Stack the outputs of `parts` into one layer, quantised as asked.

        none        the model's dtype; codes are dequantised
        fp8-tensor  one scale for the whole weight; the activations' is fixed if all parts fix it
        fp8-token   one scale per output channel; the activations' is found per token
        w4a16, w4a8, mxfp4, nvfp4   as stored: a checkpoint of that format, kept packed

    FP8 codes are kept as they are wherever their scale can be said in the layout asked for.

    Raises
        NativeError  four bits are asked for and not stored.
    """
    if quantization == "none":
        return Linear(_stack([dequantize(part).to(dtype) for part in parts]))
    if quantization in PACKED_KINDS:
        if any(part.kind != PACKED_KINDS[quantization] for part in parts):
            raise NativeError(
                f"the checkpoint is not of format {quantization}",
                hint=f"paceline quantize MODEL OUT --format {quantization}",
            )
        packed = _packed(parts)
        return Linear(torch.empty(0, device=packed.packed.device), packed=packed)
    if quantization == "fp8-token":
        pairs = [_per_channel(part) for part in parts]
        codes_NK, scale = _stack([c for c, _ in pairs]), _stack([s for _, s in pairs])
        return Linear(codes_NK, scale)
    return _per_tensor(parts)


def _per_tensor(parts: list[Part]) -> Linear:
    fixed = [part.input_scale for part in parts if part.input_scale is not None]
    # Parts of one product read the same activation; the widest of their scales clips nothing.
    input_scale = torch.stack(fixed).amax() if len(fixed) == len(parts) else None
    scales = [part.weight_scale for part in parts]
    first = scales[0]
    if first is not None and all(
        scale is not None and scale.dim() == 0 and bool(scale == first) for scale in scales
    ):
        codes_NK = _stack([part.weight_NK for part in parts])
        return Linear(codes_NK, first, input_scale)
    codes_NK, scale = quantize_weight(
        _stack([dequantize(part) for part in parts]), per_channel=False
    )
    return Linear(codes_NK, scale, input_scale)


def _packed(parts: list[Part]) -> PackedWeight:
    """Stacked bytes and scales; a global scale becomes one a row, as parts may differ in it."""
    kind = parts[0].kind
    scales = [part.weight_scale for part in parts]
    assert kind is not None
    row_scale_N = None
    if parts[0].global_scale is not None:
        row_scale_N = torch.cat(
            [(1.0 / part.global_scale).expand(part.weight_NK.shape[0]) for part in parts]
        ).contiguous()
    stored, scale_NG = _stack([part.weight_NK for part in parts]), _stack(scales)
    width, num_groups = 2 * stored.shape[1], scale_NG.shape[1]
    block = block_len_of(width, width // num_groups)
    is_for_sm90 = False
    if kind == "int4-e4m3":
        scale_NG, row_scale_N = normal_scales(scale_NG)
        is_for_sm90 = packed_sm90.can_hold(len(stored), width // num_groups, stored.device)
    codes = packed_sm90.lay_out(stored) if is_for_sm90 else lay_out(stored, block, kind)
    return PackedWeight(
        codes, scale_NG.t().contiguous(), row_scale_N, kind, block, is_for_sm90=is_for_sm90
    )


def _per_channel(part: Part) -> tuple[Tensor, Tensor]:
    if part.weight_NK.dtype != FP8_DTYPE:
        return quantize_weight(part.weight_NK, per_channel=True)
    assert part.weight_scale is not None
    return part.weight_NK, part.weight_scale.expand(part.weight_NK.shape[0]).contiguous()


def _stack(tensors: list[Tensor]) -> Tensor:
    if len(tensors) == 1:
        return tensors[0].contiguous()
    # Concatenation moves bytes; not every build of torch has it for FP8.
    if tensors[0].dtype == FP8_DTYPE:
        raw = [tensor.contiguous().view(torch.uint8) for tensor in tensors]
        return torch.cat(raw).view(FP8_DTYPE)
    return torch.cat(tensors)
