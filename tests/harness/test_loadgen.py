"""The door to LoadGen: wheel, settings, and the order in which it issues samples."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from paceline import config
from paceline.errors import EngineError, LoadGenError
from paceline.harness import loadgen
from paceline.harness.network import network_name
from paceline.mlperf.logs import read_detail

# The first eight sample indices that LoadGen 6.0.17 issues with the v6.1 seeds and 24,576 samples.
ORDERS = {
    "performance": [22372, 13481, 2219, 4302, 1183, 19741, 6598, 19597],
    "accuracy": [2065, 20787, 22201, 262, 19980, 12850, 14993, 10670],
}
PROBE = """
import json, sys
from pathlib import Path
import numpy as np
from paceline.config import RunConfig
from paceline.harness import loadgen
config = RunConfig.from_json(json.loads(sys.argv[1]))
mode, folder = sys.argv[2], Path(sys.argv[3])
text = loadgen.user_conf(config, mode)
kept = [line for line in text.splitlines() if sys.argv[4] not in line]
(folder / "user.conf").write_text("\\n".join(kept) + "\\n")
issued = []
class Sut:
    def issue(self, query):
        issued.extend(index for _, index in query)
        ids = np.array([5, 2], np.int32)
        if config.scenario != "Offline":
            loadgen.complete_first_tokens([(response_id, ids[:1]) for response_id, _ in query])
        loadgen.complete([(response_id, ids) for response_id, _ in query])
    def flush(self):
        pass
asked = []
def name():
    asked.append(1)
    return "Network SUT: node-1"
session = loadgen.Session(config, folder, mode)
session.run(folder, Sut(), network_name=name if config.network else None)
assert bool(asked) == config.network
print(json.dumps(issued))
"""


def whole(tmp_path: Path, *overrides: str, benchmark: str = "llama2-70b-99.9") -> config.RunConfig:
    data = tmp_path / "d.parquet"
    data.touch()
    base = ["engine.name=fake", f"run.benchmark={benchmark}", f"data.path={data}"]
    return config.resolve(config.read_settings(None, [*base, *overrides]), "v6.1")


def issued(run: config.RunConfig, mode: str, folder: Path, left_out: str = "nothing") -> list[int]:
    command = [sys.executable, "-c", PROBE, json.dumps(run.as_json()), mode, str(folder), left_out]
    finished = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    order = json.loads(finished.stdout.splitlines()[-1])
    assert isinstance(order, list)
    return order


@pytest.mark.parametrize("mode", sorted(ORDERS))
def test_the_rounds_seeds_give_the_rounds_order(mode: str, tmp_path: Path) -> None:
    if loadgen.wheel().round != "v6.1":
        pytest.skip("the order is known for the v6.1 wheel, and another one is installed")
    order = issued(whole(tmp_path), mode, tmp_path)
    assert order[:8] == ORDERS[mode]
    assert sorted(order) == list(range(24576))


SERVER = ("run.scenario=Server", "loadgen.target_qps=20000", "loadgen.min_duration_ms=0")


def test_server_issues_every_sample_equally_often_one_a_query(tmp_path: Path) -> None:
    if loadgen.wheel().round != "v6.1":
        pytest.skip("the order is known for the v6.1 wheel, and another one is installed")
    order = issued(whole(tmp_path, *SERVER), "performance", tmp_path)
    assert order[:8] == [23771, 10320, 14279, 3739, 8002, 2165, 23234, 8481]
    assert sorted(order) == list(range(24576))
    log = read_detail(tmp_path / "mlperf_log_detail.txt")
    assert not log.errors
    assert log.get("effective_scenario") == "Server"
    assert log.get("requested_server_ttft_latency") == 2_000_000_000
    assert log.get("sut_name") == "PySUT"


def test_interactive_is_judged_by_its_own_limits(tmp_path: Path) -> None:
    run = whole(tmp_path, *SERVER[1:], "run.scenario=Interactive", "run.num_samples=40")
    assert "llama2-70b-interactive.Server.target_qps = 20000.0" in loadgen.user_conf(
        run, "performance"
    )
    issued(run, "performance", tmp_path)
    log = read_detail(tmp_path / "mlperf_log_detail.txt")
    assert log.get("requested_server_ttft_latency") == 450_000_000
    assert log.get("requested_server_tpot_latency") == 40_000_000
    assert log.get("requested_server_target_latency_percentile") == 0.99


def test_limits_that_loadgen_would_not_apply_are_refused(tmp_path: Path) -> None:
    run = whole(tmp_path, *SERVER, benchmark="smollm2-135m-99")
    with pytest.raises(subprocess.CalledProcessError) as caught:
        issued(run, "performance", tmp_path, "ttft_latency")
    assert "LoadGen would apply 2000 ms to the first token" in str(caught.value.stderr)


def test_a_network_run_is_seen_by_loadgen_under_the_name_that_the_nodes_gave(
    tmp_path: Path,
) -> None:
    run = dataclasses.replace(whole(tmp_path, *SERVER, "run.num_samples=40"), network=True)
    issued(run, "performance", tmp_path)
    log = read_detail(tmp_path / "mlperf_log_detail.txt")
    assert log.get("sut_name") == "Network SUT: node-1"
    assert not log.errors


class Nodes:
    """An engine over a network, as far as its name goes."""

    def __init__(self, *names: str) -> None:
        self._names = names

    def server_names(self) -> tuple[str, ...]:
        return self._names


def test_the_network_name_lists_the_nodes_once_and_only_nodes_have_one() -> None:
    assert network_name(Nodes("b", "a", "b")) == "Network SUT: b, a"
    with pytest.raises(EngineError, match="no other host"):
        network_name(object())
    with pytest.raises(EngineError, match="no node"):
        network_name(Nodes())


def test_user_conf_has_spaces_around_its_equals_and_plain_numbers(tmp_path: Path) -> None:
    for line in loadgen.user_conf(whole(tmp_path), "performance").splitlines():
        key, _, value = line.partition(" = ")
        assert key.startswith("llama2-70b.")
        float(value)


def test_the_installed_wheel_is_one_of_a_known_round() -> None:
    found = loadgen.wheel()
    assert found.version
    assert found.round is not None
    found.require(found.round)


def test_a_wheel_of_another_round_is_refused_by_name() -> None:
    with pytest.raises(LoadGenError, match=r"mlcommons-loadgen==5\.1\.2"):
        loadgen.Wheel("6.0.17", "v6.1").require("v5.1")
    with pytest.raises(LoadGenError, match="no round known"):
        loadgen.Wheel("9.9", None).require("v6.1")
