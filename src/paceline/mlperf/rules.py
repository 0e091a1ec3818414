"""The rule book: rounds, benchmarks, targets, counts and limits, each with its source.

A rule stands here once. The harness reads counts and seeds from it, scoring reads targets,
the checker reads all of it, and docs/rules.md is written from it. Every constant of the
benchmark names the file it was read from; `tests/mlperf/test_rules.py` holds the values to a
record of those files and to the LoadGen wheel itself.

    Round       what one MLPerf Inference round fixes: seeds, wheels, benchmarks, layout
    Benchmark   what one benchmark fixes: samples, durations, limits, accuracy targets
    ROUNDS, BENCHMARKS   by name; `benchmark(name)` and `round_rules(name)` look up with an error
                         that names the nearest one

Two benchmarks, `smollm2-135m-99` and `-99.9`, are paceline's own: the embedded model on the
sample set that ships with it, so that the whole path can be tried, with a meaningful accuracy
gate, on a laptop. They are not MLPerf benchmarks and never make a submission.

No engine, no LoadGen and no torch here: facts and pure functions.
"""

from __future__ import annotations

import difflib

from paceline.errors import InputError
from paceline.mlperf.rule_kinds import Benchmark, Bounds, Round, Seeds, Source, TokenLatency

__all__ = [
    "ACCURACY_METRICS",
    "BENCHMARKS",
    "MLPERF_CONF",
    "ROUNDS",
    "Benchmark",
    "Bounds",
    "Round",
    "Seeds",
    "Source",
    "TokenLatency",
    "benchmark",
    "benchmark_in_round",
    "round_rules",
    "sample_rows",
]


ACCURACY_METRICS = ("rouge1", "rouge2", "rougeL", "tokens_per_sample")

_INFERENCE = ("mlcommons/inference", "b66003e10e2db4b8c36a448b0545ec90fcc6e9e9")
_CHECKER = "tools/submission/submission_checker/constants.py"
_README = "language/llama2-70b/README.md"


def _checker(symbol: str) -> Source:
    return Source(*_INFERENCE, _CHECKER, symbol)


MLPERF_CONF = Source(*_INFERENCE, "loadgen/mlperf.conf", "llama2-70b")


def _seeds(qsl: int, sample_index: int, schedule: int, *, version: str) -> Seeds:
    return Seeds(
        qsl=qsl,
        sample_index=sample_index,
        schedule=schedule,
        source=_checker(f'MODEL_CONFIG["{version}"]["seeds"]'),
    )


_BOTH = ("llama2-70b-99", "llama2-70b-99.9")

ROUNDS: dict[str, Round] = {
    "v5.1": Round(
        name="v5.1",
        wheel="5.1.2",
        seeds=_seeds(
            1780908523862526354, 14771362308971278857, 18209322760996052031, version="v5.1"
        ),
        benchmarks=_BOTH,
        layout="v5",
        source=_checker('MODEL_CONFIG["v5.1"]["models"]'),
    ),
    "v6.0": Round(
        name="v6.0",
        wheel="6.0.15",
        seeds=_seeds(
            2465351861681999779, 14276810075590677512, 3936089224930324775, version="v6.0"
        ),
        benchmarks=_BOTH,
        layout="v6",
        source=_checker('MODEL_CONFIG["v6.0"]["models"]'),
    ),
    "v6.1": Round(
        name="v6.1",
        wheel="6.0.17",
        seeds=_seeds(
            2085463073848966840, 2747215439041700203, 16159082839903944936, version="v6.1"
        ),
        benchmarks=("llama2-70b-99.9",),
        layout="v6",
        source=_checker('MODEL_CONFIG["v6.1"]["models"]'),
    ),
}


def _targets(
    reference: dict[str, float], fraction: float, *, source: Source, limits: Source
) -> dict[str, Bounds]:
    """Bounds from a reference run: ROUGE at least `fraction` of it, tokens within 10 %."""
    bounds = {
        metric: Bounds(low=reference[metric] * fraction, source=source)
        for metric in ("rouge1", "rouge2", "rougeL")
    }
    tokens = reference["tokens_per_sample"]
    bounds["tokens_per_sample"] = Bounds(low=tokens * 0.9, high=tokens * 1.1, source=limits)
    return bounds


_LLAMA2_REFERENCE = {
    "rouge1": 44.4312,
    "rouge2": 22.0352,
    "rougeL": 28.6162,
    "tokens_per_sample": 294.45,
}


def _llama2(name: str, fraction: float) -> Benchmark:
    return Benchmark(
        name=name,
        loadgen_model="llama2-70b",
        is_mlperf=True,
        num_samples=24576,
        performance_samples=24576,
        min_duration_ms=600_000,
        prompt_limit=1024,
        max_new_tokens=1024,
        min_new_tokens=1,
        eos_token_id=2,
        vocabulary_size=32000,
        dataset_md5="5fe8be0a7ce5c3c9a028674fd24b00d5",
        scenarios=("Offline", "Server", "Interactive"),
        accuracy=_targets(
            _LLAMA2_REFERENCE,
            fraction,
            source=Source(*_INFERENCE, _README, "Accuracy Target"),
            limits=_checker("accuracy-target, accuracy-upper-limit"),
        ),
        latency={
            "Server": TokenLatency(ttft_ms=2000, tpot_ms=200, source=MLPERF_CONF),
            "Interactive": TokenLatency(
                ttft_ms=450,
                tpot_ms=40,
                source=Source(*_INFERENCE, "loadgen/mlperf.conf", "llama2-70b-interactive"),
            ),
        },
        source=_checker("performance-sample-count, TEST_DURATION_MS, OFFLINE_MIN_SPQ"),
    )


# Scores of the float32 `reference` engine on the shipped sample set, on an x86-64 CPU, torch
# 2.13.0, 2026-11-29: `paceline run --benchmark smollm2-135m-99.9 --mode accuracy --engine
# reference`; the last one is 1,621 tokens over 96 samples. docs/accuracy.md tells how.
_SMOLLM2_REFERENCE = {
    "rouge1": 100.0,
    "rouge2": 100.0,
    "rougeL": 100.0,
    "tokens_per_sample": 1621 / 96,
}
_PACELINE = Source("paceline", "docs/accuracy.md", "docs/accuracy.md", "The embedded benchmark")
_SCENARIOS = Source("paceline", "docs/scenarios.md", "docs/scenarios.md", "Limits of the demo")


def _demo_limits(*, ttft_ms: int, tpot_ms: int) -> TokenLatency:
    """A 90th percentile, which 81 queries show with two over the limit: a 99th would take a
    laptop's processor a quarter of an hour for each rate it tries."""
    return TokenLatency(
        ttft_ms=ttft_ms, tpot_ms=tpot_ms, percentile=90, enough_queries=81, source=_SCENARIOS
    )


def _smollm2(name: str, fraction: float) -> Benchmark:
    return Benchmark(
        name=name,
        loadgen_model="llama2-70b",
        is_mlperf=False,
        num_samples=96,
        performance_samples=16,
        # Sized by its count alone: the demo ends VALID on a laptop and on a fast GPU alike.
        min_duration_ms=0,
        prompt_limit=512,
        max_new_tokens=32,
        min_new_tokens=1,
        eos_token_id=2,
        vocabulary_size=49152,
        dataset_md5=None,
        scenarios=("Offline", "Server", "Interactive"),
        accuracy=_targets(_SMOLLM2_REFERENCE, fraction, source=_PACELINE, limits=_PACELINE),
        latency={
            "Server": _demo_limits(ttft_ms=3000, tpot_ms=500),
            "Interactive": _demo_limits(ttft_ms=1500, tpot_ms=250),
        },
        source=_PACELINE,
    )


BENCHMARKS: dict[str, Benchmark] = {
    "llama2-70b-99": _llama2("llama2-70b-99", 0.99),
    "llama2-70b-99.9": _llama2("llama2-70b-99.9", 0.999),
    "smollm2-135m-99": _smollm2("smollm2-135m-99", 0.99),
    "smollm2-135m-99.9": _smollm2("smollm2-135m-99.9", 0.999),
}


def _nearest(name: str, names: dict[str, Benchmark] | dict[str, Round]) -> str:
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.4)
    known = ", ".join(names)
    return f"did you mean '{close[0]}'? known: {known}" if close else f"known: {known}"


def benchmark(name: str) -> Benchmark:
    """The benchmark called `name`. Raises InputError with the nearest name."""
    if name not in BENCHMARKS:
        raise InputError(f"There is no benchmark '{name}'.", hint=_nearest(name, BENCHMARKS))
    return BENCHMARKS[name]


def round_rules(name: str) -> Round:
    """The round called `name`. Raises InputError with the nearest name."""
    if name not in ROUNDS:
        raise InputError(f"There is no round '{name}'.", hint=_nearest(name, ROUNDS))
    return ROUNDS[name]


def benchmark_in_round(name: str, round_name: str) -> Benchmark:
    """The benchmark, when the round lists it.

    paceline's own benchmarks belong to every round. Raises InputError for an MLPerf benchmark
    that the round's checker refuses, with the round's list.
    """
    rules, found = round_rules(round_name), benchmark(name)
    if found.is_mlperf and name not in rules.benchmarks:
        raise InputError(
            f"Round {round_name} has no '{name}': its checker lists only "
            f"{', '.join(rules.benchmarks)} ({rules.source}).",
            hint=f"--benchmark {rules.benchmarks[-1]}, whose gate is the stricter one, or another "
            "--round",
        )
    return found


def sample_rows(num_rows: int, num_samples: int) -> list[int]:
    """The rows of a dataset that a run of `num_samples` uses: all, or evenly spaced ones.

    A short run stays spread over the origins, which lie one after another. Raises InputError
    when the dataset has fewer rows than the run wants.
    """
    if num_rows < num_samples:
        raise InputError(
            f"The dataset has {num_rows} samples, the run wants {num_samples}.",
            hint="the benchmark's own dataset, or --set run.num_samples=N",
        )
    return [row * num_rows // num_samples for row in range(num_samples)]
