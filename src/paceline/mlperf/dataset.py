"""A benchmark's samples: load them, check them, describe them.

    load_dataset      a parquet of ours, or the published pickle, as compact arrays
    verify_dataset    what a benchmark asks of its dataset, rule by rule
    describe_dataset  how long prompts and references are

Opening a pickle runs whatever program it holds. One is opened only if its MD5 is the published
one, or if the user vouches for it.
"""

from __future__ import annotations

import gzip
import hashlib
import pickle
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from paceline.errors import DataError
from paceline.mlperf import rules
from paceline.mlperf.accuracy_log import Finding, TokenLists
from paceline.mlperf.columns import FRAME_SCHEMA
from paceline.mlperf.late import read_pickled_frame

__all__ = [
    "PUBLISHED_MD5",
    "Dataset",
    "describe_dataset",
    "load_dataset",
    "verify_dataset",
]

# Of open_orca_gpt4_tokenized_llama.sampled_24576.pkl, not compressed. The reference names no
# checksum; AMD's and Intel's submissions give this one independently.
PUBLISHED_MD5 = "5fe8be0a7ce5c3c9a028674fd24b00d5"

_GZIP, _PARQUET = b"\x1f\x8b", b"PAR1"
_BOS, _RESPONSE_TOKEN = 1, 29871
_ORIGINS = ("cot", "flan", "niv", "t0")
_PERCENTILES = (1, 10, 50, 90, 99)
_BUILD = "build it again: paceline data build --help"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Dataset:
    """A dataset of n samples; `prompts[i]` is the int32 array of token ids of sample i.

    `md5` is that of the content (a .gz is taken off first), `sha256` that of the file.

    Shapes
        prompts                      n lists
        references, origins          n texts; origins None if the file has none
        reference_lens               (n,) int64, in tokens; None if the file has none
    """

    path: Path
    num_samples: int
    md5: str
    sha256: str
    prompts: TokenLists
    references: list[str]
    origins: list[str] | None
    reference_lens: NDArray[np.int64] | None

    @property
    def prompt_lens(self) -> NDArray[np.int64]:
        """The length of each prompt in tokens, (n,) int64."""
        return self.prompts.lens


def load_dataset(path: Path, *, trust_pickle: bool = False) -> Dataset:
    """Load a .parquet, .pkl or .pkl.gz.

    Raises
        DataError  the file is missing or damaged, a pickle of unknown checksum, or a column is
                   missing, of another type, or holds nulls.
    """
    table, md5, sha256 = _read_table(path, trust_pickle=trust_pickle)
    return _dataset(path, table, md5=md5, sha256=sha256)


def verify_dataset(
    path: Path,
    *,
    expected_samples: int | None = None,
    trust_pickle: bool = False,
    benchmark: rules.Benchmark | None = None,
) -> list[Finding]:
    """Check what the benchmark (None: llama2-70b-99.9) asks of its dataset.

    Raises
        DataError  the file cannot be loaded at all.
    """
    rule = benchmark or rules.benchmark("llama2-70b-99.9")
    table, md5, sha256 = _read_table(path, trust_pickle=trust_pickle)
    dataset = _dataset(path, table, md5=md5, sha256=sha256)
    num, limit = dataset.num_samples, rule.prompt_limit
    absent = [name for name in FRAME_SCHEMA.names if name not in table.column_names]
    findings = [
        _md5(path, dataset.md5, rule.dataset_md5),
        _finding("columns", not absent, f"missing: {', '.join(absent) or 'none'}"),
    ]
    if expected_samples is not None:
        detail = f"{num} rows, {expected_samples} expected"
        findings.append(_finding("row-count", num == expected_samples, detail))
    ids = dataset.prompts.flat
    low, high = int(ids.min()), int(ids.max())
    known = low >= 0 and high < rule.vocabulary_size
    longest = int(dataset.prompt_lens.max())
    findings += [
        _finding("ids-in-vocabulary", known, f"{low} to {high} of 0 to {rule.vocabulary_size - 1}"),
        _finding("prompt-limit", longest < limit, f"longest {longest}, limit {limit} not included"),
        *(
            _stated_lens(path, table, name)
            for name in ("tok_input", "tok_output")
            if not {name, f"{name}_length"} & set(absent)
        ),
    ]
    return findings + (_llama_findings(dataset) if rule.is_mlperf else [])


def describe_dataset(dataset: Dataset) -> dict[str, object]:
    """Lengths in plain numbers: prompts and references in tokens, references in characters.

    Percentiles are over all samples, and the mean over each origin.
    """
    facts: dict[str, object] = {
        "path": str(dataset.path),
        "num_samples": dataset.num_samples,
        "md5": dataset.md5,
        "sha256": dataset.sha256,
    }
    measured = {
        "prompt_tokens": dataset.prompt_lens,
        "reference_tokens": dataset.reference_lens,
        "reference_chars": np.array([len(text) for text in dataset.references], np.int64),
    }
    for name, lens in measured.items():
        if lens is not None:
            facts[name] = _spread(lens)
            for origin in sorted(set(dataset.origins or ())):
                mask = np.array([own == origin for own in dataset.origins or ()])
                facts[f"{name}.{origin}"] = {"samples": int(mask.sum())} | _spread(lens[mask])
    return facts


def _dataset(path: Path, table: pa.Table, *, md5: str, sha256: str) -> Dataset:
    if table.num_rows == 0:
        raise DataError(f"{path}: the dataset has no rows.", hint=_BUILD)
    prompts = _token_lists(path, table, "tok_input")
    if (prompts.lens == 0).any():
        raise _wrong_column(path, "tok_input", f"is empty in row {int(np.argmin(prompts.lens))}")
    origins, lens = (
        _column(path, table, name, kind) if name in table.column_names else None
        for name, kind in (("origin", pa.string()), ("tok_output_length", pa.int64()))
    )
    return Dataset(
        path=path,
        num_samples=table.num_rows,
        md5=md5,
        sha256=sha256,
        prompts=prompts,
        references=_column(path, table, "output", pa.string()).to_pylist(),
        origins=None if origins is None else origins.to_pylist(),
        reference_lens=None if lens is None else _numbers(lens, np.int64),
    )


def _spread(lens: NDArray[np.int64]) -> dict[str, int | float]:
    # "nearest": a percentile is a length that a sample has.
    values = np.percentile(lens, _PERCENTILES, method="nearest").tolist()
    return {
        "min": int(lens.min()),
        **{f"p{p}": int(value) for p, value in zip(_PERCENTILES, values, strict=True)},
        "max": int(lens.max()),
        "mean": round(float(lens.mean()), 2),
    }


def _read_table(path: Path, *, trust_pickle: bool) -> tuple[pa.Table, str, str]:
    """Read a file as a table, with the MD5 of its content and the SHA-256 of the file."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: cannot read the dataset ({error.strerror}).",
            hint="name the dataset with --data; `paceline data build` makes one",
        ) from error
    sha256 = hashlib.sha256(data).hexdigest()
    if data.startswith(_PARQUET):
        try:
            # Without threads: a pool that Arrow still has at the end of a short command aborts it,
            # one time in twenty on a busy machine ("terminate called without an active exception").
            with pq.ParquetFile(pa.BufferReader(data), pre_buffer=False) as file:
                table = file.read(use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{path}: damaged parquet: {error}.", hint=_BUILD) from error
        return table, hashlib.md5(data, usedforsecurity=False).hexdigest(), sha256
    if data.startswith(_GZIP):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path}: damaged gzip: {error}.", hint="fetch it again") from error
    elif path.suffix != ".pkl":
        raise DataError(f"{path}: neither parquet nor pickle.", hint="name a .parquet or .pkl file")
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if md5 != PUBLISHED_MD5 and not trust_pickle:
        raise DataError(
            f"{path}: a pickle can run any program, and this one's MD5 is {md5}, not the "
            f"published {PUBLISHED_MD5}; it has not been opened.",
            hint="fetch it again, or add --trust-pickle if you know who made it",
        )
    return _unpickle(path, data), md5, sha256


def _unpickle(path: Path, data: bytes) -> pa.Table:
    damage = (
        pickle.UnpicklingError,
        EOFError,
        AttributeError,
        ImportError,
        IndexError,
        KeyError,
        TypeError,
        ValueError,
    )
    try:
        # Known by its checksum, or vouched for by the user.
        frame = read_pickled_frame(data)
    except damage as error:
        raise DataError(f"{path}: damaged pickle: {error}.", hint="fetch it again") from error
    if (kind := type(frame).__name__) != "DataFrame":
        raise DataError(f"{path}: holds a {kind}, not a frame.", hint="name another file")
    fields = [field for field in FRAME_SCHEMA if field.name in frame.columns]
    columns = {}
    for field in fields:
        try:
            columns[field.name] = pa.array(frame[field.name], type=field.type, from_pandas=True)
        except (pa.ArrowException, TypeError, OverflowError) as error:
            raise _wrong_column(path, field.name, f"is no {field.type}: {error}") from error
    return pa.table(columns)


def _wrong_column(path: Path, name: str, what: str) -> DataError:
    return DataError(f"{path}: column {name!r} {what}.", hint=_BUILD)


def _column(path: Path, table: pa.Table, name: str, kind: pa.DataType) -> pa.Array:
    """A column as one array of `kind`, without nulls."""
    if name not in table.column_names:
        there = ", ".join(table.column_names)
        raise _wrong_column(path, name, f"is missing; the file has {there}")
    column = table.column(name)
    of_kind = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    if pa.types.is_list(kind) != of_kind:
        raise _wrong_column(path, name, f"is {column.type}, not {kind}")
    try:
        cast = column if column.type == kind else column.cast(kind)
        array = cast.chunk(0) if cast.num_chunks == 1 else cast.combine_chunks()
    except pa.ArrowException as error:
        raise _wrong_column(path, name, f"is {column.type}, not {kind}: {error}") from error
    if array.null_count:
        raise _wrong_column(path, name, f"has {array.null_count} nulls")
    return array


def _token_lists(path: Path, table: pa.Table, name: str) -> TokenLists:
    array = _column(path, table, name, pa.list_(pa.int32()))
    flat = array.flatten()
    if flat.null_count:
        raise _wrong_column(path, name, f"has {flat.null_count} nulls among its ids")
    offsets = _numbers(array.offsets, np.int32).astype(np.int64)
    # A copy, for torch warns of arrays that it may not write to.
    return TokenLists(flat=_numbers(flat, np.int32).copy(), offsets=offsets - offsets[0])


def _numbers(array: pa.Array, dtype: type[np.generic]) -> NDArray[Any]:
    """Numbers without nulls, not copied. Arrow's own to_numpy imports pandas where there is one."""
    _, values = array.buffers()
    if not len(array):
        return np.empty(0, dtype)
    return np.frombuffer(
        values, dtype, count=len(array), offset=array.offset * array.type.byte_width
    )


def _finding(rule: str, passed: bool, detail: str) -> Finding:
    return Finding(rule=rule, passed=bool(passed), detail=detail)


def _md5(path: Path, md5: str, published: str | None) -> Finding:
    if path.suffix == ".parquet" or published is None:
        # Parquet files of the same rows differ in their bytes; the other rules stand in.
        return _finding("md5", True, f"{md5}; none is published for this form")
    return _finding("md5", md5 == published, f"{md5}, published {published}")


def _stated_lens(path: Path, table: pa.Table, name: str) -> Finding:
    lens = _token_lists(path, table, name).lens
    stated = _column(path, table, f"{name}_length", pa.int64())
    wrong = lens != _numbers(stated, np.int64)
    detail = _rows("state another length than they have", np.flatnonzero(wrong))
    return _finding(f"{name}_length", not wrong.any(), detail)


def _rows(what: str, rows: NDArray[np.int64]) -> str:
    shown = ", ".join(map(str, rows[:10].tolist()))
    return f"{len(rows)} rows {what}" + (f": {shown}" if shown else "")


def _llama_findings(dataset: Dataset) -> list[Finding]:
    """What processorca.py gives every prompt of the published set."""
    firsts = [ids[:2].tolist() == [_BOS, _BOS] for ids in dataset.prompts]
    lasts = dataset.prompts.flat[dataset.prompts.offsets[1:] - 1] == _RESPONSE_TOKEN
    share, rest = divmod(dataset.num_samples, len(_ORIGINS))
    in_order = rest == 0 and dataset.origins == [o for o in _ORIGINS for _ in range(share)]
    begin = _rows("do not begin with BOS twice", np.flatnonzero(~np.array(firsts)))
    end = _rows(f"do not end with {_RESPONSE_TOKEN}", np.flatnonzero(~lasts))
    order = f"equal runs of {', '.join(_ORIGINS)}: {'yes' if in_order else 'no'}"
    return [
        _finding("double-bos", all(firsts), begin),
        _finding("response-token", lasts.all(), end),
        _finding("origin-order", in_order, order),
    ]
