"""The Llama forward pass, in the order of the paper, over one packed step of tokens.

Shape letters (this file)
    T   tokens in the step: decodes first, then prompt chunks
    D   model width
    Q   query heads held here, H KV heads held here, d head size
    R   rows that sample
    V   vocabulary
    e   half a head

Source
    Touvron et al. 2023 (arXiv:2302.13971), section 2.2; grouped queries: arXiv:2307.09288.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from paceline.native.attention import Decodes, PagedKV, decode_attention
from paceline.native.cache import KVCache
from paceline.native.fused import (
    FP8_DTYPE,
    PLAIN,
    Quantized,
    Target,
    add_rms_norm,
    quantize_rows,
    silu_mul,
)
from paceline.native.gemm import Linear, linear, logits
from paceline.native.prefill import Chunks, chunk_attention
from paceline.native.rotary import KVScale, RopeConfig, rotary_table, rotary_write
from paceline.native.sample import argmax_rows

__all__ = ["Group", "LayerWeights", "Llama", "ModelConfig", "StepTensors", "Weights"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """A Llama architecture. Sizes are of the whole model, not of a rank's share."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    vocab_size: int
    rms_norm_eps: float
    max_context_len: int
    rope: RopeConfig
    eos_token_ids: tuple[int, ...]
    tied_embeddings: bool = False

    @property
    def linear_parameters(self) -> int:
        """Weights of the linear layers of all blocks: two operations each per token."""
        heads = (2 * self.num_heads + 2 * self.num_kv_heads) * self.head_size
        return self.num_layers * self.hidden_size * (heads + 3 * self.intermediate_size)


@dataclass(slots=True)
class LayerWeights:
    """One block, a rank's share of it."""

    attn_norm_D: Tensor
    qkv: Linear
    out: Linear
    mlp_norm_D: Tensor
    gate_up: Linear
    down: Linear
    kv_scale: KVScale


@dataclass(slots=True)
class Weights:
    """A rank's share of the model; `head_VD` is `embed_VD` itself where they are tied."""

    embed_VD: Tensor
    layers: list[LayerWeights]
    final_norm_D: Tensor
    head_VD: Tensor


@dataclass(frozen=True, slots=True)
class StepTensors:
    """A step's inputs on the device, all int32. The first `num_decodes` rows are decodes.

    token_T       id of each row, for rows whose id the host knows
    source_T      slot whose last sampled id the row takes; `num_slots` where `token_T` has it
    position_T    the row's position in its sequence
    place_T       where its key and value go: page * page_len + offset
    sample_row_R  rows whose next id is wanted; sample_slot_R their slots; bans_R no EOS yet
    """

    token_T: Tensor
    source_T: Tensor
    position_T: Tensor
    place_T: Tensor
    num_decodes: int
    decodes: Decodes
    chunks: Chunks
    sample_row_R: Tensor
    sample_slot_R: Tensor
    bans_R: Tensor


class Group(Protocol):
    """The ranks that share one model."""

    def all_reduce(self, x: Tensor) -> Tensor: ...


class Llama:
    """A rank's share of the model, its cache, and the last id of every slot."""

    def __init__(
        self, config: ModelConfig, weights: Weights, *, cache: KVCache, group: Group
    ) -> None:
        self.config = config
        self.weights = weights
        self.cache = cache
        self.group = group
        device = weights.embed_VD.device
        self.dtype = weights.embed_VD.dtype
        self.table_X2e = rotary_table(config.rope, cache.config.max_context_len, device)
        num_rows = cache.page_table_SI.shape[0]
        # One more than there are slots: padded rows read and write the last.
        self.last_id_S = torch.zeros(num_rows, dtype=torch.int32, device=device)
        self.eos_E = torch.tensor(config.eos_token_ids, dtype=torch.int64, device=device)

    def step(self, tensors: StepTensors) -> Tensor:
        """Run a step; return the sampled ids and, last, the number of rows with a NaN.

        Shapes
            returns (R + 1,) int32
        """
        known_T = tensors.source_T == self.last_id_S.shape[0] - 1
        token_T = torch.where(known_T, tensors.token_T, self.last_id_S[tensors.source_T])
        residual_TD = self.weights.embed_VD[token_T]
        delta_TD: Tensor | None = None
        for index in range(len(self.weights.layers)):
            delta_TD = self._block(index, residual_TD, delta_TD, tensors)
        return self._sample(residual_TD, delta_TD, tensors)

    def _block(
        self, index: int, residual_TD: Tensor, delta_TD: Tensor | None, tensors: StepTensors
    ) -> Tensor:
        """One block: adds the last block's output to the residual, returns its own."""
        layer, eps = self.weights.layers[index], self.config.rms_norm_eps
        x = add_rms_norm(
            residual_TD, delta_TD, layer.attn_norm_D, eps=eps, target=_target(layer.qkv)
        )
        attended = self._attention(index, linear(x, layer.qkv, self.dtype), tensors)
        delta_TD = self.group.all_reduce(linear(attended, layer.out, self.dtype))
        x = add_rms_norm(
            residual_TD, delta_TD, layer.mlp_norm_D, eps=eps, target=_target(layer.gate_up)
        )
        gate_up_TD = linear(x, layer.gate_up, self.dtype)
        hidden = silu_mul(gate_up_TD, target=_target(layer.down))
        return self.group.all_reduce(linear(hidden, layer.down, self.dtype))

    def _attention(self, index: int, qkv_TC: Tensor, tensors: StepTensors) -> Tensor | Quantized:
        layer = self.weights.layers[index]
        cache = self.cache.layer(index)
        q_TQd = rotary_write(
            qkv_TC,
            self.table_X2e,
            position_T=tensors.position_T,
            place_T=tensors.place_T,
            cache=cache,
            scale=layer.kv_scale,
        )
        kv = PagedKV(cache[0], cache[1], self.cache.page_table_SI, layer.kv_scale)
        target = _target(layer.out)
        # A fixed scale is applied where attention ends; a scale per token needs all heads.
        fixed = target.scale if target.mode == 1 else None
        out_dtype = FP8_DTYPE if fixed is not None else self.dtype
        out_TQd = torch.empty(q_TQd.shape, dtype=out_dtype, device=q_TQd.device)
        num_decodes = tensors.num_decodes
        decode_attention(
            q_TQd[:num_decodes],
            kv,
            tensors.decodes,
            out_DQd=out_TQd[:num_decodes],
            out_scale=fixed,
        )
        chunk_attention(
            q_TQd[num_decodes:],
            kv,
            tensors.chunks,
            out_TQd=out_TQd[num_decodes:],
            out_scale=fixed,
        )
        out_TD = out_TQd.flatten(1)
        return quantize_rows(out_TD, target=target) if fixed is None else Quantized(out_TD, fixed)

    def _sample(self, residual_TD: Tensor, delta_TD: Tensor | None, tensors: StepTensors) -> Tensor:
        """Ids of the rows that sample; only their logits are computed."""
        rows_R = tensors.sample_row_R
        residual_RD = residual_TD[rows_R]
        delta_RD = None if delta_TD is None else delta_TD[rows_R]
        x_RD = add_rms_norm(
            residual_RD,
            delta_RD,
            self.weights.final_norm_D,
            eps=self.config.rms_norm_eps,
            target=PLAIN,
        )
        assert isinstance(x_RD, Tensor)
        id_R, num_bad = argmax_rows(logits(x_RD, self.weights.head_VD), tensors.bans_R, self.eos_E)
        self.last_id_S.index_copy_(0, tensors.sample_slot_R.long(), id_R)
        return torch.cat((id_R, num_bad.reshape(1)))


def _target(layer: Linear) -> Target:
    return Target(layer.takes_fp8, layer.input_scale)
