"""The embedded model in every format through the whole command line; minutes, so marked slow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import Paceline

from paceline.config import embedded_model
from paceline.mlperf.tokenizer import load_tokenizer

CASES = {
    "fp8": ["--kv", "fp8", "--calibrate", "demo"],
    "fp8-token": [],
    "w4a16": ["--calibrate", "demo"],
    "w4a8": ["--calibrate", "demo"],
    "mxfp4": [],
    "nvfp4": [],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_format_runs_on_both_engines_and_reads_well(
    paceline: Paceline, tmp_path: Path, name: str
) -> None:
    outcome = paceline("quantize", "embedded", "out", "--format", name, *CASES[name])
    assert outcome.code == 0, outcome
    assert paceline("model", "verify", "out").code == 0
    for engine in ("native", "reference"):
        outcome = paceline(
            *("run", "--mode", "accuracy", "--engine", engine, "--model", "out", "--out", engine),
            *("--set", "run.num_samples=8", "--json"),
            timeout_s=1800,
        )
        assert outcome.code in (0, 1), outcome
        # Eight answers are few; a format read wrongly scores next to nothing.
        assert outcome.json["rouge1"] > 25, outcome.json
        made = json.loads((tmp_path / engine / "manifest.json").read_text())
        assert made["tests"]["accuracy"]["engine"]["checkpoint_format"] == name
        assert "calibration.md" in made["model"]["files"]


@pytest.mark.slow
def test_the_tokenizer_that_is_written_is_the_models(paceline: Paceline, tmp_path: Path) -> None:
    assert paceline("quantize", "embedded", "out", "--format", "fp8-token").code == 0
    from transformers import AutoTokenizer

    text = "<|im_start|>user\nHello, it's 2026!  Two  spaces.<|im_end|>\n"
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert theirs(text).input_ids == load_tokenizer(embedded_model()).encode_batch([text])[0]
    assert theirs.eos_token_id == 2
