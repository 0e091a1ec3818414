"""Checkpoints as Hugging Face directories, through the whole command line, on both engines."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support import Paceline

from paceline.config import embedded_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two small layers with the embedded model's vocabulary; it talks nonsense."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    config = LlamaConfig(
        vocab_size=49152, max_position_embeddings=1024, eos_token_id=2, **shape, **heads
    )
    folder = tmp_path_factory.mktemp("tiny")
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def run(tiny: Path, folder: Path, engine: str, *more: object) -> dict[int, str]:
    """The answers of twelve samples, from a run in folder/ENGINE."""
    words = ("run", "--mode", "accuracy", "--model", tiny, "--engine", engine, "--out", engine)
    sizes = ("--set", f"data.tokenizer={embedded_model()}", "--set", "run.num_samples=12", *more)
    done = subprocess.run(
        [sys.executable, "-m", "paceline", *map(str, words + sizes)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1, done.stderr  # it ran, and nonsense fails the gate
    log = json.loads((folder / engine / "accuracy/mlperf_log_accuracy.json").read_text())
    return {entry["qsl_idx"]: entry["data"] for entry in log}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> dict[int, str]:
    """What one copy of the native engine on one rank answers."""
    return run(tiny, tmp_path_factory.mktemp("alone"), "native")


def test_both_engines_read_a_directory_and_agree(
    tiny: Path, alone: dict[int, str], tmp_path: Path
) -> None:
    assert run(tiny, tmp_path, "reference") == alone


@pytest.mark.parametrize("way", ["data_parallel", "tensor_parallel"])
def test_two_copies_or_two_ranks_give_the_tokens_of_one(
    tiny: Path, alone: dict[int, str], tmp_path: Path, way: str
) -> None:
    assert run(tiny, tmp_path, "native", "--set", f"engine.native.{way}=2") == alone


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_reference_runs_in_the_precision_it_is_told(
    tiny: Path, tmp_path: Path, dtype: str
) -> None:
    few = ("--set", "run.num_samples=2")
    run(tiny, tmp_path, "reference", *few, "--set", f"engine.reference.dtype={dtype}")
    made = json.loads((tmp_path / "reference/manifest.json").read_text())
    assert made["tests"]["accuracy"]["engine"]["dtype"] == dtype


def test_a_shard_cut_short_is_one_error(paceline: Paceline, tiny: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in tiny.iterdir():
        content = file.read_bytes()
        cut = len(content) // 2 if file.suffix == ".safetensors" else len(content)
        (broken / file.name).write_bytes(content[:cut])
    for engine in ("reference", "native"):
        outcome = paceline("run", "--model", broken, "--engine", engine, "--out", engine)
        assert outcome.code == 2, outcome
        assert "broken" in outcome.err
        assert "Traceback" not in outcome.err
