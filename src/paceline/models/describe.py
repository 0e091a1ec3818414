"""What a checkpoint is, in numbers, and what of it fits on which card.

A card holds the weights, a reserve for activations and the runtime, and a cache; the cache's room
divided by what one live sequence takes is how many sequences can live at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from paceline.models.layout import Model, read_model

__all__ = [
    "CARDS",
    "PACKED",
    "PRECISIONS",
    "Card",
    "Precision",
    "describe",
    "live_sequences",
    "stored_precision",
    "weight_bytes",
]


@dataclass(frozen=True, slots=True)
class Card:
    """An accelerator and its memory in bytes, as its maker states it."""

    name: str
    memory_bytes: int


# GB of the data sheets of NVIDIA and AMD; 10^9 bytes.
CARDS = (
    Card("L40S", 48 * 10**9),
    Card("A100 / H100 80 GB", 80 * 10**9),
    Card("H100 NVL 94 GB", 94 * 10**9),
    Card("H200", 141 * 10**9),
    Card("B200", 180 * 10**9),
    Card("MI300X", 192 * 10**9),
    Card("MI325X", 256 * 10**9),
)
# Activations, CUDA's context, workspaces; and what a cache cannot use of the rest.
_RESERVE_BYTES, _USABLE = 3 * 10**9, 0.97


@dataclass(frozen=True, slots=True)
class Precision:
    """What the linear layers are held as, and bits of a weight, scales included, and of the cache.

    Bits are those on a card.
    """

    weights: str
    weight_bits: float
    kv_bits: int

    @property
    def name(self) -> str:
        return f"{self.weights}, KV fp8" if self.kv_bits == 8 else self.weights


# What `paceline quantize` makes of four bits, with the native engine's cache for it. On a card the
# scales of mxfp4 are of 16 bits.
PACKED = {
    "w4a16": Precision("w4a16", 4.0 + 16 / 128, 16),
    "w4a8": Precision("w4a8", 4.0 + 16 / 128, 16),
    "mxfp4": Precision("mxfp4", 4.0 + 16 / 32, 16),
    "nvfp4": Precision("nvfp4", 4.0 + 8 / 16, 16),
}
# What a checkpoint could be.
PRECISIONS = (
    Precision("16 bit", 16.0, 16),
    Precision("fp8", 8.0, 8),
    PACKED["w4a16"],
    replace(PACKED["w4a8"], kv_bits=8),
)
# Weights and activations by format; {group} inputs share a scale.
_WORDS = {
    "fp8": ("FP8 (e4m3), a scale each", "FP8 (e4m3), {inputs}"),
    "fp8-token": ("FP8 (e4m3), a scale for each output", "FP8 (e4m3), a scale for each token"),
    "w4a16": ("4-bit integers, a scale for {group} inputs", "16 bit"),
    "w4a8": ("4-bit integers, a scale for {group} inputs", "FP8 (e4m3), a scale for each token"),
    "mxfp4": ("4-bit floats (e2m1), a power of two for {group} inputs", "16 bit"),
    "nvfp4": ("4-bit floats (e2m1), an e4m3 scale for {group} inputs", "16 bit"),
    "int4": ("4-bit integers, a scale for {group} inputs", "not FP8: only other programs run it"),
}


def describe(path: Path, *, context_tokens: int) -> dict[str, Any]:
    """Facts of a Hugging Face folder; `context_tokens` is the mean length of a live sequence.

    Raises
        CheckpointError  it has no config.json that can be read.
    """
    model = read_model(path)
    on_disk = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    kv_bits = 8 if model.is_kv_fp8 else 16
    return {
        "path": str(path),
        "parameters": model.linear_parameters + model.other_parameters,
        "linear_parameters": model.linear_parameters,
        "layers": model.num_layers,
        "precision": model.format or model.dtype,
        **_words(model),
        "group_len": model.group_len,
        "kv_cache": "fp8" if model.is_kv_fp8 else "16 bit",
        "weight_bytes": weight_bytes(model, model.linear_bits),
        "bytes_on_disk": on_disk,
        "kv_bytes_a_token": model.kv_bytes(kv_bits),
        "context_tokens": context_tokens,
        "fits": [_fit(model, card, context_tokens) for card in CARDS],
    }


def _words(model: Model) -> dict[str, str]:
    """What weights and activations are, in words."""
    if model.format is None:
        return {"weights": model.dtype, "activations": "not quantised"}
    inputs = "a fixed scale each" if model.has_fixed_inputs else "a scale for each token"
    weights, activations = _WORDS[model.format]
    return {
        "weights": weights.format(group=model.group_len),
        "activations": activations.format(inputs=inputs),
    }


def stored_precision(model: Model) -> Precision:
    """A checkpoint as an engine holds it that takes it as it is."""
    kv_bits = 8 if model.is_kv_fp8 else 16
    if model.format is None:
        return Precision("16 bit", 16.0, kv_bits)
    bits = PACKED["mxfp4"].weight_bits if model.format == "mxfp4" else model.linear_bits
    return Precision(model.format, bits, kv_bits)


def weight_bytes(model: Model, bits: float) -> int:
    """Bytes of the weights, with so many bits for each of the linear layers."""
    return int(model.linear_parameters * bits / 8) + 2 * model.other_parameters


def live_sequences(
    model: Model, memory_bytes: Sequence[int], precision: Precision, *, context_tokens: int
) -> int:
    """Sequences that live at once on cards that share one copy; 0 where the weights do not fit."""
    room = sum(size - _RESERVE_BYTES for size in memory_bytes)
    room -= weight_bytes(model, precision.weight_bits)
    return max(0, int(room * _USABLE // (model.kv_bytes(precision.kv_bits) * context_tokens)))


def _fit(model: Model, card: Card, context_tokens: int) -> dict[str, Any]:
    """Live sequences on one card, as it is and as it could be; 0 where the weights do not fit."""
    own = stored_precision(model)
    precisions = {own.name: own} | {one.name: one for one in PRECISIONS if one.name != own.name}
    live = {
        name: live_sequences(model, (card.memory_bytes,), one, context_tokens=context_tokens)
        for name, one in precisions.items()
    }
    return {"card": card.name, "memory_bytes": card.memory_bytes, "live_sequences": live}
