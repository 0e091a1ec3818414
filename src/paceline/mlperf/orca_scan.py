"""Which rows of raw Open Orca the benchmark keeps: the reference's filters, row by row.

Every filter looks at one row only, so the rows that remain, and their order, do not depend
on the order of the filters; those that need no tokens come first. Only row numbers are kept.

A null system prompt counts as empty. A row with a null id, question or response cannot pass
through the reference at all; here it is dropped and counted.

Source: mlcommons/inference b66003e1, language/llama2-70b/processorca.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tokenizers import Tokenizer

from paceline.errors import DataError
from paceline.mlperf.tokens import TokenCounter

__all__ = ["OrcaSpec", "Scan", "llama_prompt", "raw_batches", "raw_columns", "scan_rows"]

_RAW_COLUMNS = ("id", "system_prompt", "question", "response")
_WITH_SYSTEM = "<s>[INST] <<SYS>>\n{}\n<</SYS>>\n\n{} [/INST]"
_WITHOUT_SYSTEM = "<s>[INST] {} [/INST]"
# Typographic quotes and dashes are English; every other character beyond ASCII is not.
_FOREIGN = re.compile("[^\x00-\x7f\u2019\u2013\u201c\u201d\u2014]")
_BAD_PROMPT_ORIGINS = ("niv", "t0")
_BAD_PROMPTS = (
    "",
    "You are an AI assistant that follows instruction extremely well. Help as much as you can.",
    *(
        f"You are an AI assistant. Provide a detailed answer so user don{apostrophe}t need to "
        "search outside to understand the answer."
        for apostrophe in "\u2019'"
    ),
    (
        "User will you give you a task with some instruction. Your job is follow the "
        "instructions as faithfully as you can. While answering think step-by-step and "
        "justify your answer."
    ),
    "Explain how you used the definition to come up with the answer.",
)
_FAULTS = "not_text not_english bad_prompt output_too_long output_too_short input_too_long"
# Row number, origin, prompt, response.
_Row = tuple[int, str, str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class OrcaSpec:
    """The benchmark's figures, as processorca.py has them; tests take smaller ones.

    A prompt (with `response_token`) and a response have fewer than `len_limit_tokens`, a
    response at least `output_len_min_tokens`. Llama begins every answer with
    `response_token`, so it ends the prompt: a first token that costs nothing would flatter
    the time to first token.
    """

    num_samples: int = 24576
    num_calibration: int = 1000
    len_limit_tokens: int = 1024
    output_len_min_tokens: int = 3
    seed: int = 1337
    calibration_seed: int = 12345
    response_token: int = 29871
    batch_rows: int = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class Scan:
    """What passed the filters: row numbers of the raw file per origin, rising.

    `dropped` counts each row once, under the first of its faults in this module's order.
    """

    num_rows: int
    rows_of_origin: dict[str, NDArray[np.int64]]
    dropped: dict[str, int]


def scan_rows(
    parquet: Path,
    tokenizer: Tokenizer,
    *,
    spec: OrcaSpec | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Scan:
    """Apply the filters to each row.

    Raises
        DataError  the file is missing, damaged, or lacks a column.
    """
    spec = spec or OrcaSpec()
    counter = TokenCounter(tokenizer)
    dropped = dict.fromkeys(_FAULTS.split(), 0)
    parts: dict[str, list[int]] = {}
    total = 0
    for start, num_rows, batch in raw_batches(parquet, spec.batch_rows):
        kept = _filter_texts(batch, start, dropped)
        kept = _filter_lens(kept, counter, spec=spec, dropped=dropped)
        for row, origin, _, _ in kept:
            parts.setdefault(origin, []).append(row)
        total = num_rows
        if progress is not None:
            progress(start + len(batch), 2 * num_rows)
    # pandas groups by origin in alphabetical order.
    rows_of_origin = {origin: np.array(parts[origin], np.int64) for origin in sorted(parts)}
    return Scan(num_rows=total, rows_of_origin=rows_of_origin, dropped=dropped)


def raw_batches(parquet: Path, batch_rows: int) -> Iterator[tuple[int, int, pa.RecordBatch]]:
    """Yield (first row, rows in all, batch of the raw columns).

    Raises
        DataError  as for `scan_rows`.
    """
    hint = "give 1M-GPT4-Augmented.parquet of the Hugging Face dataset Open-Orca/OpenOrca"
    try:
        # Without pre_buffer a row group is read as it is used, not whole.
        with pq.ParquetFile(parquet, pre_buffer=False, buffer_size=1 << 20) as file:
            schema = file.schema_arrow
            for name in _RAW_COLUMNS:
                index = schema.get_field_index(name)
                kind = schema.field(index).type if index >= 0 else None
                if kind is None or not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                    what = "is missing" if kind is None else f"is {kind}, not string"
                    raise DataError(f"{parquet}: column {name!r} {what}.", hint=hint)
            start = 0
            for batch in file.iter_batches(batch_rows, columns=list(_RAW_COLUMNS)):
                yield start, file.metadata.num_rows, batch
                start += len(batch)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{parquet}: cannot read the raw dataset: {error}.", hint=hint) from error


def raw_columns(batch: pa.RecordBatch | pa.Table) -> list[list[Any]]:
    """Ids, system prompts, questions and responses, as Python strings or None."""
    return [batch.column(name).to_pylist() for name in _RAW_COLUMNS]


def _origin(key: str) -> str:
    return key.split(".")[0]


def llama_prompt(system_prompt: str | None, question: str) -> str:
    """Llama 2's chat template as the reference writes it, with a literal "<s>" in front."""
    if system_prompt:
        return _WITH_SYSTEM.format(system_prompt, question)
    return _WITHOUT_SYSTEM.format(question)


def _is_english(text: str) -> bool:
    return text.isascii() or _FOREIGN.search(text) is None


def _filter_texts(batch: pa.RecordBatch, start: int, dropped: dict[str, int]) -> list[_Row]:
    """Apply the filters that need no tokens."""
    kept: list[_Row] = []
    rows = zip(*raw_columns(batch), strict=True)
    for row, (key, system, question, response) in enumerate(rows, start):
        if key is None or question is None or response is None:
            dropped["not_text"] += 1
        elif not all(map(_is_english, (system or "", question, response))):
            dropped["not_english"] += 1
        elif (origin := _origin(key)) in _BAD_PROMPT_ORIGINS and system in _BAD_PROMPTS:
            dropped["bad_prompt"] += 1
        else:
            kept.append((row, origin, llama_prompt(system, question), response))
    return kept


def _filter_lens(
    kept: list[_Row], counter: TokenCounter, *, spec: OrcaSpec, dropped: dict[str, int]
) -> list[_Row]:
    """Apply the filters on the number of tokens, the response's first: it is the shorter."""
    low, limit = spec.output_len_min_tokens, spec.len_limit_tokens
    lens = counter.lens_for_limits([row[3] for row in kept], low=low, limit=limit)
    dropped["output_too_long"] += sum(num >= limit for num in lens)
    dropped["output_too_short"] += sum(num < min(low, limit) for num in lens)
    kept = [row for row, num in zip(kept, lens, strict=True) if low <= num < limit]
    # The response token that will be appended counts.
    lens = counter.lens_for_limits([row[2] for row in kept], low=0, limit=limit - 1)
    dropped["input_too_long"] += sum(num >= limit - 1 for num in lens)
    return [row for row, num in zip(kept, lens, strict=True) if num < limit - 1]
