"""Open Orca: from the raw parquet to the benchmark's samples, row for row as the reference.

The reference tokenises a million rows one by one, holds them all, filters, and draws
24,576. Here the file is read twice, a batch at a time:

    scan    which rows pass the filters, per origin; only row numbers are kept
    draw    the same pandas draws with the same seeds, on the row numbers
    gather  the texts of the drawn rows, tokenised

The draws depend only on how many rows remain of each origin, and so are the same.

Source: mlcommons/inference b66003e1, language/llama2-70b/processorca.py.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tokenizers import Tokenizer

from paceline.errors import DataError
from paceline.mlperf.frames import (
    build_chat_frame,
    make_frame,
    prepare_directory,
    token_arrays,
    write_frame,
)
from paceline.mlperf.orca_bench import (
    peak_memory_bytes,
    per_row_rows_per_second,
    train_llama_tokenizer,
    write_raw_rows,
)
from paceline.mlperf.orca_scan import (
    OrcaSpec,
    Scan,
    llama_prompt,
    raw_batches,
    raw_columns,
    scan_rows,
)
from paceline.mlperf.tokens import load_llama_tokenizer

__all__ = [
    "BuildReport",
    "OrcaSpec",
    "Scan",
    "bench_data_build",
    "build_chat_frame",
    "build_frame",
    "build_openorca",
    "scan_rows",
    "write_frame",
]

# 24,576 samples of 994,896 rows.
_ROWS_PER_SAMPLE = 40


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildReport:
    """What `build_openorca` made, and where every row of the raw file went."""

    path: Path
    calibration_path: Path
    num_rows: int
    dropped: dict[str, int]
    kept: dict[str, int]
    num_samples: int
    num_calibration: int

    def as_json(self) -> dict[str, object]:
        """The report in types that JSON has."""
        paths = {"path": str(self.path), "calibration_path": str(self.calibration_path)}
        return asdict(self) | paths


def build_openorca(
    parquet: Path,
    tokenizer_dir: Path,
    out_dir: Path,
    *,
    spec: OrcaSpec | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> BuildReport:
    """Write openorca_<samples>.parquet and openorca_calibration_<n>.parquet to `out_dir`.

    `progress` is called with (rows read, rows to read); the file is read twice.

    Raises
        DataError           the raw file is damaged or has too few rows; `out_dir` is no
                            directory that can be written.
        CheckpointError     `tokenizer_dir` has no sound tokenizer.json.
        EnvironmentProblem  the disk is full.
    """
    spec = spec or OrcaSpec()
    tokenizer = load_llama_tokenizer(tokenizer_dir)
    prepare_directory(out_dir)
    scan = scan_rows(parquet, tokenizer, spec=spec, progress=progress)
    frame = _gather(parquet, tokenizer, scan=scan, spec=spec, progress=progress)
    calibration = _draw(frame, spec.num_calibration, seed=spec.calibration_seed)
    report = BuildReport(
        path=out_dir / f"openorca_{len(frame)}.parquet",
        calibration_path=out_dir / f"openorca_calibration_{len(calibration)}.parquet",
        num_rows=scan.num_rows,
        dropped=scan.dropped,
        kept={origin: len(rows) for origin, rows in scan.rows_of_origin.items()},
        num_samples=len(frame),
        num_calibration=len(calibration),
    )
    write_frame(frame, report.path)
    write_frame(calibration, report.calibration_path)
    return report


def build_frame(
    parquet: Path,
    tokenizer: Tokenizer,
    *,
    spec: OrcaSpec | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """The benchmark's samples: the reference's columns and rows; token ids are int32 arrays.

    Raises
        DataError  as for `build_openorca`.
    """
    spec = spec or OrcaSpec()
    scan = scan_rows(parquet, tokenizer, spec=spec, progress=progress)
    return _gather(parquet, tokenizer, scan=scan, spec=spec, progress=progress)


def _draw(frame: pd.DataFrame, num: int, *, seed: int) -> pd.DataFrame:
    if num > len(frame):
        raise DataError(
            f"{num} calibration samples cannot be drawn from {len(frame)} samples.",
            hint="ask for fewer calibration samples",
        )
    return frame.sample(n=num, random_state=seed).reset_index(drop=True)


def _drawn_rows(scan: Scan, spec: OrcaSpec) -> NDArray[np.int64]:
    """The row numbers of the samples, in the order of the sample index."""
    sizes = {origin: len(rows) for origin, rows in scan.rows_of_origin.items()}
    drops = ", ".join(f"{name} {num}" for name, num in scan.dropped.items())
    where = f"Of {scan.num_rows} rows, dropped {drops}; kept {sizes or 'none'}"
    hint = "give the complete 1M-GPT4-Augmented.parquet, or ask for fewer samples"
    if not sizes or spec.num_samples % len(sizes):
        raise DataError(
            f"{spec.num_samples} samples cannot be drawn equally from {len(sizes)} origins. "
            f"{where}.",
            hint=hint,
        )
    share = spec.num_samples // len(sizes)
    drawn = []
    for origin, rows in scan.rows_of_origin.items():
        if len(rows) < share:
            raise DataError(
                f"Origin {origin!r} has {len(rows)} rows after the filters, but {share} are "
                f"needed for {spec.num_samples} samples. {where}.",
                hint=hint,
            )
        drawn.append(pd.Series(rows).sample(n=share, random_state=spec.seed).to_numpy())
    return np.concatenate(drawn)


def _gather(
    parquet: Path,
    tokenizer: Tokenizer,
    *,
    scan: Scan,
    spec: OrcaSpec,
    progress: Callable[[int, int], None] | None,
) -> pd.DataFrame:
    """Read the drawn rows again and tokenise them."""
    drawn = _drawn_rows(scan, spec)
    order = np.argsort(drawn)
    rising = drawn[order]
    parts = []
    for start, num_rows, batch in raw_batches(parquet, spec.batch_rows):
        low, high = np.searchsorted(rising, [start, start + len(batch)])
        parts.append(batch.take(pa.array(rising[low:high] - start)))
        if progress is not None:
            progress(num_rows + start + len(batch), 2 * num_rows)
    table = pa.Table.from_batches(parts).take(pa.array(np.argsort(order)))
    ids, systems, questions, responses = raw_columns(table)
    prompts = [llama_prompt(s, q) for s, q in zip(systems, questions, strict=True)]

    def encode(texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in tokenizer.encode_batch_fast(texts)]

    tok_input = token_arrays(prompts, encode, suffix=[spec.response_token])
    tok_output = token_arrays(responses, encode)
    raw = (ids, systems, questions, responses)
    frame = make_frame(raw, prompts, tok_input=tok_input, tok_output=tok_output)
    # The scan counted what was now tokenised.
    assert max(map(len, tok_input)) < spec.len_limit_tokens
    assert max(map(len, tok_output)) < spec.len_limit_tokens
    return frame


def bench_data_build(rows: int = 100_000, *, tokenizer_dir: Path | None = None) -> dict[str, float]:
    """Time `build_frame` on made-up rows against tokenising the same rows one by one.

    Words follow Zipf's law and lengths the log-normal of chat data; a tenth of the rows fails
    the filters that need no tokens. Without `tokenizer_dir`, a tokenizer of Llama's form is
    trained on the words. The build runs in a fresh process, whose peak memory is its own.

    Returns rows, rows_per_second, per_row_rows_per_second, speedup and peak_memory_bytes.
    """
    with TemporaryDirectory(prefix="paceline-bench-") as scratch:
        parquet = Path(scratch) / "raw.parquet"
        folder = tokenizer_dir or Path(scratch)
        words = write_raw_rows(parquet, rows)
        if tokenizer_dir is None:
            train_llama_tokenizer(words).save(str(folder / "tokenizer.json"))
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            before = pool.submit(per_row_rows_per_second, parquet, folder).result()
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            seconds, peak_bytes = pool.submit(_timed_build, parquet, folder).result()
            after = pool.submit(per_row_rows_per_second, parquet, folder).result()
    # Twice, for another job on the machine should slow down neither of the two ways alone.
    per_row = 2 / (1 / before + 1 / after)
    return {
        "rows": rows,
        "rows_per_second": rows / seconds,
        "per_row_rows_per_second": per_row,
        "speedup": rows / seconds / per_row,
        "peak_memory_bytes": peak_bytes,
    }


def _timed_build(parquet: Path, tokenizer_dir: Path) -> tuple[float, int]:
    """Seconds and peak bytes of a build that draws a fortieth of the rows, as the real one."""
    tokenizer = load_llama_tokenizer(tokenizer_dir)
    num_rows = pq.read_metadata(parquet).num_rows
    spec = OrcaSpec(num_samples=num_rows // _ROWS_PER_SAMPLE // 4 * 4)
    start = time.perf_counter()
    build_frame(parquet, tokenizer, spec=spec)
    return time.perf_counter() - start, peak_memory_bytes()
