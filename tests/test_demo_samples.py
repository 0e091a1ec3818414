"""The sample set that ships: whole, within its limits, and built from the text beside it."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from paceline.config import demo_dataset, embedded_model
from paceline.mlperf import rules
from paceline.mlperf.frames import build_chat_frame
from paceline.mlperf.tokenizer import load_tokenizer

RULE = rules.benchmark("smollm2-135m-99")


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return pd.read_parquet(demo_dataset())


def test_the_shipped_frame_is_what_its_text_builds(frame: pd.DataFrame) -> None:
    lines = demo_dataset().with_suffix(".jsonl").read_text().splitlines()
    tokenizer = load_tokenizer(embedded_model())
    built = build_chat_frame([json.loads(line) for line in lines], tokenizer.encode_batch)
    assert list(built.columns) == list(frame.columns)
    for column in frame.columns:
        assert [list(x) if column.startswith("tok_") and "length" not in column else x
                for x in frame[column]] == [
            list(x) if column.startswith("tok_") and "length" not in column else x
            for x in built[column]
        ]  # fmt: skip


def test_the_set_is_whole_and_within_the_benchmarks_limits(frame: pd.DataFrame) -> None:
    assert len(frame) == RULE.num_samples == 96
    assert (frame["tok_input_length"] < RULE.prompt_limit).all()
    assert (frame["tok_input_length"] > 400).sum() == 3
    assert frame["origin"].value_counts().to_dict() == {
        "summary": 28, "qa": 28, "rewrite": 14, "reason": 26,
    }  # fmt: skip
    assert frame["question"].is_unique
    assert frame["id"].is_unique
