"""How a frame of samples is made and written, and the demo's own frame."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from paceline.errors import DataError, EnvironmentProblem
from paceline.mlperf.columns import FRAME_SCHEMA

__all__ = [
    "build_chat_frame",
    "chat_prompt",
    "make_frame",
    "prepare_directory",
    "token_arrays",
    "write_frame",
]

_RECORD_KEYS = ("id", "system_prompt", "question", "response")
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_TEXTS_AT_ONCE = 1024

Encode = Callable[[Sequence[str]], Sequence[Sequence[int]]]


def chat_prompt(system_prompt: str, question: str) -> str:
    """SmolLM2's chat template, up to where the assistant speaks; no system part if empty."""
    system = f"<|im_start|>system\n{system_prompt}<|im_end|>\n" if system_prompt else ""
    return f"{system}<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


def build_chat_frame(
    records: Sequence[Mapping[str, object]],
    encode_batch: Encode,
    *,
    template: Callable[[str, str], str] = chat_prompt,
    prompt_limit_tokens: int = 512,
) -> pd.DataFrame:
    """The frame of a sample set written as chat records, in the records' order.

    A record has the strings `id` ("origin.number"), `system_prompt` (may be empty),
    `question` and `response`. `encode_batch` must add no special tokens of its own.

    Raises
        DataError  a record lacks a string, repeats an id, or has a prompt of
                   `prompt_limit_tokens` or more.
    """
    hint = "mend that line of the sample file"
    rows: list[tuple[str, ...]] = []
    for number, record in enumerate(records, 1):
        row = tuple(record.get(key) for key in _RECORD_KEYS)
        for key, value in zip(_RECORD_KEYS, row, strict=True):
            if not isinstance(value, str) or (not value and key != "system_prompt"):
                raise DataError(f"Record {number}: {key!r} is {value!r}, not a text.", hint=hint)
        rows.append(tuple(map(str, row)))
    ids, systems, questions, responses = zip(*rows, strict=True) if rows else ((), (), (), ())
    if len(set(ids)) < len(ids):
        twice = next(key for i, key in enumerate(ids) if key in ids[:i])
        raise DataError(f"Two records have the id {twice!r}.", hint=hint)
    prompts = [template(s, q) for s, q in zip(systems, questions, strict=True)]
    tok_input = token_arrays(prompts, encode_batch)
    for key, tokens in zip(ids, tok_input, strict=True):
        if len(tokens) >= prompt_limit_tokens:
            raise DataError(
                f"Record {key!r} has a prompt of {len(tokens)} tokens; the limit is "
                f"{prompt_limit_tokens - 1}.",
                hint=hint,
            )
    return make_frame(
        (ids, systems, questions, responses),
        prompts,
        tok_input=tok_input,
        tok_output=token_arrays(responses, encode_batch),
    )


def make_frame(
    raw: tuple[Sequence[str], Sequence[str | None], Sequence[str], Sequence[str]],
    prompts: Sequence[str],
    *,
    tok_input: Sequence[NDArray[np.int32]],
    tok_output: Sequence[NDArray[np.int32]],
) -> pd.DataFrame:
    """Put the ten columns together; `raw` is ids, system prompts, questions and responses.

    The origin is the part of the id before its first dot.
    """
    ids, systems, questions, responses = raw
    return pd.DataFrame(
        {
            "id": ids,
            "system_prompt": systems,
            "question": questions,
            "output": responses,
            "input": prompts,
            "tok_input": tok_input,
            "tok_output": tok_output,
            "origin": [key.split(".")[0] for key in ids],
            "tok_input_length": np.array([len(tokens) for tokens in tok_input], np.int64),
            "tok_output_length": np.array([len(tokens) for tokens in tok_output], np.int64),
        }
    )


def token_arrays(
    texts: Sequence[str], encode_batch: Encode, *, suffix: Sequence[int] = ()
) -> list[NDArray[np.int32]]:
    """Encode texts, some at a time, and append `suffix` to each."""
    arrays = []
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        for ids in encode_batch(texts[start : start + _TEXTS_AT_ONCE]):
            arrays.append(np.array([*ids, *suffix], np.int32))
    return arrays


def prepare_directory(directory: Path) -> None:
    """Make a directory and prove that it can be written, before the work and not after it.

    Raises
        DataError, EnvironmentProblem  it cannot.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=directory) as file:
            file.write(b"\0" * 4096)
    except OSError as error:
        raise _unwritable(directory, error) from error


def write_frame(frame: pd.DataFrame, path: Path) -> None:
    """Write a frame as parquet: whole, or not at all.

    Raises
        DataError           a column is missing or of the wrong type, or `path` cannot be written.
        EnvironmentProblem  the disk is full.
    """
    table = pa.Table.from_pandas(frame, schema=FRAME_SCHEMA, preserve_index=False)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            pq.write_table(table, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        partial.unlink(missing_ok=True)


def _unwritable(path: Path, error: OSError) -> DataError | EnvironmentProblem:
    what = f"{path}: cannot be written ({error.strerror or error})."
    if error.errno in _DISK_FULL:
        return EnvironmentProblem(what, hint="free some space, or name another disk with --out")
    return DataError(what, hint="name a directory that you may write with --out")
