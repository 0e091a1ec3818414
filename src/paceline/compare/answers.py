"""The answers of two accuracy runs, sample by sample.

Scores are those of the gate, and so is the judgement: b is held to its benchmark's bounds as a run
is, and each difference to what the bounds leave it. The difference of two mean scores comes with
its standard error over the samples, for greedy answers to open prompts part at the least change of
arithmetic, and a difference within the error says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from paceline.config import RunConfig, demo_dataset
from paceline.errors import DataError, InputError, RunDirError
from paceline.mlperf import dataset, rules
from paceline.mlperf.accuracy_log import read_accuracy
from paceline.mlperf.rouge import METRICS, rouge_scores
from paceline.mlperf.scoring import gate, mean_percent, tokens_per_sample
from paceline.mlperf.tokenizer import load_tokenizer
from paceline.rundir import RunDir

__all__ = ["Side", "compare_answers", "first_difference", "open_side"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Side:
    """One accuracy run. `answers[i]` are the ids that sample i got, `prompts[i]` what it asked."""

    path: Path
    config: RunConfig
    facts: dict[str, Any]
    dataset_sha256: str
    prompts: list[npt.NDArray[np.int32]]
    references: list[str]
    answers: list[npt.NDArray[np.int32]]

    @property
    def precision(self) -> str:
        """What it ran in, as its engine says."""
        stored = self.facts.get("checkpoint_format", "none")
        shown = [stored] if stored != "none" else []
        shown += [str(self.facts[name]) for name in ("quantization", "dtype") if name in self.facts]
        if "kv_dtype" in self.facts:
            shown.append(f"KV {self.facts['kv_dtype']}")
        return ", ".join(dict.fromkeys(x for x in shown if x != "none")) or "not stated"


def open_side(path: Path) -> Side:
    """Read a run's accuracy test.

    Raises
        RunDirError  it is no run directory, or has no finished accuracy test.
        DataError    its dataset is gone, or its log is damaged.
    """
    manifest = RunDir.open(path).read_manifest()
    test = manifest["tests"].get("accuracy", {})
    if test.get("status") != "COMPLETE":
        raise RunDirError(
            f"{path} has no finished accuracy test.", hint="paceline run --mode accuracy --out DIR"
        )
    config = RunConfig.from_json(manifest["config"])
    loaded = _dataset_of(path, config, manifest["dataset"]["sha256"])
    rows = rules.sample_rows(loaded.num_samples, config.num_samples)
    log = read_accuracy(path / "accuracy" / "mlperf_log_accuracy.json")
    found = {int(log.qsl_idx[i]): log.tokens[i] for i in range(len(log.qsl_idx))}
    lost = [index for index in range(len(rows)) if index not in found]
    if lost:
        raise RunDirError(f"{path} lacks the answer of sample {lost[0]}.", hint="run it again")
    return Side(
        path=path,
        config=config,
        facts=test.get("engine", {}),
        dataset_sha256=loaded.sha256,
        prompts=[loaded.prompts[row] for row in rows],
        references=[loaded.references[row] for row in rows],
        answers=[found[index] for index in range(len(rows))],
    )


def _dataset_of(path: Path, config: RunConfig, sha256: str) -> dataset.Dataset:
    """The dataset of a run: where it was then, or the demo's, which every paceline has."""
    place = config.data_path if config.data_path.is_file() else demo_dataset()
    loaded = dataset.load_dataset(place, trust_pickle=config.trust_pickle)
    if loaded.sha256 == sha256:
        return loaded
    if place != config.data_path:
        raise DataError(
            f"{config.data_path}, the dataset that {path} ran with, is gone.", hint="put it back"
        )
    raise RunDirError(
        f"{config.data_path} is not the dataset that {path} ran with.",
        hint="run again, or put the dataset back",
    )


def compare_answers(a: Side, b: Side) -> dict[str, Any]:
    """Both sides' scores, each against the other, and both against the gate of b's benchmark.

    Raises
        InputError  they did not answer the same samples.
    """
    if a.dataset_sha256 != b.dataset_sha256 or len(a.answers) != len(b.answers):
        raise InputError(
            f"{a.path} and {b.path} did not answer the same samples.",
            hint="run both with the same --data and run.num_samples",
        )
    texts = [_texts(side) for side in (a, b)]
    references = [text.strip() for text in a.references]
    scores = [rouge_scores(references, own) for own in texts]
    mutual = rouge_scores(texts[0], texts[1])
    parted = [first_difference(x, y) for x, y in zip(a.answers, b.answers, strict=True)]
    places = [place for place in parted if place is not None]
    num_samples = len(parted)
    figures = [_figures(side, own) for side, own in zip((a, b), scores, strict=True)]
    return {
        "samples": num_samples,
        "a": _facts(a, figures[0]),
        "b": _facts(b, figures[1]),
        "gate": _gate(rules.benchmark(b.config.benchmark), *figures),
        "difference": {
            metric: _difference(scores[1][:, column] - scores[0][:, column])
            for column, metric in enumerate(METRICS)
        },
        "against_each_other": {
            metric: round(100 * float(mutual[:, column].mean()), 4)
            for column, metric in enumerate(METRICS)
        },
        "identical": num_samples - len(places),
        "first_difference": {
            f"p{percent}": float(np.percentile(places, percent)) for percent in (10, 50, 90)
        }
        if places
        else None,
        "first_differences": parted,
    }


def first_difference(x: npt.ArrayLike, y: npt.ArrayLike) -> int | None:
    """The place of the first token in which two answers differ; None if they are the same."""
    left, right = np.asarray(x), np.asarray(y)
    shared = min(len(left), len(right))
    unequal = np.flatnonzero(left[:shared] != right[:shared])
    if len(unequal):
        return int(unequal[0])
    return None if len(left) == len(right) else shared


def _texts(side: Side) -> list[str]:
    if side.config.tokenizer_path is None:
        raise InputError(f"{side.path} has no tokenizer to read its answers with.")
    decoded = load_tokenizer(side.config.tokenizer_path).decode_batch(
        [answer.tolist() for answer in side.answers]
    )
    return [text.strip() for text in decoded]


def _figures(side: Side, scores: npt.NDArray[np.float64]) -> dict[str, float]:
    """The four figures of an accuracy run, as its own verdict has them."""
    tokens = sum(len(answer) for answer in side.answers)
    return {
        **{metric: mean_percent(scores[:, column]) for column, metric in enumerate(METRICS)},
        "tokens_per_sample": tokens_per_sample(tokens, len(side.answers)),
    }


def _gate(
    benchmark: rules.Benchmark, a: Mapping[str, float], b: Mapping[str, float]
) -> dict[str, Any]:
    """The bounds on each side, and on each difference b - a: from `least` to `most`, where
    there is one, b holds them."""
    findings = gate(benchmark, b)
    return {
        "benchmark": benchmark.name,
        "a": all(found.passed for found in gate(benchmark, a)),
        "b": all(found.passed for found in findings),
        "missed": [f"{found.rule} {found.detail}" for found in findings if not found.passed],
        "differences": {
            found.rule: {
                "mean": round(b[found.rule] - a[found.rule], 4),
                "least": round(bounds.low - a[found.rule], 4),
                "most": None if bounds.high is None else round(bounds.high - a[found.rule], 4),
                "passed": found.passed,
            }
            for found, bounds in zip(findings, benchmark.accuracy.values(), strict=True)
        },
    }


def _facts(side: Side, figures: Mapping[str, float]) -> dict[str, Any]:
    return {
        "run": str(side.path),
        "benchmark": side.config.benchmark,
        "engine": side.config.engine,
        "model": str(side.config.model_path),
        "precision": side.precision,
        **figures,
    }


def _difference(per_sample: npt.NDArray[np.float64]) -> dict[str, float]:
    """Mean of b - a, and its standard error, in the score's units (hundredths)."""
    spread = float(per_sample.std(ddof=1)) if len(per_sample) > 1 else 0.0
    return {
        "mean": round(100 * float(per_sample.mean()), 4),
        "standard_error": round(100 * spread / len(per_sample) ** 0.5, 4),
    }
