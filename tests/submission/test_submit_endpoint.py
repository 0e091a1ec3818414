"""Closed submissions from runs over HTTP, against `paceline serve` with the fake engine.

The official checker runs beside ours where a checkout of mlcommons/inference is named by the
environment variable MLPERF_INFERENCE.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from serving import Served, served
from support import Paceline

from official import official

SERVE = (
    *("--engine", "fake", "--benchmark", "llama2-70b-99.9"),
    *("--set", "engine.fake.answers=syn/dataset.parquet", "--model-name", "Llama-2-70b-chat-hf"),
)
GIVEN = (
    *("status=available", "system_name=a laptop", "cooling=air"),
    *("host_memory_configuration=2x 8 GB", "host_networking=1 Gb/s", "host_network_card_count=1"),
    *("host_processor_model_name=a processor", "host_processors_per_node=1"),
    *("host_processor_core_count=2", "host_storage_capacity=1 TB", "host_storage_type=NVMe SSD"),
)


def run_words(server: Served, scenario: str, *more: str) -> tuple[str, ...]:
    return (
        *("run", "--benchmark", "llama2-70b-99.9", "--engine", "endpoint"),
        *("--set", f"engine.endpoint.urls={server.url}", "--data", "syn/dataset.parquet"),
        *("--set", "data.tokenizer=syn", "--scenario", scenario, "--mode", "submission"),
        *(*more, "--out", scenario),
    )


def submitted(paceline: Paceline) -> Any:
    given = [word for value in GIVEN for word in ("--set", value)]
    paceline("system", *given, "--out", "box.json")
    return paceline(
        *("submit", "Offline", "Server", "--submitter", "Team_A", "--system", "box.json"),
        *("--rehearsal", "--division", "closed", "--out", "out", "--json"),
    )


def test_runs_over_http_become_a_closed_tree(paceline: Paceline, tmp_path: Path) -> None:
    paceline("data", "synthetic", "syn", "--samples", "40")
    short = ("--set", "run.num_samples=40", "--set", "loadgen.min_duration_ms=0")
    with served(*SERVE, cwd=tmp_path) as server:
        for scenario, more in (("Offline", ()), ("Server", ("--set", "loadgen.target_qps=100"))):
            outcome = paceline(*run_words(server, scenario, *short, *more))
            assert outcome.code == 0, outcome
    outcome = submitted(paceline)
    # What forty samples cannot have; nothing of token ids, first tokens or what the engine is.
    assert {finding["rule"] for finding in outcome.json["findings"]} == {
        "accuracy-all-samples",
        "accuracy-gen-num",
        "min-duration",
        "offline-samples",
        "performance-sample-count",
        "ran-long-enough",
        "test06-raw",
    }
    results = tmp_path / "out/tree/closed/Team_A/results/box/llama2-70b-99.9"
    readme = (results / "Server/README.md").read_text()
    assert f"{server.url}: paceline 0.1.0, model Llama-2-70b-chat-hf" in readme


def both(folder: Path, runs: Sequence[Sequence[str]]) -> None:
    """Two runs at the same time."""
    with_python = [[sys.executable, "-m", "paceline", *words] for words in runs]
    started = [
        subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for words in with_python
    ]
    for one in started:
        said, _ = one.communicate(timeout=2700)
        assert one.returncode == 0, said.decode()


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_full_length_runs_over_http_become_a_closed_tree_that_both_checkers_take(
    paceline: Paceline, tmp_path: Path
) -> None:
    paceline("data", "synthetic", "syn", timeout_s=600)
    # 7,426,626 tokens in 657 s; LoadGen adds a tenth to the rate, which one pass then holds.
    pace = ("--set", "engine.fake.tokens_per_second=11300")
    with (
        served(*SERVE, *pace, cwd=tmp_path) as paced,
        served(*SERVE, cwd=tmp_path) as quick,
    ):
        offline = run_words(paced, "Offline", "--set", "loadgen.target_qps=37")
        server = run_words(quick, "Server", "--set", "loadgen.target_qps=40")
        both(tmp_path, (offline, server))
    outcome = submitted(paceline)
    assert outcome.code == 0, outcome
    assert outcome.json["findings"] == []
    assert official(tmp_path / "out/tree", "v6.1").endswith("submission looks OK")
