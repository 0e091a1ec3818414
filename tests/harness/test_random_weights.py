"""A rehearsal with random weights has the benchmark's lengths, though none ends an answer."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from support import Paceline

from paceline import config
from paceline.errors import InputError
from paceline.harness.run import run
from paceline.harness.samples import read_samples
from paceline.mlperf import rules, synthetic

WORDS = (
    "engine.name=native",
    "engine.native.device=cpu",
    "model.path=random:smollm2-135m:layers=1",
    "run.num_samples=12",
    "run.mode=accuracy",
)


def test_each_answer_has_the_length_that_is_expected_of_its_sample(tmp_path: Path) -> None:
    settings = config.read_settings(None, WORDS)
    resolved = config.resolve(settings, None)
    samples = read_samples(resolved)
    told: list[dict[str, Any]] = []
    run(resolved, tmp_path / "run", settings=settings, recipe=None, observer=told.append)

    rows = (tmp_path / "run" / "accuracy" / "journal.jsonl").read_text().splitlines()
    answers = [answer for row in rows for answer in json.loads(row.split(maxsplit=1)[1])]
    lens = {index: len(ids) // 8 for index, _, ids in answers}
    assert lens == dict(enumerate(samples.expected_lens))
    assert len(set(samples.expected_lens)) > 3
    assert any("random weights end no answer" in str(event.get("text")) for event in told)


def test_a_forecast_and_a_search_say_that_lengths_are_fixed(
    paceline: Paceline, tmp_path: Path
) -> None:
    words = [word for text in WORDS[:4] for word in ("--set", text)]
    words += ["--mode", "performance"]
    told = paceline("forecast", *words, "--seconds", 2)
    assert re.search(r"^  samples +random weights end no answer", told.out, re.M), told
    searched = paceline(
        "tune", *words, "--budget", "1m", "--trials", 1, "--trial-seconds", 1, "--out", "t"
    )
    assert searched.err.count("random weights end no answer") == 1, searched


def test_a_model_is_asked_for_answers_as_long_as_it_makes_them() -> None:
    benchmark = rules.benchmark("smollm2-135m-99")
    samples = read_samples(config.resolve(config.read_settings(None, WORDS[:2]), None))
    limits = {(one.max_new_tokens, one.min_new_tokens) for one in samples.requests(range(9))}
    assert limits == {(benchmark.max_new_tokens, benchmark.min_new_tokens)}


def test_scores_need_a_tokenizer_which_random_weights_do_not_have(tmp_path: Path) -> None:
    data = synthetic.build_synthetic(tmp_path, 8)
    words = ("run.benchmark=llama2-70b-99", f"data.path={data}", *WORDS[:2], "run.num_samples=8")
    model = "model.path=random:llama2-70b"
    with pytest.raises(InputError, match="Random weights have no tokenizer") as caught:
        config.resolve(config.read_settings(None, (*words, model)), None)
    assert "--mode performance" in str(caught.value.hint)
    performance = config.read_settings(None, (*words, model, "run.mode=performance"))
    assert config.resolve(performance, None).tokenizer_path is None
    own = config.read_settings(None, (*words, model, f"data.tokenizer={tmp_path}"))
    assert config.resolve(own, None).tokenizer_path == tmp_path
