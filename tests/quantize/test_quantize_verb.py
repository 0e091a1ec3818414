"""`paceline quantize` as a user calls it: what it refuses, in one sentence, leaving nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import Paceline
from toys import save_llama

from paceline.cli import app
from paceline.config import demo_dataset
from paceline.errors import InputError
from paceline.quantize.store import CheckpointWriter


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the embedded model's vocabulary, so that the demo's calibration set fits."""
    return save_llama(tmp_path_factory.mktemp("toy"), vocab_size=49152)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def copied(toy: Path, folder: Path) -> Path:
    shutil.copytree(toy, folder)
    return folder


def here(*arguments: object) -> None:
    """The command line in this process: importing torch takes most of a command's time."""
    app(["quantize", *map(str, arguments)], standalone_mode=False)


def refused(tmp_path: Path, *arguments: object) -> str:
    """The one message of a command that must leave nothing behind."""
    with pytest.raises(InputError) as caught:
        here(*arguments)
    assert caught.value.exit_code == 2
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob("*partial*"))
    return caught.value.message


def test_a_checkpoint_is_made_and_says_how(paceline: Paceline, toy: Path, tmp_path: Path) -> None:
    outcome = paceline(
        *("quantize", toy, "out", "--format", "w4a8", "--kv", "fp8", "--calibrate", "demo"),
        *("--gptq", "--smoothquant", "0.5", "--samples", 4, "--json"),
    )
    assert outcome.code == 0, outcome
    record = outcome.json
    assert record["group_len"] == 128
    assert record["calibration"]["num_samples"] == 4
    assert json.loads((tmp_path / "out" / "calibration.json").read_text()) == record
    text = (tmp_path / "out" / "calibration.md").read_text()
    for word in ("GPTQ", "SmoothQuant", "demo_calibration.parquet", "99.9 percentile", "4 samples"):
        assert word in text
    assert str(tmp_path) not in text
    assert not list(tmp_path.glob("*partial*"))


def test_an_output_that_exists_is_left_alone(toy: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="never written over"):
        here(toy, "taken", "--format", "w4a16")
    assert [p.name for p in (tmp_path / "taken").iterdir()] == ["mine.txt"]


def test_what_a_dead_process_left_without_a_finished_shard_is_thrown_away(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "shard-00000.safetensors").write_bytes(b"half")
    here(toy, "out", "--format", "fp8-token")
    assert "no shard of it was finished" in capsys.readouterr().err
    assert not (tmp_path / "out.partial").exists()
    assert "shard-00000.safetensors" not in {p.name for p in (tmp_path / "out").iterdir()}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--format", "fp9"], "no format 'fp9'"),
        (["--format", "fp8"], "needs a calibration set"),
        (["--format", "w4a16", "--kv", "fp8"], "needs a calibration set"),
        (["--format", "w4a16", "--kv", "int8"], "--kv is 'int8'"),
        (["--format", "fp8", "--gptq", "--calibrate", "demo"], "has eight"),
        (["--format", "w4a16", "--group-size", "96"], "do not divide"),
        (["--format", "fp8-token", "--smoothquant", "1.5"], "--smoothquant is 1.5"),
        (["--format", "fp8", "--calibrate", "nowhere.parquet"], "nowhere.parquet"),
        (["--format", "fp8", "--calibrate", str(demo_dataset())], "evaluation sample"),
        (["--format", "w4a16", "--samples", "3"], "none is given"),
        (["--format", "fp8", "--calibrate", "demo", "--percentile", "3"], "--percentile is 3"),
    ],
    ids=lambda value: "-".join(value)[-40:] if isinstance(value, list) else "",
)
def test_what_does_not_go_together_is_refused(
    toy: Path, tmp_path: Path, arguments: list[str], words: str
) -> None:
    assert words in refused(tmp_path, toy, "out", *arguments)


def damaged(toy: Path, folder: Path, how: str) -> Path:
    path = copied(toy, folder) / "model.safetensors"
    if how == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        return folder
    if how == "gone":
        path.unlink()
        return folder
    tensors: dict[str, Any] = load_file(path)
    name = "model.layers.1.mlp.up_proj.weight"
    if how == "nan":
        tensors[name][3, 5] = torch.nan
    elif how == "lost":
        del tensors[name]
    elif how == "shape":
        tensors[name] = tensors[name][:-16].contiguous()
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("cut", "cannot be read as a checkpoint"),
        ("gone", "no .safetensors"),
        ("nan", "up_proj holds a NaN"),
        ("lost", "no tensor model.layers.1.mlp.up_proj"),
        ("shape", "config.json makes it"),
    ],
)
def test_a_damaged_checkpoint_is_refused_and_nothing_is_left(
    toy: Path, tmp_path: Path, how: str, words: str
) -> None:
    model = damaged(toy, tmp_path / "damaged", how)
    assert words in refused(tmp_path, model, "out", "--format", "fp8-token")


def test_a_quantised_checkpoint_is_not_quantised_again(
    paceline: Paceline, toy: Path, tmp_path: Path
) -> None:
    here(toy, "first", "--format", "w4a16")
    assert "quantised already" in refused(tmp_path, "first", "out", "--format", "fp8-token")
    outcome = paceline("quantize", "first", "out", "--format", "fp8-token")
    assert outcome.code == 2
    assert "Traceback" not in outcome.err


def test_a_calibration_set_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    small = save_llama(tmp_path / "small", vocab_size=320)
    message = refused(tmp_path, small, "out", "--format", "fp8", "--calibrate", "demo")
    assert "outside the model's vocabulary" in message


def test_two_processes_do_not_write_one_checkpoint(toy: Path, tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path / "out", needed_bytes=0, inputs="", tell=print) as writer:
        with pytest.raises(InputError, match="Another process is writing"):
            here(toy, "out", "--format", "fp8-token")
        writer.write_text("config.json", "{}")
    assert (tmp_path / "out" / "config.json").is_file()
