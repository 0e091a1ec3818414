"""A GGUF file as a source of weights: any block format that the gguf package dequantises.

Shape letters (this file)
    N   output width of a weight
    K   input width
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paceline.native.checkpoint import Part
from paceline.native.errors import NativeError
from paceline.native.model import ModelConfig
from paceline.native.rotary import RopeConfig

__all__ = ["GgufSource"]

_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_TOP_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}


# A key of a model with this many items is its vocabulary's; lists by layer are shorter.
_LONG_ARRAY = 1000


class GgufSource:
    """Weights dequantised to float32, one at a time."""

    # The file's own blocks are a way to store values, not a format that products run in.
    stored = None

    def __init__(self, path: Path) -> None:
        try:
            reader = _weights_reader()(path)
        except ImportError as error:
            raise NativeError(
                "the gguf package is not installed", hint="pip install gguf"
            ) from error
        self.path = path
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self._fields = {
            name: field.contents()
            for name, field in reader.fields.items()
            if not name.startswith("tokenizer.ggml.") or name.endswith("_token_id")
        }
        template = self._fields.get("tokenizer.chat_template")
        self.chat_template = None if template is None else str(template)
        self.config = self._read_config()

    def part(self, name: str, *, rows: slice, columns: slice, device: torch.device) -> Part:
        weight_NK = self._dequantize(_gguf_name(name))
        head_counts = {"q_proj": self.config.num_heads, "k_proj": self.config.num_kv_heads}
        if (heads := head_counts.get(name.rsplit(".", 1)[-1])) is not None:
            weight_NK = _unpermute(weight_NK, heads)
        return Part(weight_NK[rows, columns].to(device))

    def vector(self, name: str, device: torch.device) -> Tensor:
        return self._dequantize(_gguf_name(name.removesuffix(".weight"))).to(device)

    def kv_scale(self, layer: int) -> tuple[float, float]:
        return 1.0, 1.0

    def token_id(self, which: str) -> int | None:
        """The id of a special token: "bos", "eos" or "padding"."""
        value = self._fields.get(f"tokenizer.ggml.{which}_token_id")
        return None if value is None else int(value)

    def _dequantize(self, name: str) -> Tensor:
        from gguf import dequantize

        if name not in self._tensors:
            raise NativeError(f"{self.path} has no tensor {name}")
        tensor = self._tensors[name]
        return torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())

    def _field(self, name: str, default: Any = None) -> Any:
        value = self._fields.get(f"llama.{name}", default)
        if value is None:
            raise NativeError(f"{self.path} does not say llama.{name}")
        return value

    def _read_config(self) -> ModelConfig:
        architecture = self._fields.get("general.architecture")
        if architecture != "llama":
            raise NativeError(f"{self.path}: architecture {architecture!r} is not llama")
        if "rope_freqs.weight" in self._tensors:
            raise NativeError(f"{self.path}: scaled rotary frequencies of a GGUF are not read")
        num_heads = self._field("attention.head_count")
        hidden_size = self._field("embedding_length")
        head_size = self._field("attention.key_length", hidden_size // num_heads)
        eos = self._fields.get("tokenizer.ggml.eos_token_id")
        return ModelConfig(
            num_layers=self._field("block_count"),
            hidden_size=hidden_size,
            intermediate_size=self._field("feed_forward_length"),
            num_heads=num_heads,
            num_kv_heads=self._field("attention.head_count_kv", num_heads),
            head_size=head_size,
            vocab_size=self._tensors["token_embd.weight"].data.shape[0],
            rms_norm_eps=self._field("attention.layer_norm_rms_epsilon"),
            max_context_len=self._field("context_length"),
            rope=RopeConfig(theta=self._field("rope.freq_base", 10000.0), head_size=head_size),
            eos_token_ids=() if eos is None else (int(eos),),
            tied_embeddings="output.weight" not in self._tensors,
        )


def _weights_reader() -> type[Any]:
    """gguf's reader, but for the items of a vocabulary: they take it seconds, and none is used."""
    from gguf import GGUFReader, GGUFValueType

    class WeightsReader(GGUFReader):  # type: ignore[misc]
        def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
            is_array = raw_type == GGUFValueType.ARRAY
            if not is_array or (count := int(self._get(orig_offs + 4, np.uint64)[0])) < _LONG_ARRAY:
                return super()._get_field_parts(orig_offs, raw_type)
            kind, start = GGUFValueType(self._get(orig_offs, np.uint32)[0]), orig_offs + 12
            if kind == GGUFValueType.STRING:
                end = _end_of_strings(self.data, start, count, self.byte_order == "S")
            elif kind in self.gguf_scalar_to_np:
                end = start + count * np.dtype(self.gguf_scalar_to_np[kind]).itemsize
            else:
                return super()._get_field_parts(orig_offs, raw_type)
            return end - orig_offs, [self.data[orig_offs:end]], [], [GGUFValueType.ARRAY, kind]

    return WeightsReader


def _end_of_strings(data: Any, offset: int, count: int, is_swapped: bool) -> int:
    """Where `count` strings end that begin at `offset`, each its length and then its bytes."""
    letter = "<Q" if (sys.byteorder == "little") != is_swapped else ">Q"
    read_len, view = struct.Struct(letter).unpack_from, memoryview(data)
    try:
        for _ in range(count):
            offset += 8 + read_len(view, offset)[0]
    except struct.error as error:
        raise ValueError("a string of its header goes on past its end") from error
    return offset


def _gguf_name(name: str) -> str:
    if name in _TOP_NAMES:
        return f"{_TOP_NAMES[name]}.weight"
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{_NAMES[rest]}.weight"


def _unpermute(weight_NK: Tensor, num_heads: int) -> Tensor:
    """llama.cpp rotates neighbours, so its converter interleaves each head's halves; undo it."""
    width = weight_NK.shape[1]
    halves = weight_NK.view(num_heads, -1, 2, width)
    return halves.transpose(1, 2).reshape(-1, width)
