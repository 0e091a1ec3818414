"""The managed engine: what it would start on a machine with GPUs, and servers it really starts."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paceline.config import embedded_model
from paceline.engines import Completion, EngineContext, Request
from paceline.engines.managed import ManagedConfig, ManagedEngine
from paceline.engines.managed_plan import plan_servers
from paceline.errors import EnvironmentProblem, InputError, PacelineError


class Collector:
    """A Sink that keeps everything."""

    def __init__(self) -> None:
        self.completions: dict[int, Completion] = {}
        self.failures: dict[int, PacelineError] = {}

    def first_token(self, request_id: int, token_id: int) -> None:
        del request_id, token_id

    def done(self, completion: Completion) -> None:
        self.completions[completion.request_id] = completion

    def done_all(self, completions: Sequence[Completion]) -> None:
        for completion in completions:
            self.done(completion)

    def failed(self, request_id: int, error: PacelineError) -> None:
        self.failures[request_id] = error

    def progress(self, num_tokens: int) -> None:
        del num_tokens


def context(tmp_path: Path, model: Path) -> EngineContext:
    return EngineContext(
        model=model,
        eos_token_id=2,
        vocabulary_size=49152,
        max_new_tokens=40,
        log_dir=tmp_path / "log",
    )


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint on a machine with four H100s and vendors' programs, as far as PATH tells."""
    gpus = "".join(f"echo '{i}, GPU-{i}{i}, 81559'\n" for i in range(4))
    for name, text in (("nvidia-smi", gpus), ("vllm", ""), ("trtllm-serve", "")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    model = tmp_path / "Llama-2-70b-chat-hf"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "llama"}')
    return model


def planned(tmp_path: Path, model: Path, **settings: Any) -> list[Any]:
    return plan_servers(ManagedConfig(**settings), context(tmp_path, model))[1]


def test_each_gpu_gets_a_server_that_sees_no_other(tmp_path: Path, node: Path) -> None:
    commands = planned(tmp_path, node, environment="NCCL_DEBUG=INFO")
    assert [c.environment["CUDA_VISIBLE_DEVICES"] for c in commands] == ["0", "1", "2", "3"]
    assert {c.environment["NCCL_DEBUG"] for c in commands} == {"INFO"}
    assert len({c.port for c in commands}) == 4
    text = " ".join(commands[0].argv)
    assert f"vllm serve {node} --host 127.0.0.1 --port {commands[0].port}" in text
    assert "--quantization fp8 --kv-cache-dtype fp8" in text
    assert "--max-num-seqs 256 --max-num-batched-tokens 1024" in text


def test_pairs_share_a_server_and_named_gpus_are_the_only_ones(tmp_path: Path, node: Path) -> None:
    commands = planned(tmp_path, node, tensor_parallel=2, gpus=("3", "1"), max_num_seqs=500)
    (command,) = commands
    assert command.environment["CUDA_VISIBLE_DEVICES"] == "3,1"
    text = " ".join(command.argv)
    assert "--tensor-parallel-size 2" in text
    assert "--max-num-seqs 500 --max-num-batched-tokens 2048" in text


def test_a_quantised_checkpoint_is_not_quantised_again(tmp_path: Path, node: Path) -> None:
    (node / "config.json").write_text(json.dumps({"quantization_config": {"bits": 8}}))
    assert "--quantization" not in planned(tmp_path, node)[0].argv
    assert "trtllm-serve" in planned(tmp_path, node, preset="trtllm")[0].argv[0]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"preset": "trtllm"}, "does not quantise as it loads"),
        ({"gpus": ("7",)}, "engine.managed.gpus names 7; visible are 0, 1, 2, 3"),
        ({"tensor_parallel": 3}, "4 GPUs do not make groups of 3"),
        ({"preset": "llamacpp"}, "'llama-server', which is not on PATH"),
        ({"executable": "/no/vllm"}, "starts '/no/vllm', which is not on PATH"),
        ({"preset": "paceline", "tensor_parallel": 2}, "takes no tensor_parallel"),
    ],
)
def test_what_cannot_be_started_is_refused(
    tmp_path: Path, node: Path, settings: dict[str, Any], says: str
) -> None:
    with pytest.raises((InputError, EnvironmentProblem)) as caught:
        planned(tmp_path, node, **settings)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"preset": "vlm"}, "engine.managed.preset is 'vlm'"),
        ({"servers": 2}, "engine.managed.servers would do nothing"),
        ({"extra_args": "--port 1"}, "which paceline chooses itself"),
        ({"extra_args": "--a 'b"}, "cannot be split"),
        ({"environment": "A"}, "'A' is not of the form NAME=value"),
        ({"memory_fraction": 1.5}, "memory_fraction is 0 to 1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as caught:
        ManagedConfig(**settings)
    assert says in str(caught.value)


def run_requests(engine: ManagedEngine, count: int) -> tuple[Collector, dict[str, Any]]:
    sink = Collector()
    try:
        engine.start()
        requests = [
            Request(i, np.arange(500 + i, 520 + i, dtype=np.int32), 8, 1) for i in range(count)
        ]
        engine.submit(requests, sink)
        engine.drain()
        return sink, engine.describe()
    finally:
        engine.close()


def test_two_servers_of_our_own_answer_and_leave_no_process(tmp_path: Path) -> None:
    config = ManagedConfig(preset="paceline", servers=2, extra_args="--engine fake")
    engine = ManagedEngine(config, context(tmp_path, embedded_model()))
    sink, facts = run_requests(engine, 60)
    assert sink.failures == {}
    assert {len(c.token_ids) for c in sink.completions.values()} == {8}
    assert len(sink.completions) == 60
    assert facts["overridden"] == {"--engine native": "--engine fake"}
    assert facts["simulated"] is True
    assert [one["name"] for one in facts["processes"]] == ["server-0", "server-1"]
    assert all(one["version"].startswith("paceline ") for one in facts["processes"])
    ports = [one["url"].rpartition(":")[2] for one in facts["processes"]]
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        assert not any(port.encode() in words for port in ports), words


def end_server(facts: dict[str, Any]) -> None:
    """Kill the process that listens where a server of ours was started."""
    port = facts["url"].rpartition(":")[2].encode()
    for folder in Path("/proc").glob("[0-9]*"):
        words = (folder / "cmdline").read_bytes().split(b"\0")
        if port in words and b"serve" in words and not words[1].startswith(b"-I"):
            os.kill(int(folder.name), signal.SIGKILL)


@pytest.mark.parametrize("restarts", [1, 0])
def test_a_server_killed_while_it_serves_is_started_again_or_named(
    tmp_path: Path, restarts: int
) -> None:
    config = ManagedConfig(
        preset="paceline",
        extra_args="--engine fake --set engine.fake.tokens_per_second=40",
        restarts=restarts,
    )
    engine = ManagedEngine(config, context(tmp_path, embedded_model()))
    sink = Collector()
    try:
        engine.start()
        prompts = [np.arange(500 + i, 520 + i, dtype=np.int32) for i in range(12)]
        engine.submit([Request(i, prompt, 8, 1) for i, prompt in enumerate(prompts)], sink)
        while not sink.completions:
            time.sleep(0.02)
        end_server(engine.describe()["processes"][0])
        engine.drain()
        facts = engine.describe()
    finally:
        engine.close()
    assert len(sink.completions) + len(sink.failures) == 12
    (told,) = [note for note in facts["notes"] if "ended (signal 9)" in note]
    if restarts:
        assert sink.failures == {}
        assert told.endswith("it was started again.")
        assert facts["retries"]
    else:
        assert "No server is left" in next(iter(sink.failures.values())).message
        assert told.endswith("it was not started again.")


@pytest.mark.slow
def test_llama_cpps_python_server_answers_with_the_embedded_model(tmp_path: Path) -> None:
    """PACELINE_LLAMA_CPP_PYTHON may name another environment's Python that has it."""
    python = os.environ.get("PACELINE_LLAMA_CPP_PYTHON", "")
    if not python and importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("llama-cpp-python[server] is not installed, nor PACELINE_LLAMA_CPP_PYTHON set")
    from paceline.mlperf.tokenizer import load_tokenizer

    config = ManagedConfig(
        preset="llama-cpp-python", executable=python or sys.executable, preflight="warn"
    )
    own = context(tmp_path, embedded_model())
    own = EngineContext(
        model=own.model,
        eos_token_id=own.eos_token_id,
        vocabulary_size=own.vocabulary_size,
        max_new_tokens=own.max_new_tokens,
        log_dir=own.log_dir,
        codec=lambda: load_tokenizer(embedded_model()),
    )
    sink, facts = run_requests(ManagedEngine(config, own), 3)
    assert sink.failures == {}
    assert len(sink.completions) == 3
    assert facts["processes"][0]["version"][0].isdigit()
    assert facts["exact_token_ids"] is False
