"""From LoadGen's logs to a verdict: VALID or INVALID, PASS or FAIL, and every reason.

VALID and INVALID are LoadGen's words on a performance test. PASS and FAIL are ours: of an
accuracy test, whether each figure holds its bounds and the log is whole; of a run, whether all
that was asked for is VALID and PASS. A run that did not get to its end is INCOMPLETE.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from paceline.config import RunConfig
from paceline.errors import DataError
from paceline.harness import audit
from paceline.harness.performance import finding, judge_performance, loadgen_errors
from paceline.mlperf import dataset, rules, test06
from paceline.mlperf.accuracy_log import Finding, read_accuracy
from paceline.mlperf.logs import read_detail
from paceline.mlperf.scoring import Score, accuracy_text, gate, score_accuracy
from paceline.mlperf.tokenizer import load_tokenizer
from paceline.rundir import RunDir, file_sha256, write_atomically

__all__ = [
    "judge",
    "judge_accuracy",
    "judge_compliance",
    "judge_performance",
    "notes_of",
    "power_of",
    "tests_of",
]

Progress = Callable[[int, int], None]

# What a latency-bound scenario has besides; performance.py says what they are.
_SERVER_FIGURES = (
    "scheduled_samples_per_second",
    "target_qps",
    "latency_percentile",
    "latency_limits_ms",
)


def _is_server_figure(name: str) -> bool:
    return name in _SERVER_FIGURES or name.startswith(("ttft_p", "tpot_p"))


def tests_of(mode: str) -> tuple[str, ...]:
    """The LoadGen tests of a run's mode, in the order they run."""
    several = {
        "all": ("performance", "accuracy"),
        "submission": ("performance", "accuracy", "compliance"),
    }
    return several.get(mode, (mode,))


def judge(config: RunConfig, results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The run's verdict from the results of its tests. `results` holds the tests that ended."""
    performance, accuracy = results.get("performance", {}), results.get("accuracy", {})
    findings = [found for result in results.values() for found in result["findings"]]
    complete = all(test in results for test in tests_of(config.mode))
    passed = complete and all(found["passed"] for found in findings)
    bounds = rules.benchmark(config.benchmark).accuracy
    return {
        "verdict": ("PASS" if passed else "FAIL") if complete else "INCOMPLETE",
        "result": performance.get("result"),
        "accuracy": accuracy.get("result"),
        "compliance": results.get("compliance", {}).get("result"),
        "tokens_per_second": performance.get("tokens_per_second"),
        "samples_per_second": performance.get("samples_per_second"),
        "duration_s": performance.get("duration_s"),
        **{name: performance[name] for name in performance if _is_server_figure(name)},
        **{metric: accuracy.get(metric) for metric in rules.ACCURACY_METRICS},
        "targets": {
            metric: {"low": bound.low, "high": bound.high} for metric, bound in bounds.items()
        },
        "benchmark": config.benchmark,
        "scenario": config.scenario,
        "round": config.round,
        "mode": config.mode,
        "engine": config.engine,
        "num_samples": config.num_samples,
        "is_submission": not config.shortfalls,
        "shortfalls": list(config.shortfalls),
        "findings": findings,
    }


def notes_of(tests: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What the engines say that a reader should know: retries, what is not exact, limits."""
    return [
        f"{name}: {note}"
        for name, test in tests.items()
        for note in test.get("engine", {}).get("notes", ())
    ]


def power_of(tests: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """Power of the performance test; of the accuracy or compliance test in a run without one."""
    named = [test for test in ("performance", "accuracy", "compliance") if test in tests]
    return {"test": named[0], **tests[named[0]]["power"]} if named else None


def judge_accuracy(
    config: RunConfig, run: RunDir, *, progress: Progress | None = None
) -> dict[str, Any]:
    """Score the accuracy log; writes accuracy.txt and scores.parquet beside it.

    Raises DataError when the log cannot be scored at all.
    """
    folder = run.test_dir("accuracy")
    path = folder / "mlperf_log_accuracy.json"
    loaded = dataset.load_dataset(config.data_path, trust_pickle=config.trust_pickle)
    rows = rules.sample_rows(loaded.num_samples, config.num_samples)
    benchmark = rules.benchmark(config.benchmark)
    if config.tokenizer_path is None:
        raise DataError(
            "The answers cannot be turned into text: the run has no tokenizer.",
            hint="--set data.tokenizer=PATH, or --model PATH",
        )
    score = score_accuracy(
        read_accuracy(path),
        [loaded.references[row] for row in rows],
        decode=load_tokenizer(config.tokenizer_path).decode_batch,
        num_samples=config.num_samples,
        vocab_size=benchmark.vocabulary_size,
        progress=progress,
    )
    write_atomically(folder / "accuracy.txt", accuracy_text(score, sha256=file_sha256(path)))
    _write_scores(folder / "scores.parquet", score)
    findings = [
        finding(f"accuracy.{f.rule}", f.passed, f.detail)
        for f in score.findings
        if isinstance(f, Finding)
    ]
    findings.append(loadgen_errors(read_detail(folder / "mlperf_log_detail.txt"), "accuracy"))
    figures = {metric: float(getattr(score, metric)) for metric in rules.ACCURACY_METRICS}
    findings += [
        finding(f"accuracy.{f.rule}", f.passed, f.detail) for f in gate(benchmark, figures)
    ]
    return {
        "result": "PASS" if all(found["passed"] for found in findings) else "FAIL",
        **figures,
        "findings": findings,
    }


def judge_compliance(config: RunConfig, run: RunDir) -> dict[str, Any]:
    """Verify TEST06 from its raw log; writes verify_accuracy.txt beside it."""
    folder = run.test_dir("compliance")
    num_samples = audit.samples_of(config.num_samples)
    result = test06.verify(
        read_accuracy(folder / "mlperf_log_accuracy.json"),
        scenario=config.scenario,
        eos_token_id=rules.benchmark(config.benchmark).eos_token_id,
        num_samples=num_samples,
    )
    write_atomically(folder / "verify_accuracy.txt", test06.verification_text(result))
    log = read_detail(folder / "mlperf_log_detail.txt")
    settings = {
        "effective_test_mode": "PerformanceOnly",
        "effective_accuracy_log_sampling_target": num_samples,
        "effective_sample_concatenate_permutation": False,
    }
    wrong = [f"{key} is {log.get(key)}" for key, value in settings.items() if log.get(key) != value]
    findings = [finding(f"compliance.{f.rule}", f.passed, f.detail) for f in result.findings]
    findings += [
        finding(
            "compliance.audit",
            not wrong,
            "; ".join(wrong) or "LoadGen ran with TEST06's settings",
        ),
        loadgen_errors(log, "compliance"),
    ]
    return {
        "result": "PASS" if all(found["passed"] for found in findings) else "FAIL",
        "findings": findings,
    }


def _arrow(values: NDArray[Any]) -> pa.Array:
    """Numbers as Arrow's; pa.array imports pandas where there is one."""
    data = pa.py_buffer(np.ascontiguousarray(values))
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, data])


def _write_scores(path: Path, score: Score) -> None:
    """Per-sample figures, for whoever wants to look at the worst ones."""
    columns = {
        "sample_index": score.sample_index,
        "rouge1": score.per_sample[:, 0],
        "rouge2": score.per_sample[:, 1],
        "rougeL": score.per_sample[:, 2],
        "num_tokens": score.num_tokens,
    }
    table = pa.table({name: _arrow(values) for name, values in columns.items()})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    write_atomically(path, buffer.getvalue())
