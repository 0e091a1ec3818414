"""The embedded model in every format through the whole command line; minutes, so marked slow."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from support import Paceline

from paceline.config import demo_dataset, embedded_model
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
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["fp8", "w4a16"])
def test_another_loader_reads_the_folder_alone_and_answers_alike(
    paceline: Paceline, tmp_path: Path, name: str
) -> None:
    """transformers with compressed-tensors, as vLLM would: it has OUT and nothing of ours."""
    calibrate = CASES[name][-2:]
    assert paceline("quantize", "embedded", "out", "--format", name, *calibrate).code == 0
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    from paceline.engines.reference import load_model

    folder = tmp_path / "out"
    config = AutoConfig.from_pretrained(folder)
    assert config.architectures == ["LlamaForCausalLM"]
    assert config.rope_parameters["rope_theta"] == 100_000
    shape = (config.vocab_size, config.hidden_size, config.head_dim, config.num_key_value_heads)
    assert shape == (49_152, 576, 64, 3)
    assert config.tie_word_embeddings
    assert config.dtype == torch.bfloat16
    assert GenerationConfig.from_pretrained(folder).eos_token_id == 2
    samples = pd.read_parquet(demo_dataset())
    prompts = [list(map(int, ids)) for ids in samples["tok_input"]]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer(samples["input"].tolist()).input_ids == prompts
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ours, _ = load_model(folder, "float32", "cpu", torch)
    for prompt in prompts[:6]:
        ids = torch.tensor([prompt])
        limits = {"max_new_tokens": 32, "do_sample": False, "eos_token_id": 2, "pad_token_id": 2}
        with torch.inference_mode():
            answers = [model.generate(ids, **limits)[0].tolist() for model in (theirs, ours)]
        assert answers[0] == answers[1]
        assert len(answers[0]) > len(prompt) + 1


@pytest.mark.slow
def test_the_tokenizer_that_is_written_is_the_models(paceline: Paceline, tmp_path: Path) -> None:
    assert paceline("quantize", "embedded", "out", "--format", "fp8-token").code == 0
    from transformers import AutoTokenizer

    text = "<|im_start|>user\nHello, it's 2026!  Two  spaces.<|im_end|>\n"
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert theirs(text).input_ids == load_tokenizer(embedded_model()).encode_batch([text])[0]
    assert theirs.eos_token_id == 2
