"""mlperf_log_accuracy.json: what each logged sample answered, packed as token ids.

A full log has 24,576 entries and some 60 MB of hexadecimal digits; it is read in one pass,
a megabyte at a time, and only the ids are kept (30 MB). Entries are found by their braces,
so that a log written again by another JSON writer is read as well as LoadGen's own.

`TokenLists`, `Malformed` and `Finding` are here because this is the leaf that the room's
other modules import.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from paceline.errors import DataError

__all__ = ["AccuracyLog", "Finding", "Malformed", "TokenLists", "open_log", "read_accuracy"]

_CHUNK_BYTES = 1 << 20
# 1024 tokens of int64 are 16 KB of digits; what is a thousand times longer is no entry.
_ENTRY_BYTES_MAX = 1 << 24
_INT64_END = 1 << 63
_ENTRY = re.compile(
    rb'\{ "seq_id" : (\d+), "qsl_idx" : (\d+), "data" : "([0-9A-Fa-f]*)"'
    rb'(?:, "token_data" : "([0-9A-Fa-f]*)")?(?:, "token_count" : (-?\d+))? \}'
)
_PUNCTUATION = b" \t\r\n,[]"
_DTYPES = {"int32": "<i4", "int64": "<i8", "float32": "<f4"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One checked rule: its name, whether it holds, and the figures that say so."""

    rule: str
    passed: bool
    detail: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Malformed:
    """A place in a log that is not what LoadGen writes. Lines count from 1."""

    line_no: int
    detail: str


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TokenLists:
    """Lists of token ids of unequal length, packed end to end. Index, iterate, take len().

    Shapes
        flat     (sum of lengths,) int32
        offsets  (n + 1,) int64, rising from 0; list i is flat[offsets[i]:offsets[i + 1]]
    """

    flat: NDArray[np.int32]
    offsets: NDArray[np.int64]

    @property
    def lens(self) -> NDArray[np.int64]:
        """The length of each list, (n,) int64."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __iter__(self) -> Iterator[NDArray[np.int32]]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> NDArray[np.int32]:
        if not 0 <= index < len(self):
            raise IndexError(f"list {index} of {len(self)}")
        return self.flat[self.offsets[index] : self.offsets[index + 1]]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AccuracyLog:
    """The sound entries of an accuracy log, in the order of the file; n of them.

    Shapes
        qsl_idx, seq_id  (n,) int64
        tokens           n lists: what each sample answered
        token_data       n lists, the first token reported; None unless every entry has it
        token_count      (n,) int64, the count reported; None unless every entry has it
    `truncated` is set for a log cut in its middle for submission (two ends of 4096 bytes
    around "..."); `closed` when the array's last bracket is there, which a killed run lacks.
    """

    path: Path
    qsl_idx: NDArray[np.int64]
    seq_id: NDArray[np.int64]
    tokens: TokenLists
    token_data: TokenLists | None
    token_count: NDArray[np.int64] | None
    truncated: bool
    closed: bool
    malformed: tuple[Malformed, ...]

    def __len__(self) -> int:
        return len(self.qsl_idx)


def open_log(path: Path) -> BinaryIO:
    """Open one of LoadGen's files.

    Raises
        DataError  it cannot be opened.
    """
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(
            f"{path}: cannot read this LoadGen log ({error.strerror}).",
            hint="give the run directory of a test that LoadGen has finished",
        ) from error


def read_accuracy(path: Path, *, dtype: str = "int32") -> AccuracyLog:
    """Read mlperf_log_accuracy.json.

    `dtype` is what the harness put into the responses: "int32" (LoadGen submissions),
    "int64" (the reference's default) or "float32"; the ids are int32 afterwards. An entry
    that cannot be read so is in `malformed` and not in the arrays.

    Raises
        DataError   the file cannot be opened.
        ValueError  `dtype` is another.
    """
    if dtype not in _DTYPES:
        raise ValueError(f"dtype {dtype!r} is not one of {sorted(_DTYPES)}")
    reader = _Reader(np.dtype(_DTYPES[dtype]))
    with open_log(path) as file:
        for line_no, text, is_object in _pieces(file):
            reader.add(line_no, text, is_object=is_object)
    return reader.log(path)


def _pieces(file: BinaryIO) -> Iterator[tuple[int, bytes, bool]]:
    """Yield (line number, text, is it an object): entries, and what stands between them.

    An entry holds no braces of its own, so "{" to the next "}" is one entry whatever the
    line breaks are.
    """
    line_no, rest = 1, b""
    while chunk := file.read(_CHUNK_BYTES):
        buffer, start = rest + chunk, 0
        while (end := buffer.find(b"}", start)) >= 0:
            brace = buffer.find(b"{", start, end)
            middle = end + 1 if brace < 0 else brace
            yield line_no, buffer[start:middle], False
            line_no += buffer.count(b"\n", start, middle)
            if brace >= 0:
                yield line_no, buffer[brace : end + 1], True
                line_no += buffer.count(b"\n", brace, end)
            start = end + 1
        if len(buffer) - start > _ENTRY_BYTES_MAX:
            yield line_no, buffer[start:], False
            line_no += buffer.count(b"\n", start)
            start = len(buffer)
        rest = buffer[start:]
    yield line_no, rest, False


class _Reader:
    """Collects the entries of one accuracy log."""

    def __init__(self, dtype: np.dtype[np.generic]) -> None:
        self.dtype = dtype
        self.is_int32 = dtype == np.dtype("<i4")
        self.heads: list[tuple[int, int]] = []
        self.counts: list[int | None] = []
        self.tokens: list[NDArray[np.int32]] = []
        self.token_data: list[NDArray[np.int32] | None] = []
        self.malformed: list[Malformed] = []
        self.truncated = False
        self.last_text = b""

    def add(self, line_no: int, text: bytes, *, is_object: bool) -> None:
        """Take an entry, or what stands between two entries."""
        if not is_object:
            self.last_text = text.strip() or self.last_text
        if b"\n...\n" in text:
            self.truncated = True
            self._bad(line_no, 'cut in its middle ("...")')
        elif is_object:
            self._entry(line_no, text)
        elif stray := text.lstrip(_PUNCTUATION):
            line_no += text.count(b"\n", 0, len(text) - len(stray))
            self._bad(line_no, f"{len(stray)} bytes that belong to no entry")

    def log(self, path: Path) -> AccuracyLog:
        """What has been read, as arrays."""
        counts = [count for count in self.counts if count is not None]
        firsts = [first for first in self.token_data if first is not None]
        heads = np.array(self.heads, dtype=np.int64).reshape(-1, 2)
        num = len(heads)
        return AccuracyLog(
            path=path,
            qsl_idx=heads[:, 1].copy(),
            seq_id=heads[:, 0].copy(),
            tokens=_pack(self.tokens),
            token_data=_pack(firsts) if num and len(firsts) == num else None,
            token_count=np.array(counts, np.int64) if num and len(counts) == num else None,
            truncated=self.truncated,
            closed=self.last_text.endswith(b"]"),
            malformed=tuple(self.malformed),
        )

    def _bad(self, line_no: int, detail: str) -> None:
        self.malformed.append(Malformed(line_no=line_no, detail=detail))

    def _entry(self, line_no: int, text: bytes) -> None:
        try:
            seq_id, qsl_idx, data, first, count = _fields(text)
            tokens = self._ids(data)
            first_ids = None if first is None else self._ids(first)
        except (ValueError, RecursionError) as error:
            self._bad(line_no, str(error))
            return
        self.heads.append((seq_id, qsl_idx))
        self.counts.append(count)
        self.tokens.append(tokens)
        self.token_data.append(first_ids)

    def _ids(self, digits: str) -> NDArray[np.int32]:
        raw = bytes.fromhex(digits)
        if len(raw) % self.dtype.itemsize:
            raise ValueError(f"{len(raw)} bytes are not a whole number of {self.dtype.name} ids")
        ids = np.frombuffer(raw, self.dtype)
        if self.is_int32:
            return ids.view(np.int32)
        with np.errstate(invalid="ignore"):
            narrow = ids.astype(np.int32)
        if not np.array_equal(narrow, ids):
            raise ValueError(f"ids are no token ids: is the log of another type than {self.dtype}?")
        return narrow


def _fields(text: bytes) -> tuple[int, int, str, str | None, int | None]:
    """Split an entry into seq_id, qsl_idx, data, token_data and token_count.

    Raises
        ValueError  a field is missing, or of another type.
    """
    if match := _ENTRY.fullmatch(text):
        seq_id, qsl_idx, data, first, count = match.groups()
        fields = (
            int(seq_id),
            int(qsl_idx),
            data.decode("ascii"),
            None if first is None else first.decode("ascii"),
            None if count is None else int(count),
        )
    else:
        entry = json.loads(text.decode("utf-8", errors="replace"))
        fields = tuple(
            entry.get(key) for key in ("seq_id", "qsl_idx", "data", "token_data", "token_count")
        )
        _check_types(*fields)
    if max(abs(fields[0]), abs(fields[1]), abs(fields[4] or 0)) >= _INT64_END:
        raise ValueError("a number of more than 63 bits")
    return fields


def _check_types(
    seq_id: object, qsl_idx: object, data: object, first: object, count: object
) -> None:
    for key, value, kinds in (
        ("seq_id", seq_id, (int,)),
        ("qsl_idx", qsl_idx, (int,)),
        ("data", data, (str,)),
        ("token_data", first, (str, type(None))),
        ("token_count", count, (int, type(None))),
    ):
        if type(value) not in kinds:
            raise ValueError(f"{key} is missing or of the wrong type")


def _pack(lists: list[NDArray[np.int32]]) -> TokenLists:
    offsets = np.zeros(len(lists) + 1, dtype=np.int64)
    np.cumsum([len(ids) for ids in lists], out=offsets[1:])
    flat = np.concatenate(lists) if lists else np.empty(0, np.int32)
    return TokenLists(flat=flat, offsets=offsets)
