"""Where weights come from: a Hugging Face directory, a GGUF file, or `random_weights`.

A source says what the model is (`config`) and gives one named weight at a time, a rank's
share of it, on the device it is wanted on. Names are Hugging Face's.

Shape letters (this file)
    N   output width of a weight
    K   input width
    G   groups of K that share a scale
"""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from paceline.native.errors import NativeError
from paceline.native.formats import StoredFormat, power_of_two, stored_format
from paceline.native.fused import FP8_DTYPE
from paceline.native.model import ModelConfig
from paceline.native.rotary import RopeConfig

__all__ = ["Part", "SafetensorsSource", "Source", "hf_config", "open_source"]


@dataclass(slots=True)
class Part:
    """A stored weight: value ~ weight * weight_scale where that is given (FP8 codes).

    weight_scale is () or (N,) float32; input_scale is () float32 or None. Where `kind` is given,
    one of `formats`, `weight_NK` is (N, K / 2) bytes, `weight_scale` (N, K / group), and
    `global_scale` () float32 divides the scales.
    """

    weight_NK: Tensor
    weight_scale: Tensor | None = None
    input_scale: Tensor | None = None
    kind: str | None = None
    global_scale: Tensor | None = None


class Source(Protocol):
    """What `weights.load` reads from. `stored` is None where weights are not quantised."""

    config: ModelConfig
    stored: StoredFormat | None

    def part(self, name: str, *, rows: slice, columns: slice, device: torch.device) -> Part: ...

    def vector(self, name: str, device: torch.device) -> Tensor: ...

    def kv_scale(self, layer: int) -> tuple[float, float]: ...


def open_source(weights: str, *, quantization: str) -> Source:
    """The source that `weights` names: a directory, a .gguf file or "random:NAME[:layers=N]".

    Raises
        NativeError  there is none, or it is not a Llama model.
    """
    if weights.startswith("random:"):
        from paceline.native.random_weights import RandomSource

        return RandomSource(weights.removeprefix("random:"), quantization=quantization)
    path = Path(weights)
    try:
        if path.is_file() and path.suffix == ".gguf":
            from paceline.native.gguf_file import GgufSource

            return GgufSource(path)
        if (path / "config.json").is_file():
            return SafetensorsSource(path)
    except (ValueError, KeyError, IndexError, TypeError, OSError) as error:
        raise _damaged(path, error) from error
    raise NativeError(
        f"no checkpoint at {weights}",
        hint="give a directory with config.json, a .gguf file, or random:NAME",
    )


def _damaged(path: Path, error: Exception) -> NativeError:
    return NativeError(
        f"{path} cannot be read as a checkpoint: {type(error).__name__}: {error}",
        hint="the download is cut short or damaged: compare its size and hash",
    )


def _open_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error


def hf_config(raw: dict[str, Any], *, generation: dict[str, Any] | None = None) -> ModelConfig:
    """A config.json, and generation_config.json if there is one, as a ModelConfig.

    Raises
        NativeError  it is not a Llama model, or one with biases or an unknown rotation.
    """
    if raw.get("model_type") != "llama":
        raise NativeError(f"model_type {raw.get('model_type')!r} is not llama")
    for key in ("attention_bias", "mlp_bias"):
        if raw.get(key):
            raise NativeError(f"config.json has {key}: linear layers with bias are not run")
    num_heads = raw["num_attention_heads"]
    head_size = raw.get("head_dim") or raw["hidden_size"] // num_heads
    eos = (generation or {}).get("eos_token_id", raw.get("eos_token_id"))
    return ModelConfig(
        num_layers=raw["num_hidden_layers"],
        hidden_size=raw["hidden_size"],
        intermediate_size=raw["intermediate_size"],
        num_heads=num_heads,
        num_kv_heads=raw.get("num_key_value_heads") or num_heads,
        head_size=head_size,
        vocab_size=raw["vocab_size"],
        rms_norm_eps=raw.get("rms_norm_eps", 1e-6),
        max_context_len=raw.get("max_position_embeddings", 2048),
        rope=_rope_config(raw, head_size),
        eos_token_ids=tuple(eos) if isinstance(eos, list) else (() if eos is None else (eos,)),
        tied_embeddings=bool(raw.get("tie_word_embeddings", False)),
    )


def _rope_config(raw: dict[str, Any], head_size: int) -> RopeConfig:
    scaling = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    theta = float(scaling.get("rope_theta", raw.get("rope_theta", 10000.0)))
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return RopeConfig(theta=theta, head_size=head_size)
    if kind == "linear":
        return RopeConfig(theta=theta, head_size=head_size, factor=scaling["factor"])
    if kind == "llama3":
        return RopeConfig(
            theta=theta,
            head_size=head_size,
            factor=scaling["factor"],
            low_freq_factor=scaling["low_freq_factor"],
            high_freq_factor=scaling["high_freq_factor"],
            original_len=scaling["original_max_position_embeddings"],
        )
    raise NativeError(f"rope_type {kind!r} is not known; default, linear and llama3 are")


class SafetensorsSource:
    """A Hugging Face directory: one model.safetensors, or shards with their index.

    Reads bf16, fp16 and fp32; FP8 as compressed-tensors and modelopt store it: codes in
    `weight`, `weight_scale` of one element or one per output channel, `input_scale` if the
    activations' scale is fixed, `k_scale` and `v_scale` of the cache; and four bits as
    compressed-tensors stores them, codes in `weight_packed`.
    """

    # A layer may lie across two files; an older file is closed, so its pages can be dropped.
    _MAX_OPEN = 2

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        raw = json.loads((directory / "config.json").read_text())
        generation = directory / "generation_config.json"
        self.config = hf_config(
            raw, generation=json.loads(generation.read_text()) if generation.is_file() else None
        )
        self.stored = stored_format(raw)
        self._file_of = self._index()
        self._open: OrderedDict[str, Any] = OrderedDict()

    def part(self, name: str, *, rows: slice, columns: slice, device: torch.device) -> Part:
        if self.stored and self.stored.kind and name.startswith("model.layers."):
            return self._packed_part(name, rows, columns, device)
        weight = self._handle(f"{name}.weight").get_slice(f"{name}.weight")[rows, columns]
        weight_NK = weight.to(device, non_blocking=True)
        if weight_NK.dtype != FP8_DTYPE:
            return Part(weight_NK)
        scale = self.vector(f"{name}.weight_scale", device).float()
        num_rows = self._handle(f"{name}.weight").get_slice(f"{name}.weight").get_shape()[0]
        if scale.numel() == 1:
            scale = scale.reshape(())
        elif scale.numel() == num_rows:
            scale = scale.reshape(-1)[rows].contiguous()
        else:
            raise NativeError(f"{name}.weight_scale {tuple(scale.shape)}: blocks are not read")
        input_name = f"{name}.input_scale"
        if input_name not in self._file_of:
            return Part(weight_NK, scale)
        return Part(weight_NK, scale, self.vector(input_name, device).float().amax())

    def _packed_part(self, name: str, rows: slice, columns: slice, device: torch.device) -> Part:
        """Bytes of two codes, and their scales, of a rank's share."""
        assert self.stored is not None
        handle = self._handle(f"{name}.weight_packed").get_slice(f"{name}.weight_packed")
        scales = self._handle(f"{name}.weight_scale").get_slice(f"{name}.weight_scale")
        group_len, num_groups = self.stored.group_len, scales.get_shape()[1]
        start, stop, _ = columns.indices(num_groups * group_len)
        if start % group_len or stop % group_len:
            raise NativeError(
                f"{name}: a share of {stop - start} inputs does not hold whole groups of "
                f"{group_len}",
                hint="lower tensor_parallel",
            )
        # An int32 holds eight codes, a byte two.
        per_item = 8 if handle.get_dtype() == "I32" else 2
        packed = handle[rows, start // per_item : stop // per_item].view(torch.uint8)
        scale_NG = scales[rows, start // group_len : stop // group_len]
        if 2 * packed.shape[1] != stop - start:
            raise NativeError(f"{name}: {packed.shape[1]} bytes a row for {stop - start} inputs")
        if scale_NG.dtype == torch.uint8:
            scale_NG = power_of_two(scale_NG)
        part = Part(packed.to(device), scale_NG.to(device), kind=self.stored.kind)
        if self.stored.name == "nvfp4":
            part.global_scale = self.vector(f"{name}.weight_global_scale", device).float().amax()
        return part

    def vector(self, name: str, device: torch.device) -> Tensor:
        tensor: Tensor = self._handle(name).get_tensor(name)
        return tensor.to(device)

    def kv_scale(self, layer: int) -> tuple[float, float]:
        return self._layer_scale(layer, "k"), self._layer_scale(layer, "v")

    def _layer_scale(self, layer: int, which: str) -> float:
        prefix = f"model.layers.{layer}.self_attn"
        for name in (f"{prefix}.{which}_scale", f"{prefix}.{which}_proj.{which}_scale"):
            if name in self._file_of:
                return float(self.vector(name, torch.device("cpu")).float().amax())
        return 1.0

    def _index(self) -> dict[str, str]:
        index = self.directory / "model.safetensors.index.json"
        if index.is_file():
            weight_map: dict[str, str] = json.loads(index.read_text())["weight_map"]
            return weight_map
        file_of = {}
        for path in sorted(self.directory.glob("*.safetensors")):
            with _open_safetensors(path) as handle:
                file_of.update(dict.fromkeys(handle.keys(), path.name))
        if not file_of:
            raise NativeError(f"{self.directory} holds no .safetensors file")
        return file_of

    def _handle(self, name: str) -> Any:
        if name not in self._file_of:
            raise NativeError(f"{self.directory} has no tensor {name}")
        file = self._file_of[name]
        if file not in self._open:
            if not (self.directory / file).is_file():
                raise NativeError(f"{self.directory / file} is missing", hint="download it again")
            self._open[file] = _open_safetensors(self.directory / file)
            if len(self._open) > self._MAX_OPEN:
                self._open.popitem(last=False)
        self._open.move_to_end(file)
        return self._open[file]
