"""A step plan as integer arrays on the host, and those arrays as tensors on the device.

All of a step's integers travel in one copy. Each array starts at a multiple of 16 elements,
so that a kernel sees the same alignment in every step and is compiled once.

Shape letters (this file): those of `model.StepTensors`, and
    U   page table entries that change
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from paceline.native.attention import Decodes
from paceline.native.model import StepTensors
from paceline.native.prefill import TILE, Chunks
from paceline.native.schedule import Scheduled, StepPlan

__all__ = ["StepArrays", "build_arrays", "idle_arrays", "pack", "packed_len", "unpack"]

Ints = NDArray[np.int32]
_ALIGN = 16


@dataclass(frozen=True, slots=True)
class StepArrays:
    """One step's inputs on the host; names and shapes are those of the tensors they become."""

    token_T: Ints
    source_T: Ints
    position_T: Ints
    place_T: Ints
    slot_D: Ints
    context_len_D: Ints
    chunk_slot_B: Ints
    chunk_row_B: Ints
    chunk_start_B: Ints
    chunk_len_B: Ints
    tile_chunk_J: Ints
    tile_first_J: Ints
    sample_row_R: Ints
    sample_slot_R: Ints
    bans_R: Ints
    page_index_U: Ints
    page_U: Ints

    def columns(self) -> list[Ints]:
        return [getattr(self, item.name) for item in fields(self)]

    def lengths(self) -> tuple[int, ...]:
        return tuple(len(column) for column in self.columns())


def _ints(values: Any) -> Ints:
    return np.asarray(values, dtype=np.int32)


def build_arrays(
    plan: StepPlan, *, page_len: int, num_slots: int, pages_per_slot: int
) -> StepArrays:
    """The arrays of `plan`: decodes first, then chunks, in the plan's order."""
    decodes, chunks = plan.decodes, plan.prefills
    starts = [item.start for item in decodes]
    slots = [item.slot for item in decodes]
    places = [
        item.sequence.pages[item.start // page_len] * page_len + item.start % page_len
        for item in decodes
    ]
    tokens: list[Ints] = [np.zeros(len(decodes), np.int32)]
    positions, place_parts = [_ints(starts)], [_ints(places)]
    rows, row = [], 0
    for item in chunks:
        position = np.arange(item.start, item.start + item.num_tokens, dtype=np.int32)
        tokens.append(_ints(item.sequence.token_ids[item.start : item.start + item.num_tokens]))
        positions.append(position)
        pages = _ints(item.sequence.pages)
        place_parts.append(pages[position // page_len] * page_len + position % page_len)
        rows.append(row)
        row += item.num_tokens
    sampled = plan.sampled
    # A slot given up and taken again within a step keeps only its last owner's entry.
    table = {slot * pages_per_slot + index: page for slot, index, page in plan.new_pages}
    return StepArrays(
        token_T=np.concatenate(tokens),
        source_T=_ints(slots + [num_slots] * row),
        position_T=np.concatenate(positions),
        place_T=np.concatenate(place_parts),
        slot_D=_ints(slots),
        context_len_D=_ints(starts) + np.int32(1),
        chunk_slot_B=_ints([item.slot for item in chunks]),
        chunk_row_B=_ints(rows),
        chunk_start_B=_ints([item.start for item in chunks]),
        chunk_len_B=_ints([item.num_tokens for item in chunks]),
        **_tiles([item.num_tokens for item in chunks]),
        sample_row_R=_sample_rows(len(decodes), chunks),
        sample_slot_R=_ints([item.slot for item in sampled]),
        bans_R=_ints([item.bans_eos for item in sampled]),
        page_index_U=_ints(list(table.keys())),
        page_U=_ints(list(table.values())),
    )


def _tiles(lengths: list[int]) -> dict[str, Ints]:
    pairs = [(i, first) for i, length in enumerate(lengths) for first in range(0, length, TILE)]
    return {
        "tile_chunk_J": _ints([chunk for chunk, _ in pairs]),
        "tile_first_J": _ints([first for _, first in pairs]),
    }


def _sample_rows(num_decodes: int, chunks: list[Scheduled]) -> Ints:
    rows, row = list(range(num_decodes)), num_decodes
    for item in chunks:
        row += item.num_tokens
        if item.samples:
            rows.append(row - 1)
    return _ints(rows)


def idle_arrays(
    num_decodes: int, chunk_lens: list[int], *, num_slots: int, context_len: int = 0
) -> StepArrays:
    """A step of padding: every row reads and writes the trash page and the spare slot."""
    num_tokens = num_decodes + sum(chunk_lens)
    num_sampled = num_decodes + len(chunk_lens)
    zeros = np.zeros
    ends = np.cumsum(_ints(chunk_lens), dtype=np.int32)
    return StepArrays(
        token_T=zeros(num_tokens, np.int32),
        source_T=np.full(num_tokens, num_slots, np.int32),
        position_T=zeros(num_tokens, np.int32),
        place_T=zeros(num_tokens, np.int32),
        slot_D=np.full(num_decodes, num_slots, np.int32),
        context_len_D=np.full(num_decodes, context_len, np.int32),
        chunk_slot_B=np.full(len(chunk_lens), num_slots, np.int32),
        chunk_row_B=ends - _ints(chunk_lens),
        chunk_start_B=zeros(len(chunk_lens), np.int32),
        chunk_len_B=_ints(chunk_lens),
        **_tiles(chunk_lens),
        sample_row_R=np.arange(num_sampled, dtype=np.int32),
        sample_slot_R=np.full(num_sampled, num_slots, np.int32),
        bans_R=zeros(num_sampled, np.int32),
        page_index_U=zeros(0, np.int32),
        page_U=zeros(0, np.int32),
    )


def _room(length: int) -> int:
    return -(-length // _ALIGN) * _ALIGN


def packed_len(arrays: StepArrays) -> int:
    return sum(_room(length) for length in arrays.lengths())


def pack(arrays: StepArrays, out: Tensor) -> None:
    """Write the arrays one after another into `out` (int32, on the host)."""
    target, start = out.numpy(), 0
    for column in arrays.columns():
        target[start : start + len(column)] = column
        start += _room(len(column))


def unpack(packed: Tensor, lengths: tuple[int, ...]) -> tuple[StepTensors, Tensor, Tensor]:
    """Views of a packed buffer: the step, and the page table's changes (index_U, page_U)."""
    parts: dict[str, Tensor] = {}
    start = 0
    for item, length in zip(fields(StepArrays), lengths, strict=True):
        parts[item.name] = packed[start : start + length]
        start += _room(length)
    tensors = StepTensors(
        token_T=parts["token_T"],
        source_T=parts["source_T"],
        position_T=parts["position_T"],
        place_T=parts["place_T"],
        num_decodes=parts["slot_D"].shape[0],
        decodes=Decodes(parts["slot_D"], parts["context_len_D"]),
        chunks=Chunks(
            slot_B=parts["chunk_slot_B"],
            row_B=parts["chunk_row_B"],
            start_B=parts["chunk_start_B"],
            len_B=parts["chunk_len_B"],
            chunk_J=parts["tile_chunk_J"],
            first_J=parts["tile_first_J"],
        ),
        sample_row_R=parts["sample_row_R"],
        sample_slot_R=parts["sample_slot_R"],
        bans_R=parts["bans_R"],
    )
    return tensors, parts["page_index_U"], parts["page_U"]
