"""The bench counts what came back, not what was asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paceline.native import EngineConfig, NativeError
from paceline.native.bench import BenchOptions, run_bench
from paceline.native.bench_products import ProductOptions, run_products

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


def test_every_product_of_every_format_is_timed_beside_fp8() -> None:
    figures = run_products(
        ProductOptions(weights="random:tiny", tokens=(3, 5), seconds=0.01, device="cpu")
    )
    rows = figures["products"]
    assert len(rows) == 2 * 4 * 6
    assert {row["product"]: (row["n"], row["k"]) for row in rows} == {
        "qkv": (128, 64),
        "out": (64, 64),
        "gate_up": (256, 64),
        "down": (64, 128),
    }
    for row in rows:
        assert row["us"] > 0
        want = 2 * row["tokens"] * row["n"] * row["k"] / row["us"] / 1e6
        assert row["tflops"] == pytest.approx(want, abs=0.01)
        assert (row["format"] != "fp8-tensor") or row["against_fp8"] == 1


def test_a_product_of_no_known_format_is_refused() -> None:
    with pytest.raises(NativeError, match="int3 is no format"):
        run_products(ProductOptions(formats=("int3",), device="cpu"))
