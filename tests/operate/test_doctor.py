"""`paceline doctor` as a user runs it: its exit codes, and the files and logins it looks at."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
from cards import finding
from support import Paceline

from paceline.config import demo_dataset
from paceline.mlperf.dataset import load_dataset

LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 1,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 320,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
}


def test_without_a_recipe_the_machine_is_looked_at_and_the_rest_is_named(
    paceline: Paceline,
) -> None:
    outcome = paceline("doctor", "--json")
    assert outcome.code == 0, outcome
    assert finding(outcome, "loadgen")["level"] == "ok"
    assert finding(outcome, "disk speed")["level"] == "ok"
    skipped = {one["name"] for one in outcome.json["not_checked"]}
    assert {"packages", "checkpoint", "dataset", "submitter", "other nodes"} <= skipped


def test_the_demo_passes_on_a_laptop(quick: Paceline, tmp_path: Path) -> None:
    outcome = quick("--engine", "native", "--submitter", "Team_7")
    assert outcome.code == 0, outcome
    for name in ("packages", "checkpoint", "dataset", "tokenizer", "host memory", "submitter"):
        assert finding(outcome, name)["level"] == "ok"
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_the_text_says_what_why_and_the_command(paceline: Paceline) -> None:
    outcome = paceline("doctor", "--submitter", "My Team")
    assert outcome.code == 1, outcome
    lines = outcome.out.splitlines()
    at = next(place for place, line in enumerate(lines) if line.startswith("blocker   submitter"))
    assert lines[at + 1].strip().startswith("why: it names a folder")
    assert lines[at + 2].strip().startswith("mend: --submitter with letters")
    assert lines[at + 2].endswith("My_Team")
    assert "1 blocker;" in lines[-1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere.toml",), "There is no recipe"),
        (("--set", "engine.nativ.dtype=x"), "engine.native.dtype"),
        (("--benchmark", "llama3"), "llama"),
        (("--engine", "endpoint"), "engine.endpoint.urls is empty"),
    ],
)
def test_a_recipe_that_cannot_be_used_ends_with_2(
    paceline: Paceline, arguments: tuple[str, ...], words: str
) -> None:
    outcome = paceline("doctor", *arguments)
    assert outcome.code == 2, outcome
    assert words in outcome.err


def test_the_round_of_another_wheel_gets_its_pip_line(quick: Paceline) -> None:
    told = finding(
        quick("--benchmark", "llama2-70b-99.9", "--engine", "fake", "--round", "v5.1"), "loadgen"
    )
    assert told["level"] == "blocker"
    assert told["mend"].startswith("pip install mlcommons-loadgen==")


def save_checkpoint(folder: Path) -> Path:
    """Two shards of a Llama of one block, and their index; zeros for weights."""
    from safetensors.numpy import save_file

    from paceline.models.layout import expected_tensors, read_model

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    names = sorted(expected_tensors(read_model(folder)).items())
    shards = {
        f"model-{number}-of-2.safetensors": dict(names[place])
        for number, place in ((1, slice(None, 5)), (2, slice(5, None)))
    }
    for file, tensors in shards.items():
        arrays = {name: np.zeros(e.shapes[0], np.float16) for name, e in tensors.items()}
        save_file(arrays, folder / file)
    weight_map = {name: file for file, tensors in shards.items() for name in tensors}
    index = {"weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_a_missing_or_short_shard_is_named(quick: Paceline, tmp_path: Path) -> None:
    model = save_checkpoint(tmp_path / "model")
    wanted = ("--engine", "native", "--model", "model")
    whole = quick(*wanted)
    assert finding(whole, "checkpoint")["level"] == "ok"
    assert "model verify model" in str(whole.json["not_checked"])
    shard = model / "model-2-of-2.safetensors"
    data = shard.read_bytes()
    shard.write_bytes(data[:-100])
    short = finding(quick(*wanted), "checkpoint")
    assert short["level"] == "blocker"
    assert shard.name in short["seen"]
    shard.unlink()
    missing = finding(quick(*wanted), "checkpoint")
    assert missing["level"] == "blocker"
    assert f"{shard.name} is missing" in missing["seen"]
    assert f"paceline model fetch SOURCE {model.name}" in missing["mend"]


def test_samples_that_are_too_long_for_the_engine_are_found(quick: Paceline) -> None:
    fits = finding(quick("--engine", "native"), "samples fit")
    assert fits["level"] == "ok"
    longest = int(load_dataset(demo_dataset()).prompt_lens.max())
    assert fits["seen"].startswith(f"{longest} + 32 tokens at the most, and the checkpoint's")
    small = quick("--engine", "native", "--set", "engine.native.kv_pages=1")
    assert small.code == 1
    told = finding(small, "samples fit")
    assert told["level"] == "blocker"
    assert f"the longest prompt has {longest} tokens" in told["seen"]
    assert told["mend"].startswith(f"--set engine.native.kv_pages={-(-(longest + 32) // 32)},")
    unknown = quick("--engine", "fake").json["not_checked"]
    assert "samples fit" in {one["name"] for one in unknown}


def test_a_wrong_dataset_and_a_checkpoint_elsewhere(quick: Paceline, tmp_path: Path) -> None:
    (tmp_path / "wrong.pkl").write_bytes(b"not the published one")
    wanted = ("--benchmark", "llama2-70b-99.9", "--engine", "native", "--model", "gone")
    outcome = quick(*wanted, "--data", "wrong.pkl")
    assert outcome.code == 1
    told = finding(outcome, "dataset")
    assert told["level"] == "blocker"
    assert "MD5" in told["seen"]
    assert finding(outcome, "checkpoint")["seen"] == "gone is not there"
    # A sample set of another benchmark keeps its own rules and not these.
    demo = Path(sys.modules["paceline"].__file__ or "").parent / "mlperf/data/demo_samples.parquet"
    other = finding(quick(*wanted, "--data", demo), "dataset")
    assert other["level"] == "blocker"
    assert "24576 expected" in other["seen"]


def test_an_endpoint_that_nobody_serves_is_told_from_one_that_listens(quick: Paceline) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        open_port, shut_port = server.getsockname()[1], unused.getsockname()[1]
        urls = f"http://127.0.0.1:{open_port},http://127.0.0.1:{shut_port}"
        settings = ("--set", f"engine.endpoint.urls={urls}")
        key = ("--set", "engine.endpoint.api_key_env=NO_SUCH_KEY")
        large = ("--benchmark", "llama2-70b-99.9")
        outcome = quick(*large, "--engine", "endpoint", *settings, *key)
    assert finding(outcome, f"endpoint 127.0.0.1:{open_port}")["level"] == "ok"
    shut = finding(outcome, f"endpoint 127.0.0.1:{shut_port}")
    assert shut["level"] == "blocker"
    assert "Connection refused" in shut["seen"]
    assert f"curl -sS http://127.0.0.1:{shut_port}/v1/models" in shut["mend"]
    assert finding(outcome, "api key")["mend"] == "export NO_SUCH_KEY=..."


def test_a_token_is_known_and_never_shown(quick: Paceline, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "ghp_thisIsNoToken123456"
    monkeypatch.setenv("GITHUB_TOKEN", secret)
    outcome = quick()
    assert "from GITHUB_TOKEN" in finding(outcome, "github login")["seen"]
    assert secret not in outcome.out + outcome.err


def test_without_git_identity_the_two_commands_are_given(
    quick: Paceline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    for name in [name for name in os.environ if name.startswith(("XDG_", "GIT_AUTHOR"))]:
        monkeypatch.delenv(name)
    told = finding(quick(), "git identity")
    assert told["level"] == "warning"
    assert 'git config --global user.name "YOUR NAME"' in told["mend"]
    assert "user.email" in told["mend"]


def test_random_weights_need_a_tokenizer_for_scores_only(quick: Paceline) -> None:
    drawn = ("--engine", "native", "--model", "random:llama2-70b")
    for mode, level in (("performance", "ok"), ("all", "blocker")):
        words = ("--benchmark", "llama2-70b-99", "--mode", mode)
        told = quick(*drawn, *words).json["findings"]
        assert next(one["level"] for one in told if one["name"] == "tokenizer") == level


def test_a_run_is_asked_about_by_the_flags_that_it_will_have(
    quick: Paceline, paceline: Paceline
) -> None:
    server = ("--engine", "fake", "--scenario", "Server")
    refused = paceline("doctor", *server)
    assert refused.code == 2
    assert "--find-qps" in refused.err
    found = quick(*server, "--find-qps", "--mode", "performance")
    assert found.code == 0, found
    assert found.json["findings"]
