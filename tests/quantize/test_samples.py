"""What calibration may see: the rules' set or the demo's, and never what is evaluated."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from paceline.config import demo_dataset, embedded_model
from paceline.errors import DataError
from paceline.mlperf.frames import build_chat_frame, write_frame
from paceline.mlperf.tokenizer import load_tokenizer
from paceline.quantize import demo_calibration, load_calibration


def load(path: Path, evaluation: Path | None = None, limit: int | None = None):
    return load_calibration(path, evaluation=evaluation, limit=limit, trust_pickle=False)


def synthetic(folder: Path, num: int, *, first: int = 0) -> Path:
    """A set whose prompts are numbers, so that each differs."""
    records = [
        {"id": f"made.{i}", "system_prompt": "", "question": f"Number {i}?", "response": "Yes."}
        for i in range(first, first + num)
    ]
    path = folder / f"made-{num}-{first}.parquet"
    write_frame(
        build_chat_frame(records, lambda texts: [[ord(c) for c in text] for text in texts]), path
    )
    return path


def test_the_demos_calibration_set_is_what_its_text_builds_and_shares_no_prompt() -> None:
    lines = demo_calibration().with_suffix(".jsonl").read_text().splitlines()
    tokenizer = load_tokenizer(embedded_model())
    built = build_chat_frame([json.loads(line) for line in lines], tokenizer.encode_batch)
    shipped = pd.read_parquet(demo_calibration())
    assert shipped["input"].tolist() == built["input"].tolist()
    assert [list(x) for x in shipped["tok_input"]] == [list(x) for x in built["tok_input"]]
    assert not set(shipped["question"]) & set(pd.read_parquet(demo_dataset())["question"])
    assert len(shipped) == 72


def test_the_demos_set_is_taken_and_known() -> None:
    found = load(demo_calibration())
    assert found.is_verified
    assert len(found.prompts) == 72
    assert len(load(demo_calibration(), limit=5).prompts) == 5


def test_the_demos_evaluation_samples_are_refused() -> None:
    with pytest.raises(DataError, match="evaluation sample"):
        load(demo_dataset())


def test_one_evaluation_prompt_hidden_among_others_is_found(tmp_path: Path) -> None:
    mixed = pd.concat(
        [pd.read_parquet(demo_calibration()), pd.read_parquet(demo_dataset()).iloc[[17]]],
        ignore_index=True,
    )
    write_frame(mixed, tmp_path / "mixed.parquet")
    with pytest.raises(DataError, match="row 72 is an evaluation sample"):
        load(tmp_path / "mixed.parquet")


def test_a_set_as_large_as_an_evaluation_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1,000 samples of the calibration set"):
        load(synthetic(tmp_path, 1001))


def test_beside_the_evaluation_set_only_what_the_rules_draw_passes(tmp_path: Path) -> None:
    evaluation = synthetic(tmp_path, 1500)
    frame = pd.read_parquet(evaluation)
    # The reference's own line: the sampled frame, n=1000, random_state=12345.
    drawn = frame.sample(n=1000, random_state=12345).reset_index(drop=True)
    write_frame(drawn, tmp_path / "drawn.parquet")
    write_frame(frame.iloc[:1000], tmp_path / "first.parquet")
    assert load(tmp_path / "drawn.parquet", evaluation).is_verified
    with pytest.raises(DataError, match="not among those"):
        load(tmp_path / "first.parquet", evaluation)


def test_a_set_that_could_not_be_shown_to_be_the_rules_says_so(tmp_path: Path) -> None:
    found = load(synthetic(tmp_path, 12))
    assert not found.is_verified
    assert "NOT VERIFIED" in found.provenance
