"""A closed tree from an Offline and a Server run: what the second scenario needs, and where."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import Paceline

RUN = (
    *("run", "--benchmark", "llama2-70b-99.9", "--engine", "fake", "--data", "syn/dataset.parquet"),
    *("--set", "data.tokenizer=syn", "--set", "engine.fake.answers=syn/dataset.parquet"),
    *("--set", "run.num_samples=40", "--set", "loadgen.min_duration_ms=0"),
    *("--mode", "submission"),
)
RATE = ("--set", "loadgen.target_qps=900")
GIVEN = (
    *("status=available", "system_name=a laptop", "cooling=air"),
    *("host_memory_configuration=2x 8 GB", "host_networking=1 Gb/s", "host_network_card_count=1"),
    *("host_processor_model_name=a processor", "host_processors_per_node=1"),
    *("host_processor_core_count=2", "host_storage_capacity=1 TB", "host_storage_type=NVMe SSD"),
)
SUBMIT = ("--submitter", "Team_A", "--system", "box.json", "--rehearsal", "--json")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a system description and the runs `offline` and `server`."""
    folder = tmp_path_factory.mktemp("server")

    def call(*arguments: str) -> None:
        command = [sys.executable, "-m", "paceline", *arguments]
        subprocess.run(command, cwd=folder, capture_output=True, check=True, timeout=300)

    call("data", "synthetic", "syn", "--samples", "40")
    call(*RUN, "--out", "offline")
    call(*RUN, "--scenario", "Server", *RATE, "--out", "server")
    given = [word for value in GIVEN for word in ("--set", value)]
    call("system", *given, "--out", "box.json")
    return folder


@pytest.fixture
def here(place: Path, tmp_path: Path) -> Path:
    shutil.copytree(place, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_offline_and_server_become_a_closed_tree(paceline: Paceline, here: Path) -> None:
    outcome = paceline(
        "submit", "offline", "server", *SUBMIT, "--division", "closed", "--out", "out"
    )
    top = here / "out/tree/closed/Team_A/results/box/llama2-70b-99.9"
    assert {path.name for path in top.iterdir()} == {"Offline", "Server"}
    server = top / "Server"
    assert "llama2-70b.Server.target_qps = 900.0\n" in (server / "user.conf").read_text()
    assert "First token check pass: True" in (server / "TEST06/verify_accuracy.txt").read_text()
    readme = (server / "README.md").read_text()
    assert "p99 TTFT" in readme
    assert "below 200 ms" in readme
    rules = {finding["rule"] for finding in outcome.json["findings"]}
    # What forty samples cannot have; nothing of the scenarios, their limits or first tokens.
    assert rules == {
        "accuracy-all-samples",
        "accuracy-gen-num",
        "min-duration",
        "offline-samples",
        "performance-sample-count",
        "ran-long-enough",
        "test06-raw",
    }


def test_the_submitted_recipe_repeats_the_server_run(paceline: Paceline, here: Path) -> None:
    paceline("submit", "offline", "server", *SUBMIT, "--division", "closed", "--out", "out")
    source = here / "out/tree/closed/Team_A/src"
    recipe = source / "recipes/llama2-70b-99.9-Server.toml"
    again = ("--data", "syn/dataset.parquet", "--set", "data.tokenizer=syn")
    again += ("--set", "engine.fake.answers=syn/dataset.parquet", "--mode", "performance")
    outcome = paceline("run", recipe, *again, "--out", "again", "--json")
    assert outcome.json["result"] == "VALID"
    conf = "performance/user.conf"
    assert (here / "again" / conf).read_text() == (here / "server" / conf).read_text()


def change(path: Path, key: str, value: Any) -> None:
    manifest = json.loads(path.read_text())
    manifest["config"][key] = value
    path.write_text(json.dumps(manifest))


def test_a_run_is_of_the_network_division_or_not(paceline: Paceline, here: Path) -> None:
    runs = ("submit", "offline", "server", *SUBMIT, "--out", "out", "--division")
    change(here / "server/manifest.json", "network", value=True)
    refused = paceline(*runs, "closed")
    assert refused.code == 2
    assert "server is a run of the network division" in refused.err
    change(here / "server/manifest.json", "network", value=False)
    # The description of the system must be of a network too; the check comes before the runs.
    given = [word for value in GIVEN for word in ("--set", value)]
    paceline("system", "--network", *given, "--out", "box.json")
    assert paceline(*runs, "network").code == 2
