"""The keys of a GGUF file, read in one pass over its header: a tokenizer's are a hundred thousand.

Weights are not read, nor is their list. The gguf package keeps every string of every array as
arrays of its own, which takes seconds for a vocabulary.

Source: ggml-org/ggml docs/gguf.md, sections "File Structure" and "gguf_metadata_value_type".
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Collection
from pathlib import Path
from typing import Any

__all__ = ["read_gguf_keys"]

_MAGIC = b"GGUF"
_VERSIONS = frozenset({2, 3})
_STRING, _ARRAY = 8, 9
# By ggml's number of the type: the letter that `struct` has for it.
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}


def read_gguf_keys(path: Path, wanted: Collection[str]) -> dict[str, Any]:
    """The values of the keys `wanted` that the file has; arrays as lists.

    Raises
        ValueError  it is no GGUF file of a version that is known, or it is damaged.
        OSError     it cannot be read.
    """
    with path.open("rb") as file:
        if not path.stat().st_size:
            raise ValueError("the file is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return _read_keys(data, wanted)
            except struct.error as error:
                raise ValueError(f"its header is cut short: {error}") from error


def _read_keys(data: mmap.mmap, wanted: Collection[str]) -> dict[str, Any]:
    if data[: len(_MAGIC)] != _MAGIC:
        raise ValueError("it does not begin with GGUF")
    header = _Header(data, len(_MAGIC))
    if (version := header.scalar("I")) not in _VERSIONS:
        raise ValueError(f"its version is {version}; read are {sorted(_VERSIONS)}")
    header.scalar("Q")  # the number of tensors
    found = {}
    for _ in range(header.scalar("Q")):
        key = header.string()
        value = header.value(header.scalar("I"))
        if key in wanted:
            found[key] = value
    return found


class _Header:
    """A place in the file that moves on with each value read."""

    def __init__(self, data: mmap.mmap, offset: int) -> None:
        self._data = data
        self._offset = offset

    def scalar(self, letter: str) -> Any:
        (value,) = struct.unpack_from(f"<{letter}", self._data, self._offset)
        self._offset += struct.calcsize(letter)
        return value

    def string(self) -> str:
        return self._strings(1)[0]

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            item_kind, count = self.scalar("I"), self.scalar("Q")
            return self._array(item_kind, count)
        return self.scalar(_letter(kind))

    def _array(self, kind: int, count: int) -> list[Any]:
        # Every item takes a byte or more: a count past the end is damage, not memory to ask for.
        if count > len(self._data) - self._offset:
            raise ValueError(f"it says that an array has {count} items, more than it has bytes")
        if kind == _STRING:
            return self._strings(count)
        if kind == _ARRAY:
            return [self.value(_ARRAY) for _ in range(count)]
        letter = _letter(kind)
        values = list(struct.unpack_from(f"<{count}{letter}", self._data, self._offset))
        self._offset += count * struct.calcsize(letter)
        return values

    def _strings(self, count: int) -> list[str]:
        data, offset, strings = self._data, self._offset, []
        read_len = struct.Struct("<Q").unpack_from
        for _ in range(count):
            start = offset + 8
            offset = start + read_len(data, offset)[0]
            if offset > len(data):
                raise ValueError("a string of its header goes on past its end")
            strings.append(data[start:offset].decode())
        self._offset = offset
        return strings


def _letter(kind: int) -> str:
    if kind not in _SCALARS:
        raise ValueError(f"it has a value of the unknown type {kind}")
    return _SCALARS[kind]
