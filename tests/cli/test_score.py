"""An accuracy log is scored wherever it came from, with the figures that a run gives itself."""

from __future__ import annotations

import shutil
from pathlib import Path

from support import Paceline

from paceline.config import demo_dataset, embedded_model


def test_a_log_is_scored_as_the_run_was(tmp_path: Path, paceline: Paceline) -> None:
    run = paceline("run", "--engine", "fake", "--mode", "accuracy", "--out", "run", "--json")
    assert run.code == 1, run
    (tmp_path / "theirs").mkdir()
    log = tmp_path / "theirs/mlperf_log_accuracy.json"
    shutil.copy(tmp_path / "run/accuracy/mlperf_log_accuracy.json", log)
    words = ("--data", demo_dataset(), "--tokenizer", embedded_model())
    words += ("--benchmark", "smollm2-135m-99")
    scored = paceline("score", "theirs", *words, "--json")
    assert scored.code == 1, scored
    for metric in ("rouge1", "rouge2", "rougeL", "tokens_per_sample"):
        assert scored.json[metric] == run.json[metric]
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:1] + lines[2:]))
    damaged = paceline("score", log, *words)
    assert damaged.code == 1, damaged
    assert "FAIL samples-present: 1 of 96 samples missing" in damaged.out
    assert "FAIL    rouge1" in damaged.out.replace("FAIL  ", "FAIL    ")
