"""`paceline data`: from raw rows to a dataset, and what is wrong with one."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from support import Paceline

from paceline.config import demo_dataset
from paceline.mlperf.orca_bench import train_llama_tokenizer, write_raw_rows


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A folder with raw rows and a Llama tokenizer made for them."""
    words = write_raw_rows(tmp_path / "raw.parquet", 800)
    train_llama_tokenizer(words).save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_build_writes_two_datasets_and_says_where_every_row_went(
    paceline: Paceline, raw: Path
) -> None:
    outcome = paceline(
        *("data", "build", "raw.parquet", "--tokenizer", raw, "--out", "data", "--json"),
        *("--samples", 40, "--calibration", 10),
    )
    assert outcome.code == 0, outcome
    report = outcome.json
    frame = pd.read_parquet(raw / report["path"])
    calibration = pd.read_parquet(raw / report["calibration_path"])
    assert (len(frame), len(calibration)) == (40, 10)
    assert set(calibration["id"]) <= set(frame["id"])
    assert frame["origin"].tolist() == sorted(frame["origin"])
    assert sum(report["dropped"].values()) + sum(report["kept"].values()) == report["num_rows"]


def test_too_few_rows_is_one_error(paceline: Paceline, raw: Path) -> None:
    outcome = paceline("data", "build", "raw.parquet", "--tokenizer", raw, "--out", "data")
    assert outcome.code == 2
    assert "6144" in outcome.err
    assert "Traceback" not in outcome.err
    assert not list((raw / "data").glob("*.parquet"))


def test_a_raw_file_that_is_not_there_is_one_error(paceline: Paceline, raw: Path) -> None:
    outcome = paceline("data", "build", "none.parquet", "--tokenizer", raw, "--out", "data")
    assert outcome.code == 2
    assert "none.parquet" in outcome.err


def test_the_shipped_sample_set_verifies(paceline: Paceline) -> None:
    outcome = paceline("data", "verify", demo_dataset(), "--benchmark", "smollm2-135m-99", "--json")
    assert outcome.code == 0, outcome
    assert outcome.json["passed"]


def test_a_dataset_of_another_benchmark_fails_by_rule(paceline: Paceline) -> None:
    outcome = paceline("data", "verify", demo_dataset())
    assert outcome.code == 1
    assert "FAIL" in outcome.out
    assert "24576" in outcome.out


def test_a_pickle_of_unknown_checksum_is_not_opened(paceline: Paceline, tmp_path: Path) -> None:
    pd.read_parquet(demo_dataset()).to_pickle(tmp_path / "data.pkl")
    refused = paceline("data", "describe", "data.pkl")
    assert refused.code == 2
    assert "--trust-pickle" in refused.err
    assert paceline("data", "describe", "data.pkl", "--trust-pickle").code == 0


def test_describe_gives_the_percentiles_of_the_demo(paceline: Paceline) -> None:
    facts = paceline("data", "describe", "--json").json
    assert facts["num_samples"] == 96


def test_a_synthetic_dataset_has_the_real_lengths(paceline: Paceline, tmp_path: Path) -> None:
    assert paceline("data", "synthetic", "made", "--samples", 2000).code == 0
    frame = pd.read_parquet(tmp_path / "made/dataset.parquet")
    assert len(frame) == 2000
    assert 265 <= frame["tok_output_length"].mean() <= 323
    assert frame["tok_input_length"].max() < 1024
