"""The accuracy test's samples: lengths, scores by origin and by length, the worst ones as texts.

Texts and origins come from the dataset, answers from the accuracy log through the tokenizer; both
may be elsewhere by the time somebody wants a report. Then the sentence in `missing` says so, and
what the scores alone can tell is told.

A run directory may be a stranger's, and opening a pickle runs what is in it: one of unknown
checksum is not opened here, whatever the run's config says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from paceline.errors import PacelineError
from paceline.mlperf import rules
from paceline.mlperf.dataset import Dataset, load_dataset
from paceline.mlperf.logs import read_accuracy
from paceline.mlperf.tokenizer import TextTokenizer, load_tokenizer
from paceline.report.rundata import RunData

__all__ = ["ROUGES", "Samples", "WorstSample", "read_samples"]

ROUGES = ("rouge1", "rouge2", "rougeL")
_WORST = 12
_TEXT_LEN_MAX = 6000


@dataclass(frozen=True, kw_only=True, slots=True)
class WorstSample:
    """A sample with a low score: what was asked, answered and expected, and the three scores."""

    sample_index: int
    origin: str
    scores: tuple[float, float, float]
    num_tokens: int
    prompt: str
    answer: str
    reference: str


@dataclass(kw_only=True, slots=True, eq=False)
class Samples:
    """What is known of n samples. Arrays are in the order of `frame`; None for what is not known.

    Shapes
        frame           n rows: sample_index, rouge1, rouge2, rougeL (in [0, 1]), num_tokens
        prompt_lens, reference_lens   (n,) int64, in tokens
        origins         n texts
    """

    frame: pd.DataFrame | None = None
    prompt_lens: NDArray[np.int64] | None = None
    reference_lens: NDArray[np.int64] | None = None
    origins: list[str] | None = None
    worst: list[WorstSample] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def read_samples(run: RunData) -> Samples:
    """All that can be known of the run's samples."""
    found = Samples()
    folder = run.path / "accuracy"
    path = folder / "scores.parquet"
    try:
        found.frame = pd.read_parquet(path)
        wanted = {"sample_index", "num_tokens", *ROUGES}
        if not wanted <= set(found.frame.columns):
            raise ValueError(f"it lacks {', '.join(sorted(wanted - set(found.frame.columns)))}")
    except (OSError, ValueError) as error:
        found.frame = None
        why = "there is no scores.parquet" if isinstance(error, FileNotFoundError) else str(error)
        found.missing.append(f"Scores of single samples are not known: {why}.")
    dataset, rows = _dataset(run, found)
    if dataset is None:
        return found
    lens = dataset.prompts.lens
    at = rows if found.frame is None else _rows_of(found.frame, rows, found)
    if at is None:
        return found
    found.prompt_lens = lens[at]
    if dataset.reference_lens is not None:
        found.reference_lens = dataset.reference_lens[at]
    if dataset.origins is not None and found.frame is not None:
        found.origins = [dataset.origins[row] for row in at.tolist()]
    if found.frame is not None:
        found.worst = _worst(run, found, dataset, rows)
    return found


def _dataset(run: RunData, found: Samples) -> tuple[Dataset | None, NDArray[np.int64]]:
    config = run.config
    none = np.zeros(0, dtype=np.int64)
    try:
        dataset = load_dataset(Path(config["data_path"]))
        rows = rules.sample_rows(dataset.num_samples, config["num_samples"])
    except PacelineError as error:
        found.missing.append(f"Prompts and references are not shown: {error.message}")
        return None, none
    known = (run.manifest.get("dataset") or {}).get("sha256")
    if known is not None and known != dataset.sha256:
        found.missing.append(
            "Prompts and references are not shown: the dataset has changed since the run."
        )
        return None, none
    return dataset, np.asarray(rows, dtype=np.int64)


def _rows_of(
    frame: pd.DataFrame, rows: NDArray[np.int64], found: Samples
) -> NDArray[np.int64] | None:
    """The dataset's row of each scored sample."""
    index = frame["sample_index"].to_numpy(dtype=np.int64)
    if len(index) and (index.min() < 0 or index.max() >= len(rows)):
        found.missing.append("scores.parquet names samples that the run did not have.")
        return None
    return np.asarray(rows[index], dtype=np.int64)


def _worst(
    run: RunData, found: Samples, dataset: Dataset, rows: NDArray[np.int64]
) -> list[WorstSample]:
    frame = found.frame
    assert frame is not None
    mean = frame[list(ROUGES)].mean(axis=1)
    order = mean.sort_values(kind="stable").index[:_WORST]
    chosen = frame.loc[order]
    tokenizer_path = run.config.get("tokenizer_path")
    if tokenizer_path is None:
        found.missing.append("The worst samples are not shown: the run has no tokenizer.")
        return []
    try:
        tokenizer = load_tokenizer(Path(tokenizer_path))
        answers = _answers(run, tokenizer, chosen["sample_index"].tolist())
    except PacelineError as error:
        found.missing.append(f"The worst samples are not shown: {error.message}")
        return []
    worst = []
    figures = chosen[["sample_index", *ROUGES, "num_tokens"]].to_numpy(dtype=np.float64).tolist()
    for number, rouge1, rouge2, rouge_l, num_tokens in figures:
        index = int(number)
        at = int(rows[index])
        prompt = tokenizer.decode_batch([dataset.prompts[at].tolist()])[0]
        worst.append(
            WorstSample(
                sample_index=index,
                origin=dataset.origins[at] if dataset.origins is not None else "",
                scores=(rouge1, rouge2, rouge_l),
                num_tokens=int(num_tokens),
                prompt=_cut(prompt),
                answer=_cut(answers.get(index, "")),
                reference=_cut(dataset.references[at]),
            )
        )
    return worst


def _answers(run: RunData, tokenizer: TextTokenizer, samples: Sequence[int]) -> dict[int, str]:
    """Texts of the first answers to these samples, without special tokens."""
    log = read_accuracy(run.path / "accuracy" / "mlperf_log_accuracy.json")
    wanted, found = set(samples), {}
    for entry, index in enumerate(log.qsl_idx.tolist()):
        if index in wanted and index not in found:
            ids = [token for token in log.tokens[entry].tolist() if token >= 0]
            found[index] = tokenizer.decode_batch([ids])[0].strip()
    return found


def _cut(text: str) -> str:
    text = text.strip()
    if len(text) <= _TEXT_LEN_MAX:
        return text
    return f"{text[:_TEXT_LEN_MAX]} ... ({len(text):,} characters)"
