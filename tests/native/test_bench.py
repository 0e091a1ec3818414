"""The bench counts what came back, not what was asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paceline.native import EngineConfig, NativeError
from paceline.native.bench import BenchOptions, run_bench

PAIRS = [[12, 9], [30, 4], [7, 20], [5, 1], [16, 11]]


def options(tmp_path: Path, **changes: object) -> BenchOptions:
    path = tmp_path / "lengths.json"
    path.write_text(json.dumps(PAIRS))
    engine = EngineConfig(
        weights="random:tiny", max_live_sequences=4, max_step_tokens=32, page_len=16, kv_pages=24
    )
    return BenchOptions(
        **{"engine": engine, "lengths": path, "num_samples": len(PAIRS), **changes}  # type: ignore[arg-type]
    )


def test_a_whole_run_returns_every_token_of_the_lengths(tmp_path: Path) -> None:
    figures = run_bench(options(tmp_path))
    assert figures["tokens_per_s"] == pytest.approx(45 / figures["duration_s"], rel=0.5)
    assert figures["sampled_tokens"] == 45
    assert figures["tokens"] == sum(prompt + output - 1 for prompt, output in PAIRS)


def test_a_steady_run_starts_with_the_cache_full(tmp_path: Path) -> None:
    figures = run_bench(options(tmp_path, steady_steps=18, num_layers=1))
    assert figures["weights"] == "random:tiny:layers=1"
    assert figures["steady_decodes"] > 1
    assert figures["tokens_per_s"] is None


def test_more_samples_than_lengths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NativeError, match="holds 5 pairs"):
        run_bench(options(tmp_path, num_samples=6))
