"""The harness's own ceiling: a whole run through the real LoadGen with an engine that is free.

The figure must stand far above any engine's, or the harness would be part of the result. It
counts from the moment LoadGen issues its query to the last answer: the time that LoadGen divides
by, read from LoadGen's own log.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from paceline import config
from paceline.harness import loadgen
from paceline.harness.run import run
from paceline.mlperf import rules, synthetic

__all__ = ["bench_harness"]


def bench_harness(num_samples: int, output_len: int) -> dict[str, Any]:
    """Offline performance test of `num_samples` answers of `output_len` tokens each."""
    with tempfile.TemporaryDirectory(prefix="paceline-bench-") as scratch:
        data = synthetic.build_synthetic(Path(scratch) / "data", num_samples)
        settings = config.read_settings(
            None,
            (
                "run.mode=performance",
                f"run.num_samples={num_samples}",
                "loadgen.min_duration_ms=0",
                f"engine.fake.output_len={output_len}",
            ),
            flags={
                "run.benchmark": next(reversed(rules.ROUNDS["v6.1"].benchmarks)),
                "engine.name": "fake",
                "data.path": str(data),
            },
        )
        resolved = config.resolve(settings, loadgen.wheel().round)
        verdict = run(
            resolved,
            Path(scratch) / "run",
            settings=settings,
            recipe=None,
            observer=lambda _: None,
        )
    return {
        "tokens_per_second": verdict["tokens_per_second"],
        "samples_per_second": verdict["samples_per_second"],
        "seconds": verdict["duration_s"],
        "samples": num_samples,
        "tokens_per_sample": output_len,
        "loadgen": loadgen.wheel().version,
    }
