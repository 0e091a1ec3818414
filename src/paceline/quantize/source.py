"""The checkpoint that is quantised: opened, found whole, and read one weight at a time.

A Hugging Face folder's own config and tokenizer go over as they are; a GGUF file has them inside,
and they are written out as Hugging Face writes them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paceline.errors import CheckpointError
from paceline.mlperf.tokenizer import load_tokenizer
from paceline.native import NativeError
from paceline.native.checkpoint import SafetensorsSource, open_source
from paceline.native.gguf_file import GgufSource
from paceline.quantize.layers import TOP_WEIGHTS, linear_shapes
from paceline.quantize.store import CheckpointWriter

__all__ = ["InputCheckpoint"]

_ALL = slice(None)
_COPIED = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "LICENSE.txt",
    "USE_POLICY.md",
)
_SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


class InputCheckpoint:
    """A checkpoint of whole precision.

    Raises
        CheckpointError  there is none, it is damaged, or it is quantised already.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        self.path = path
        self._device = device
        # Untyped: the native engine has its own checks, and three kinds of source.
        self._source: Any = _told(lambda: open_source(str(path), quantization="none"))
        self.config = self._source.config
        if self._source.stored is not None:
            raise CheckpointError(
                f"{path} is quantised already ({self._source.stored.name}); rounding it again "
                "would lose twice.",
                hint="give the checkpoint that it was made from",
            )

    def layer(self, index: int) -> dict[str, Tensor]:
        """A block's linear layers and norms, float32, by their names within it.

        Raises
            CheckpointError  a tensor is missing, of another shape, of another type, or has a NaN.
        """
        prefix = f"model.layers.{index}"
        found = {
            name: self._weight(f"{prefix}.{name}", shape)
            for name, shape in linear_shapes(self.config).items()
        }
        for name in ("input_layernorm", "post_attention_layernorm"):
            found[name] = self._vector(f"{prefix}.{name}.weight")
        return found

    def top(self) -> dict[str, Tensor]:
        """Embeddings, the final norm, and the output layer where it is a weight of its own."""
        shape = (self.config.vocab_size, self.config.hidden_size)
        names = TOP_WEIGHTS[:1] if self.config.tied_embeddings else TOP_WEIGHTS
        found = {f"{name}.weight": self._weight(name, shape) for name in names}
        return found | {"model.norm.weight": self._vector("model.norm.weight")}

    def _weight(self, name: str, shape: tuple[int, int]) -> Tensor:
        part = _told(lambda: self._source.part(name, rows=_ALL, columns=_ALL, device=self._device))
        if part.weight_scale is not None or not part.weight_NK.is_floating_point():
            raise CheckpointError(
                f"{self.path}: {name} is {part.weight_NK.dtype}: quantised already.",
                hint="give the checkpoint that it was made from",
            )
        return self._checked(name, part.weight_NK, shape)

    def _vector(self, name: str) -> Tensor:
        vector = _told(lambda: self._source.vector(name, self._device))
        return self._checked(name, vector, (self.config.hidden_size,))

    def _checked(self, name: str, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
        if tuple(tensor.shape) != shape:
            raise CheckpointError(
                f"{self.path}: {name} is {tuple(tensor.shape)}; config.json makes it {shape}.",
                hint="config.json and the weights belong to different models",
            )
        value = tensor.float()
        if not bool(torch.isfinite(value).all()):
            raise CheckpointError(
                f"{self.path}: {name} holds a NaN or an infinity.",
                hint="the download is damaged: `paceline model verify` finds what else is",
            )
        return value

    @property
    def kept_dtype(self) -> torch.dtype:
        """The type of what stays in 16 bit: the checkpoint's own, or bfloat16."""
        if isinstance(self._source, SafetensorsSource):
            raw = json.loads((self.path / "config.json").read_text())
            if (raw.get("dtype") or raw.get("torch_dtype")) == "float16":
                return torch.float16
        return torch.bfloat16

    def write_config(self, writer: CheckpointWriter, quantization: dict[str, Any]) -> None:
        """config.json with the quantisation, and the tokenizer's files."""
        if isinstance(self._source, GgufSource):
            raw = _config_of_gguf(self._source)
            special = {key: raw[key] for key in _SPECIAL_IDS if raw[key] is not None}
            writer.write_json("generation_config.json", special)
            _write_tokenizer(self.path, self._source, writer)
        else:
            raw = json.loads((self.path / "config.json").read_text())
            for name in _COPIED:
                if (self.path / name).is_file():
                    writer.copy(self.path / name)
        raw.pop("torch_dtype", None)
        raw["dtype"] = raw["torch_dtype"] = str(self.kept_dtype).removeprefix("torch.")
        writer.write_json("config.json", {**raw, "quantization_config": quantization})


def _told(read: Callable[[], Any]) -> Any:
    """Run a read of the native engine's; its error becomes one of ours."""
    try:
        return read()
    except NativeError as error:
        raise CheckpointError(error.message, hint=error.hint) from error


def _config_of_gguf(source: GgufSource) -> dict[str, Any]:
    config = source.config
    special = {name: source.token_id(name) for name in ("bos", "eos", "padding")}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_size,
        "max_position_embeddings": config.max_context_len,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope.theta,
        "hidden_act": "silu",
        "tie_word_embeddings": config.tied_embeddings,
        "bos_token_id": special["bos"],
        "eos_token_id": special["eos"],
        "pad_token_id": special["padding"],
    }


def _write_tokenizer(path: Path, source: GgufSource, writer: CheckpointWriter) -> None:
    """tokenizer.json, and a tokenizer_config.json that says which tokens are special."""
    tokenizer = load_tokenizer(path)
    writer.write_text("tokenizer.json", tokenizer.as_json())
    names = {"bos": "bos_token", "eos": "eos_token", "padding": "pad_token"}
    special = {
        key: tokenizer.token_of(index)
        for name, key in names.items()
        if (index := source.token_id(name)) is not None
    }
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
    if (template := source.chat_template) is not None:
        settings["chat_template"] = template
    writer.write_json("tokenizer_config.json", settings)
