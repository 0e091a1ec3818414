"""What a checkpoint is, in numbers, and what of it fits on which card.

A card holds the weights, a reserve for activations and the runtime, and a cache; the cache's room
divided by what one live sequence takes is how many sequences can live at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paceline.models.layout import Model, read_model

__all__ = ["CARDS", "PRECISIONS", "Card", "describe", "live_sequences", "weight_bytes"]


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
# Bits of a linear weight, scales included, and of a cached number, by precision.
PRECISIONS = {
    "16 bit": (16.0, 16),
    "fp8, KV fp8": (8.0, 8),
    "w4a16": (4.125, 16),
    "w4a8, KV fp8": (4.125, 8),
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
        "precision": model.layout or model.dtype,
        "group_len": model.group_len,
        "kv_cache": "fp8" if model.is_kv_fp8 else "16 bit",
        "weight_bytes": weight_bytes(model, model.linear_bits),
        "bytes_on_disk": on_disk,
        "kv_bytes_a_token": model.kv_bytes(kv_bits),
        "context_tokens": context_tokens,
        "fits": [_fit(model, card, context_tokens) for card in CARDS],
    }


def weight_bytes(model: Model, bits: float) -> int:
    """Bytes of the weights, with so many bits for each of the linear layers."""
    return int(model.linear_parameters * bits / 8) + 2 * model.other_parameters


def live_sequences(
    model: Model, memory_bytes: Sequence[int], precision: str, *, context_tokens: int
) -> int:
    """Sequences that live at once on cards that share one copy; 0 where the weights do not fit."""
    bits, kv_bits = PRECISIONS[precision]
    room = sum(size - _RESERVE_BYTES for size in memory_bytes) - weight_bytes(model, bits)
    return max(0, int(room * _USABLE // (model.kv_bytes(kv_bits) * context_tokens)))


def _fit(model: Model, card: Card, context_tokens: int) -> dict[str, Any]:
    """Live sequences on one card, by precision; 0 where the weights do not fit."""
    live = {
        name: live_sequences(model, (card.memory_bytes,), name, context_tokens=context_tokens)
        for name in PRECISIONS
    }
    return {"card": card.name, "memory_bytes": card.memory_bytes, "live_sequences": live}
