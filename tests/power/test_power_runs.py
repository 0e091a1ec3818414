"""Whole runs on simulated cards: what is in the run directory, the verdict and on the screen."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cards import build_driver
from support import Paceline, wait_until

pytestmark = pytest.mark.timed

RUN = ("run", "--engine", "fake", "--mode", "performance", "--set", "loadgen.min_duration_ms=0")
SLOW = ("--set", "engine.fake.tokens_per_second=160", "--set", "engine.fake.concurrency=8")


def machine(folder: Path, **flags: object) -> dict[str, str]:
    """A machine with these cards and no other sensor; limits that are set are kept in `folder`."""
    build_driver(folder / "driver", **flags)
    (folder / "limits").mkdir()
    return {
        **os.environ,
        "LD_LIBRARY_PATH": str(folder / "driver"),
        "STUB_LIMITS": str(folder / "limits"),
        "PACELINE_SYSFS": str(folder / "sys"),
    }


def read(run: Path, name: str) -> Any:
    return json.loads((run / name).read_text())


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_has_its_power_over_time_and_tokens_for_each_joule(
    paceline: Paceline, tmp_path: Path
) -> None:
    outcome = paceline(
        *RUN, *SLOW, "--out", "one", env=machine(tmp_path, CARDS=2, DRAW_MW=650000, THROTTLE=4)
    )
    assert outcome.code == 0, outcome
    found = read(tmp_path / "one", "verdict.json")
    figures, duration_s = found["power"], found["duration_s"]
    assert figures["energy_joules"] == pytest.approx(1300 * duration_s, rel=0.01)
    tokens = found["tokens_per_second"] * duration_s
    assert figures["tokens_per_joule"] == pytest.approx(tokens / 1300 / duration_s, rel=0.02)
    assert f"mean 1,300 W, peak 1,300 W, {figures['energy_joules']:,.0f} J" in outcome.out
    assert "(of: 2 card)" in outcome.out
    rows = lines(tmp_path / "one" / "performance" / "power.jsonl")
    assert rows[0]["t_s"] < 0, "the cards were read while the test was loading"
    assert rows[-1]["t_s"] == pytest.approx(duration_s, abs=1)
    assert {row["device"] for row in rows} == {"gpu 0", "gpu 1"}
    assert next(row for row in rows if row["device"] == "gpu 1") | {"t_s": 0, "unix_s": 0} == {
        "t_s": 0,
        "unix_s": 0,
        "host": rows[0]["host"],
        "device": "gpu 1",
        "scope": "card",
        "source": "nvml",
        "power_w": 650.0,
        "clock_mhz": 900,
        "temperature_c": 41,
        "limit_w": 700.0,
        "throttles": ["power cap"],
    }
    manifest = read(tmp_path / "one", "manifest.json")
    assert "performance/power.jsonl" in manifest["files"]
    assert "RAPL: no zone" in " ".join(manifest["power"]["unread"])
    assert not (tmp_path / "one" / ".live.json").exists()


def test_a_machine_without_sensors_has_unknown_power_and_no_figure(
    paceline: Paceline, tmp_path: Path
) -> None:
    environment = {**os.environ, "PACELINE_SYSFS": str(tmp_path), "LD_LIBRARY_PATH": ""}
    outcome = paceline(*RUN, "--out", "one", env=environment)
    assert outcome.code == 0, outcome
    figures = read(tmp_path / "one", "verdict.json")["power"]
    assert figures["known"] is False
    assert "energy_joules" not in figures
    assert "no NVIDIA driver answers" in figures["reason"]
    assert "power        unknown (NVML: no NVIDIA driver answers" in outcome.out


def test_a_cap_that_nothing_can_watch_is_refused_before_anything_is_written(
    paceline: Paceline, tmp_path: Path
) -> None:
    environment = {**os.environ, "PACELINE_SYSFS": str(tmp_path), "LD_LIBRARY_PATH": ""}
    outcome = paceline(*RUN, "--power-cap", "10kW", "--out", "one", env=environment)
    assert outcome.code == 3
    assert "The power cap cannot be watched: nothing here tells watts" in outcome.err
    assert not (tmp_path / "one").exists()


def test_a_sum_near_its_cap_is_warned_of_and_counted(paceline: Paceline, tmp_path: Path) -> None:
    environment = machine(tmp_path, DRAW_MW=650000)
    outcome = paceline(*RUN, *SLOW, "--power-cap", "1.35kW", "--out", "one", env=environment)
    assert "power: 1,300 W, 96% of the cap of 1,350 W" in outcome.err
    cap = read(tmp_path / "one", "manifest.json")["power"]["cap"]
    assert cap["seconds_near"] >= 2
    assert cap["seconds_above"] == 0
    assert "within 5 % of it; at most 1,300 W" in outcome.out
    assert list((tmp_path / "limits").iterdir()) == [], "nobody asked for limits to be lowered"


def test_limits_are_lowered_under_a_cap_and_put_back(paceline: Paceline, tmp_path: Path) -> None:
    environment = machine(tmp_path, DRAW_MW=650000, MAY_SET=1, LIMIT_MW=690000)
    outcome = paceline(
        *RUN, *SLOW, "--power-cap", "1.2kW", "--lower-limits", "--out", "one", env=environment
    )
    assert outcome.code == 0, outcome
    facts = read(tmp_path / "one", "manifest.json")["power"]
    assert facts["cap"]["seconds_above"] <= 4
    assert facts["limits"] == {
        "limits_before_w": [700, 690],
        "times_lowered": 1,
        "lowest_limit_w": pytest.approx(558),
        "problem": None,
    }
    rows = lines(tmp_path / "one" / "performance" / "power.jsonl")
    assert rows[-1]["power_w"] == pytest.approx(558)
    assert "lowered 1 times, to 558 W at the least, and are back" in outcome.out
    assert [(tmp_path / "limits" / f"limit-{card}").read_text() for card in range(2)] == [
        "700000",
        "690000",
    ]


def test_limits_without_the_right_are_an_error_that_says_so(
    paceline: Paceline, tmp_path: Path
) -> None:
    environment = machine(tmp_path, MAY_SET=0)
    outcome = paceline(
        *RUN, "--power-cap", "1kW", "--lower-limits", "--out", "one", env=environment
    )
    assert outcome.code == 3
    assert "cannot be lowered: gpu 0: the driver refuses: no permission" in outcome.err
    assert "nvidia-smi -pl" in outcome.err
    assert not (tmp_path / "one").exists()


def test_lowering_without_a_cap_is_refused(paceline: Paceline) -> None:
    outcome = paceline(*RUN, "--lower-limits")
    assert outcome.code == 2
    assert "power.lower_limits would do nothing" in outcome.err


def test_limits_go_back_when_the_run_is_killed(tmp_path: Path) -> None:
    environment = machine(tmp_path, DRAW_MW=650000, MAY_SET=1)
    command = [sys.executable, "-m", "paceline", *RUN, *SLOW, "--out", str(tmp_path / "one")]
    command += ["--power-cap", "1kW", "--lower-limits", "--set", "engine.fake.output_len=2000"]
    run = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    limit = tmp_path / "limits" / "limit-0"
    wait_until(lambda: limit.exists() and limit.read_text() == "465000", within_s=60)
    run.send_signal(signal.SIGKILL)
    run.wait()
    wait_until(lambda: limit.read_text() == "700000", within_s=10)


def test_power_of_other_nodes_is_part_of_the_sum_and_of_the_run(
    paceline: Paceline, tmp_path: Path
) -> None:
    environment = machine(tmp_path, DRAW_MW=650000)
    shared = tmp_path / "shared"
    command = [sys.executable, "-m", "paceline", "power", "--out", str(shared), "--name", "node2"]
    other = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_until(lambda: (shared / "power-node2.jsonl").exists(), within_s=60)
        outcome = paceline(
            *(*RUN, *SLOW, "--power-cap", "2.5kW", "--power-nodes", shared, "--out", "one"),
            env=environment,
        )
    finally:
        other.terminate()
    assert other.wait() == 0, "SIGTERM ends it in order"
    assert "power: 2,600 W, ABOVE the cap of 2,500 W" in outcome.err
    figures = read(tmp_path / "one", "verdict.json")["power"]
    assert {one["host"] for one in figures["devices"]} >= {"node2"}
    assert len(figures["devices"]) == 4
    assert figures["mean_w"] == pytest.approx(2600, rel=0.01)


def test_power_alone_shows_this_node(paceline: Paceline, tmp_path: Path) -> None:
    environment = machine(tmp_path, DRAW_MW=650000, CARDS=1)
    found = paceline("power", "--seconds", "1.5", "--json", env=environment).json
    assert found["total_w"] == 650
    assert found["readings"] == 2
    assert found["devices"][0]["device"] == "gpu 0"


def test_power_where_nothing_tells_watts_says_what_was_asked(
    paceline: Paceline, tmp_path: Path
) -> None:
    environment = {**os.environ, "PACELINE_SYSFS": str(tmp_path), "LD_LIBRARY_PATH": ""}
    outcome = paceline("power", env=environment)
    assert outcome.code == 3
    assert "Nothing here tells watts: NVML: no NVIDIA driver answers" in outcome.err
