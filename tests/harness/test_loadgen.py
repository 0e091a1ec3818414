"""The door to LoadGen: wheel, settings, and the order in which it issues samples."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from paceline import config
from paceline.errors import LoadGenError
from paceline.harness import loadgen

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
(folder / "user.conf").write_text(loadgen.user_conf(config, mode))
issued = []
class Sut:
    def issue(self, query):
        issued.extend(index for _, index in query)
        loadgen.complete([(response_id, np.array([5, 2], np.int32)) for response_id, _ in query])
    def flush(self):
        pass
loadgen.start_test(config, mode, folder, sut=Sut)
print(json.dumps(issued))
"""


def whole(tmp_path: Path) -> config.RunConfig:
    data = tmp_path / "d.parquet"
    data.touch()
    settings = config.read_settings(
        None,
        ["engine.name=fake", "run.benchmark=llama2-70b-99.9", f"data.path={data}"],
    )
    return config.resolve(settings, "v6.1")


def issued(run: config.RunConfig, mode: str, folder: Path) -> list[int]:
    command = [sys.executable, "-c", PROBE, json.dumps(run.as_json()), mode, str(folder)]
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
