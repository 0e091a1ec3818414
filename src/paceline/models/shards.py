"""safetensors files without PyTorch: what their header says, and whether it can be true.

Source
    github.com/huggingface/safetensors, README, "Format": eight bytes of length, a JSON header,
    then the tensors' bytes without gaps.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from paceline.errors import CheckpointError

__all__ = ["BITS", "StoredTensor", "bad_values", "read_header"]

BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "I64": 64, "I32": 32,
    "I16": 16, "I8": 8, "U8": 8, "BOOL": 8,
}  # fmt: skip
_HEADER_MAX = 100 << 20
_PIECE_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor's place in its file; `begin` and `end` count from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(path: Path) -> list[StoredTensor]:
    """A file's tensors, in the order of their bytes.

    Raises
        CheckpointError  the file is cut short, has bytes too many, or its header makes no sense.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _HEADER_MAX):
                raise _damaged(path, f"{size} bytes do not hold its header")
            header = json.loads(file.read(length))
    except OSError as error:
        raise CheckpointError(f"Cannot read {path}: {error.strerror}.") from error
    except (UnicodeDecodeError, ValueError) as error:
        raise _damaged(path, f"its header is no JSON ({error})") from error
    header.pop("__metadata__", None)
    try:
        tensors = [
            StoredTensor(
                name,
                entry["dtype"],
                tuple(entry["shape"]),
                8 + length + entry["data_offsets"][0],
                8 + length + entry["data_offsets"][1],
            )
            for name, entry in header.items()
        ]
        tensors.sort(key=lambda tensor: tensor.begin)
        _check_places(path, tensors, first=8 + length, size=size)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise _damaged(path, f"its header lacks or misstates {error}") from error
    return tensors


def _check_places(path: Path, tensors: list[StoredTensor], *, first: int, size: int) -> None:
    place = first
    for tensor in tensors:
        num_bytes = int(np.prod(tensor.shape, dtype=np.int64)) * BITS[tensor.dtype] // 8
        if tensor.begin != place or tensor.end - tensor.begin != num_bytes:
            raise _damaged(path, f"{tensor.name} does not lie where its header says")
        place = tensor.end
    if place != size:
        raise _damaged(path, f"it has {size} bytes and its header makes {place}")


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is damaged: {why}.", hint="fetch it again: paceline model fetch --help"
    )


def bad_values(path: Path, tensor: StoredTensor) -> int:
    """How many values are NaN or infinite; 0 for integers."""
    return sum(_bad(piece, tensor.dtype) for piece in _pieces(path, tensor))


def _pieces(path: Path, tensor: StoredTensor) -> Iterator[npt.NDArray[np.uint8]]:
    with path.open("rb") as file:
        file.seek(tensor.begin)
        left = tensor.end - tensor.begin
        while left:
            data = file.read(min(left, _PIECE_BYTES))
            left -= len(data)
            yield np.frombuffer(data, dtype=np.uint8)


def _bad(piece: npt.NDArray[np.uint8], dtype: str) -> int:
    """A float is no number where all bits of its exponent are set; e4m3 has only NaN so."""
    masks: dict[str, tuple[type, int]] = {
        "F64": (np.uint64, 0x7FF0 << 48),
        "F32": (np.uint32, 0x7F800000),
        "F16": (np.uint16, 0x7C00),
        "BF16": (np.uint16, 0x7F80),
        "F8_E4M3": (np.uint8, 0x7F),
        "F8_E5M2": (np.uint8, 0x7C),
    }
    if dtype not in masks:
        return 0
    kind, mask = masks[dtype]
    words: npt.NDArray[Any] = piece.view(kind)
    return int(np.count_nonzero((words & kind(mask)) == kind(mask)))
