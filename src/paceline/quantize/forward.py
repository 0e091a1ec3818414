"""One Llama block in plain PyTorch, which shows what its products read.

Calibration needs the inputs of every linear layer, and keys and values as the cache gets them.
The block is run sequence by sequence, so that no padding enters a statistic.

Shape letters (this file)
    T   tokens of a sequence
    D   model width
    X   positions, 2 (cosine, sine), e = half a head
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from paceline.native.model import ModelConfig

__all__ = ["Read", "Tap", "block_forward", "rms_norm", "whole"]

# Gets the name of a group in `layers.GROUPS`, or "key" or "value", and a (T, channels) tensor.
Tap = Callable[[str, Tensor], None]
# What a product makes of its input before it multiplies: the rounding of a format's activations.
Read = Callable[[Tensor], Tensor]


def whole(x_TK: Tensor) -> Tensor:
    """The reading of formats whose activations are not rounded."""
    return x_TK


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean of x^2 + eps) * weight, in float32."""
    x_TD = x_TD.float()
    return x_TD * torch.rsqrt(x_TD.pow(2).mean(dim=-1, keepdim=True) + eps) * weight_D


def block_forward(
    x_TD: Tensor,
    weights: Mapping[str, Tensor],
    config: ModelConfig,
    *,
    table_X2e: Tensor,
    tap: Tap,
    read: Read = whole,
) -> Tensor:
    """The block's output for one sequence; `weights` has linear layers and norms by name.

    `tap` gets what products are given, `read` makes of it what they multiply.
    """
    eps = config.rms_norm_eps
    normed_TD = rms_norm(x_TD, weights["input_layernorm"], eps)
    tap("qkv", normed_TD)
    attended_TD = _attention(read(normed_TD), weights, config, table_X2e=table_X2e, tap=tap)
    x_TD = x_TD + functional.linear(read(attended_TD), weights["self_attn.o_proj"])
    normed_TD = rms_norm(x_TD, weights["post_attention_layernorm"], eps)
    tap("gate_up", normed_TD)
    normed_TD = read(normed_TD)
    gate = functional.linear(normed_TD, weights["mlp.gate_proj"])
    inner = functional.silu(gate) * functional.linear(normed_TD, weights["mlp.up_proj"])
    tap("down", inner)
    return x_TD + functional.linear(read(inner), weights["mlp.down_proj"])


def _attention(
    x_TD: Tensor,
    weights: Mapping[str, Tensor],
    config: ModelConfig,
    *,
    table_X2e: Tensor,
    tap: Tap,
) -> Tensor:
    """What the output product is given."""

    def heads(name: str) -> Tensor:
        flat = functional.linear(x_TD, weights[f"self_attn.{name}_proj"])
        return flat.view(x_TD.shape[0], -1, config.head_size)

    key = _rotate(heads("k"), table_X2e)
    value = heads("v")
    tap("key", key.flatten(1))
    tap("value", value.flatten(1))
    repeats = config.num_heads // config.num_kv_heads
    attended = functional.scaled_dot_product_attention(
        _rotate(heads("q"), table_X2e).transpose(0, 1),
        key.repeat_interleave(repeats, dim=1).transpose(0, 1),
        value.repeat_interleave(repeats, dim=1).transpose(0, 1),
        is_causal=True,
    )
    flat = attended.transpose(0, 1).flatten(1)
    tap("out", flat)
    return flat


def _rotate(x: Tensor, table_X2e: Tensor) -> Tensor:
    cos, sin = table_X2e[: x.shape[0]].unsqueeze(2).unbind(dim=1)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
