"""A forecast holds what the run then does: on an engine of known pace, through the real LoadGen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from cards import build_driver
from support import Paceline

from paceline import config
from paceline.harness import loadgen
from paceline.operate import make_forecast

pytestmark = pytest.mark.timed

PACE = ("engine.fake.tokens_per_second=2000", "engine.fake.concurrency=4")
BASE = (*PACE, "engine.fake.output_len=20")


def sets(*texts: str) -> list[str]:
    return [word for text in texts for word in ("--set", text)]


def forecast(paceline: Paceline, *texts: str, seconds: float = 4, mode: str = "performance") -> Any:
    outcome = paceline(
        *("forecast", "--engine", "fake", "--mode", mode, "--seconds", seconds, "--json"),
        *sets(*BASE, *texts),
    )
    assert outcome.code in (0, 1), outcome
    return outcome.json


def test_a_query_that_ends_in_the_time_is_measured_whole(paceline: Paceline) -> None:
    found = forecast(paceline, mode="all")["tests"]
    # 16 and 96 answers of 20 tokens at 2,000 tokens/s.
    assert found["performance"]["how"].startswith("measured whole")
    assert found["performance"]["seconds"] == pytest.approx(0.16, rel=0.2)
    assert found["accuracy"]["how"].startswith("measured whole")
    assert found["accuracy"]["seconds"] == pytest.approx(0.96, rel=0.1)


def test_a_longer_query_is_forecast_and_its_run_takes_as_long(
    paceline: Paceline, tmp_path: Path
) -> None:
    # Answers of 64 ms: what a busy machine takes to send the next request is little beside them.
    longer = ("loadgen.min_query_count=500", "engine.fake.output_len=32")
    told = forecast(paceline, *longer, seconds=5)
    test = told["tests"]["performance"]
    # LoadGen issues every loaded sample equally often: 512 is 32 times 16.
    assert (test["num_samples"], test["how"]) == (512, "modelled")
    assert test["seconds"] == pytest.approx(8.192, rel=0.03)
    verdict = paceline(
        *("run", "--engine", "fake", "--mode", "performance", "--out", "run", "--json"),
        *sets(*BASE, *longer),
    ).json
    assert test["seconds"] == pytest.approx(verdict["duration_s"], rel=0.05)
    assert told["speed"]["tokens_per_second"] == pytest.approx(
        verdict["tokens_per_second"], rel=0.05
    )


def test_a_run_that_would_be_too_short_is_told_so_with_the_way_out(
    paceline: Paceline,
) -> None:
    texts = ("loadgen.min_duration_ms=20000", "loadgen.target_qps=50")
    found = forecast(paceline, *texts)
    assert found["validity"]["result"] == "INVALID"
    assert "--set loadgen.target_qps=" in found["validity"]["change"]
    # 100 samples/s, in samples and never in tokens.
    assert found["sizing"]["samples_needed"] == pytest.approx(2000, rel=0.05)
    mended = forecast(paceline, texts[0], f"loadgen.target_qps={found['sizing']['target_qps']}")
    assert mended["validity"]["result"] == "VALID"


def test_a_run_without_a_size_is_sized_and_then_valid(paceline: Paceline, tmp_path: Path) -> None:
    texts = ("loadgen.min_duration_ms=6000", "run.probe_s=3")
    found = forecast(paceline, *texts)
    assert found["validity"]["result"] == "VALID"
    assert "target_qps" in found["sizing"]["said"]
    command = ("run", "--engine", "fake", "--mode", "performance", "--out", "run", "--json")
    outcome = paceline(*command, *sets(*BASE, *texts))
    assert outcome.json["result"] == "VALID"
    made = json.loads((tmp_path / "run" / "manifest.json").read_text())
    target_qps = made["config"]["loadgen"]["target_qps"]
    # The run's own measurement, before LoadGen starts in the process with the one engine.
    assert target_qps == pytest.approx(100, rel=0.2)
    assert f"target_qps = {target_qps}" in (tmp_path / "run/performance/user.conf").read_text()
    assert found["tests"]["performance"]["num_samples"] == pytest.approx(
        made["tests"]["performance"]["tokens"] / 20, rel=0.1
    )


@pytest.mark.parametrize(
    ("mode", "tests", "said"),
    [
        ("submission", ["performance", "accuracy"], ", without scoring and compliance\n"),
        ("compliance", [], "not known: the time of compliance is not foretold\n"),
        ("accuracy", ["accuracy"], ", without scoring\n"),
    ],
)
def test_what_is_not_foretold_is_named(
    paceline: Paceline, mode: str, tests: list[str], said: str
) -> None:
    words = ("forecast", "--engine", "fake", "--mode", mode, "--seconds", 1)
    outcome = paceline(*words)
    assert outcome.code == 0, outcome
    (line,) = [one for one in outcome.out.splitlines(keepends=True) if "  all of it" in one]
    assert line.endswith(said)
    assert list(paceline(*words, "--json").json["tests"]) == tests


def test_a_rate_above_what_the_engine_makes_is_refused_beforehand(paceline: Paceline) -> None:
    base = ("forecast", "--engine", "fake", "--scenario", "Server", "--seconds", 2, "--json")
    too_fast = paceline(*base, *sets(*BASE, "loadgen.target_qps=300"))
    assert (too_fast.code, too_fast.json["validity"]["result"]) == (1, "INVALID")
    fine = paceline(*base, *sets(*BASE, "loadgen.target_qps=50"))
    assert (fine.code, fine.json["validity"]["result"]) == (0, "UNKNOWN")


def test_a_measurement_tells_how_much_of_it_is_over(tmp_path: Path) -> None:
    settings = config.read_settings(
        None, ["engine.name=fake", *BASE, "loadgen.min_query_count=999"]
    )
    events: list[Mapping[str, Any]] = []
    run = config.resolve(settings, loadgen.wheel().round)
    make_forecast(run, seconds=2.5, folder=tmp_path, observer=events.append)
    told = [one["fraction"] for one in events if one.get("what") == "measuring for 2.5 s"]
    assert {one["test"] for one in events} == {"forecast"}
    assert told[0] == 0.0
    assert told == sorted(told)
    assert len(told) >= 3
    assert 0.3 < told[1] < told[2] <= 1.0


def test_an_engine_that_fails_ends_the_forecast_by_its_error(paceline: Paceline) -> None:
    outcome = paceline("forecast", "--engine", "fake", "--set", "engine.fake.fail_after=5")
    assert outcome.code == 3
    assert "as told to" in outcome.err


@pytest.mark.slow
def test_an_engine_on_the_processor_is_told_beside_what_it_was_measured(
    paceline: Paceline,
) -> None:
    """The demo, beside a program that spins in what is left: the screen says that it was there."""
    spin = ["nice", "-n", "19", sys.executable, "-c", "while True: pass"]
    words = ("forecast", "--engine", "native", "--mode", "performance", "--seconds", 30)
    with subprocess.Popen(spin) as beside:
        outcome = paceline(*words)
        beside.kill()
    assert outcome.code == 0, outcome
    assert "measured whole" in outcome.out
    assert "machine      other programs took " in outcome.out


def machine(folder: Path, **flags: object) -> dict[str, str]:
    """A machine with the cards that `flags` describe, and no other sensor."""
    build_driver(folder / "driver", **flags)
    driver = {"LD_LIBRARY_PATH": str(folder / "driver"), "PACELINE_SYSFS": str(folder / "sys")}
    return {**os.environ, **driver}


@pytest.mark.parametrize("queries", [16, 1000])
def test_energy_is_that_of_the_cards_for_the_time_of_the_test(
    paceline: Paceline, tmp_path: Path, queries: int
) -> None:
    """Of a query that is measured whole, and of one that is modelled."""
    texts = sets(*BASE, f"loadgen.min_query_count={queries}")
    environment = machine(tmp_path, CARDS=2, DRAW_MW=650000)
    words = ("--engine", "fake", "--mode", "performance", *texts)
    outcome = paceline("forecast", "--seconds", 3, "--json", *words, env=environment)
    found = outcome.json
    seconds = found["tests"]["performance"]["seconds"]
    assert found["energy_j"] == pytest.approx(1300 * seconds, rel=0.001)
    of_test = found["energy_tests"]["performance"]
    assert of_test["mean_w"] == pytest.approx(1300, rel=0.0001)
    assert of_test["of"] == "2 card"
    assert f"({found['energy_j']:,.0f} J); mean 1,300 W of 2 card" in found["energy_note"]
    assert f"{found['energy_j'] / 3.6e6:,.3g} kWh" in found["energy_note"]
    assert ("with the engine full" in found["energy_note"]) == (queries == 1000)
    if queries == 1000:
        run = paceline("run", "--json", "--out", "run", *words, env=environment)
        measured_j = run.json["power"]["energy_joules"]
        assert found["energy_j"] == pytest.approx(measured_j, rel=0.05)


def test_without_a_meter_energy_is_not_known_and_why(paceline: Paceline, tmp_path: Path) -> None:
    environment = {**os.environ, "PACELINE_SYSFS": str(tmp_path), "LD_LIBRARY_PATH": ""}
    words = ("forecast", "--engine", "fake", "--seconds", 1, *sets(*BASE))
    found = paceline(*words, "--json", env=environment).json
    assert found["energy_j"] is None
    assert found["energy_note"].startswith("not known: no readable meter (NVML: no NVIDIA driver")
    assert "energy       not known: no readable meter" in paceline(*words, env=environment).out
