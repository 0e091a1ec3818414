"""SmoothQuant: move the width of activation channels into weights, leaving the model's function.

For each channel j that products read, activations are divided and weights multiplied by

    s[j] = max|x[j]|^a / max|w[:, j]|^(1 - a)

The division is folded into what makes the activation: a norm's weight, value's or up's rows. The
attention output's channels of query heads that share a KV head share a factor.

Shape letters (this file)
    K   channels

Source
    Xiao et al. 2022 (arXiv:2211.10438), eq. 4.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from paceline.native.model import ModelConfig
from paceline.quantize.layers import GROUPS

__all__ = ["fold"]

_LEAST = 1e-5


def fold(
    weights: dict[str, Tensor],
    channel_max: Mapping[str, Tensor],
    config: ModelConfig,
    *,
    alpha: float,
) -> dict[str, float]:
    """Fold a block's factors in place; returns the widest factor of each group."""
    widest = {}
    for group, names in GROUPS.items():
        read = torch.stack([weights[name].abs().amax(dim=0) for name in names]).amax(dim=0)
        seen = channel_max[group].to(read.device)
        if group == "out":
            read, seen = _per_kv_channel(read, config), _per_kv_channel(seen, config)
        ratio = seen.clamp(min=_LEAST) ** alpha / read.clamp(min=_LEAST) ** (1 - alpha)
        # A channel that calibration never saw move is left alone.
        factor_K = torch.where(seen > 0, ratio, torch.ones_like(ratio)).clamp(min=_LEAST)
        _divide_source(weights, group, factor_K)
        across = _per_query_channel(factor_K, config) if group == "out" else factor_K
        for name in names:
            weights[name] = weights[name] * across
        widest[group] = float(factor_K.max())
    return widest


def _divide_source(weights: dict[str, Tensor], group: str, factor_K: Tensor) -> None:
    """Make what the group reads smaller by the factors."""
    norms = {"qkv": "input_layernorm", "gate_up": "post_attention_layernorm"}
    if group in norms:
        weights[norms[group]] = weights[norms[group]] / factor_K
    else:
        rows = "self_attn.v_proj" if group == "out" else "mlp.up_proj"
        weights[rows] = weights[rows] / factor_K[:, None]


def _per_kv_channel(x_K: Tensor, config: ModelConfig) -> Tensor:
    """The widest over the query heads that read one KV head's channel."""
    heads = x_K.view(config.num_kv_heads, -1, config.head_size)
    return heads.amax(dim=1).flatten()


def _per_query_channel(x_K: Tensor, config: ModelConfig) -> Tensor:
    repeats = config.num_heads // config.num_kv_heads
    heads = x_K.view(config.num_kv_heads, 1, config.head_size)
    return heads.expand(-1, repeats, -1).flatten()
