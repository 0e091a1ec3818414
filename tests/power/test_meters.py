"""Meters on simulated sensors: what each says, and what is said where one is silent."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cards import build_driver

from paceline.power import host
from paceline.power.cards import AmdMeter, AmdToolMeter, NvmlMeter, card_meters
from paceline.power.host import RaplMeter, ipmi_meter, rapl_meter
from paceline.power.tools import Answer, ask


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{content}\n")


def zone(sysfs: Path, name: str, label: str, energy_uj: int, range_uj: int = 1 << 38) -> Path:
    folder = sysfs / "class" / "powercap" / name
    write(folder / "name", label)
    write(folder / "energy_uj", energy_uj)
    write(folder / "max_energy_range_uj", range_uj)
    return folder


def tool(folder: Path, name: str, text: str, *, code: int = 0) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.out").write_text(text)
    path = folder / name
    path.write_text(f'#!/bin/sh\ncat "{folder / name}.out"\nexit {code}\n')
    path.chmod(0o755)


@pytest.fixture
def path_of_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder before all others on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


class Clock:
    """A time that goes on only where a test says so."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The host meters' clock."""
    clock = Clock()
    monkeypatch.setattr(host, "time", clock)
    return clock


def rapl(sysfs: Path) -> RaplMeter:
    meter, reason = rapl_meter(sysfs)
    assert isinstance(meter, RaplMeter), reason
    return meter


def watts(meter: RaplMeter) -> dict[str, float]:
    readings = meter.read()
    assert readings is not None
    return {reading.device: reading.power_w for reading in readings}


def test_cards_tell_power_clock_heat_limit_and_why_they_are_slow(tmp_path: Path) -> None:
    meter = NvmlMeter(str(build_driver(tmp_path, DRAW_MW=512345, THROTTLE=4, LIMIT_MW=600000)))
    well, ill = meter.read()
    meter.close()
    assert (well.device, well.power_w, well.limit_w, well.throttles) == ("gpu 0", 512.345, 700, ())
    assert (ill.clock_mhz, ill.temperature_c, ill.limit_w) == (900, 41, 600)
    assert ill.throttles == ("power cap",)


def test_a_driver_that_tells_no_power_gives_no_reading(tmp_path: Path) -> None:
    meter = NvmlMeter(str(build_driver(tmp_path, OLD=1)))
    assert meter.has_driver
    assert meter.read() == []


def test_power_of_a_package_is_its_energy_over_time(tmp_path: Path, clock: Clock) -> None:
    package = zone(tmp_path, "intel-rapl:0", "package-0", 5_000_000)
    meter = rapl(tmp_path)
    clock.now_s += 0.25
    write(package / "energy_uj", 5_000_000 + 30_000_000)
    assert watts(meter) == {"cpu 0": pytest.approx(30 / 0.25)}


def test_a_counter_that_starts_again_is_no_negative_power(tmp_path: Path, clock: Clock) -> None:
    package = zone(tmp_path, "intel-rapl:0", "package-0", 262_000_000, range_uj=262_143_328)
    meter = rapl(tmp_path)
    clock.now_s += 0.25
    write(package / "energy_uj", 9_856_672)  # 10 J on: 0.143328 J to the end, the rest after it
    assert watts(meter)["cpu 0"] == pytest.approx(10 / 0.25)


def test_a_second_reading_at_once_is_none_and_spoils_no_later_one(
    tmp_path: Path, clock: Clock
) -> None:
    package = zone(tmp_path, "intel-rapl:0", "package-0", 0)
    meter = rapl(tmp_path)
    clock.now_s += 0.01
    assert meter.read() is None
    clock.now_s += 0.24
    write(package / "energy_uj", 10_000_000)
    assert watts(meter)["cpu 0"] == pytest.approx(10 / 0.25)


def test_cores_inside_a_package_and_its_second_interface_are_not_counted(
    tmp_path: Path, clock: Clock
) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 0)
    zone(tmp_path, "intel-rapl:0:0", "core", 0)
    zone(tmp_path, "intel-rapl:0:1", "dram", 0)
    zone(tmp_path, "intel-rapl:1", "psys", 0)
    zone(tmp_path, "intel-rapl-mmio:0", "package-0", 0)
    meter = rapl(tmp_path)
    clock.now_s += 0.25
    readings = meter.read()
    assert readings is not None
    assert [(one.device, one.scope) for one in readings] == [
        ("cpu 0", "cpu"),
        ("memory 0", "memory"),
        ("platform 1", "platform"),
    ]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody who may not read")
def test_counters_that_only_root_may_read_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = zone(tmp_path, "intel-rapl:0", "package-0", 0)
    (package / "energy_uj").chmod(0o400)
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)  # from here no folder above is asked
    os.seteuid(65534)
    try:
        meter, reason = rapl_meter(Path())
    finally:
        os.seteuid(0)
    assert meter is None
    assert reason == "RAPL: only root may read intel-rapl:0"


def sensor(sysfs: Path, place: int, name: str, **values: int) -> None:
    folder = sysfs / "class" / "hwmon" / f"hwmon{place}"
    write(folder / "name", name)
    for key, value in values.items():
        write(folder / key, value)


def test_amd_cards_are_read_from_the_kernels_sensors(tmp_path: Path) -> None:
    sensor(tmp_path, 2, "nvme", temp1_input=40000)
    facts = {"freq1_input": 2100000000, "temp1_input": 71000, "power1_cap": 750000000}
    sensor(tmp_path, 10, "amdgpu", power1_input=701500000, **facts)
    sensor(tmp_path, 9, "amdgpu", power1_average=120000000)
    first, second = AmdMeter(tmp_path).read()
    assert (first.device, first.power_w, first.clock_mhz) == ("gpu 0", 120, None)
    assert (second.power_w, second.clock_mhz, second.temperature_c) == (701.5, 2100, 71)
    assert second.limit_w == 750


AMD_SMI: Any = [
    {"gpu": 0, "power": {"socket_power": {"value": 148, "unit": "W"}, "power_management": "ON"}},
    {
        "gpu": 1,
        "power": {"socket_power": {"value": 702, "unit": "W"}},
        "temperature": {"edge": "N/A", "hotspot": {"value": 66, "unit": "C"}},
    },
    {"gpu": 2, "power": {"socket_power": "N/A"}},
]


@pytest.mark.parametrize("wrapped", [False, True])
def test_amd_smi_is_asked_where_there_are_no_sensors(path_of_tools: Path, wrapped: bool) -> None:
    tool(path_of_tools, "amd-smi", json.dumps({"gpu_data": AMD_SMI} if wrapped else AMD_SMI))
    meters, unread = card_meters(path_of_tools / "no-sysfs")
    (meter,) = (one for one in meters if one.name == "amd-smi")
    found = [(one.device, one.power_w, one.temperature_c) for one in meter.read() or ()]
    assert found == [("gpu 0", 148, None), ("gpu 1", 702, 66)]
    assert any(reason.startswith("amdgpu:") for reason in unread)


def test_rocm_smi_is_asked_last(path_of_tools: Path) -> None:
    facts = {
        "card0": {"Current Socket Graphics Package Power (W)": "141.0"},
        "card1": {"Max Graphics Package Power (W)": "750.0", "Average Power (W)": "139.0"},
        "system": {"Driver version": "6.10.5"},
    }
    tool(path_of_tools, "rocm-smi", json.dumps(facts))
    tool(path_of_tools, "amd-smi", "no permission", code=1)
    meters, unread = card_meters(path_of_tools / "no-sysfs")
    assert "amd-smi: no permission" in unread
    (meter,) = (one for one in meters if isinstance(one, AmdToolMeter))
    assert [(one.device, one.power_w) for one in meter.read()] == [("gpu 0", 141), ("gpu 1", 139)]


def test_a_tool_that_names_no_power_or_does_not_end_gives_no_reading(
    path_of_tools: Path,
) -> None:
    tool(path_of_tools, "amd-smi", "[]")
    _, unread = card_meters(path_of_tools / "no-sysfs")
    assert "amd-smi: tells no power" in unread
    assert "rocm-smi: not installed" in unread
    (path_of_tools / "slow").write_text("#!/bin/sh\nexec sleep 60\n")
    (path_of_tools / "slow").chmod(0o755)
    assert ask([str(path_of_tools / "slow")], timeout_s=0.2) == Answer("", "TimeoutExpired")
    assert ask([str(path_of_tools / "gone")], timeout_s=0.2) == Answer("", "FileNotFoundError")


def test_the_nodes_power_comes_from_ipmitool(path_of_tools: Path) -> None:
    text = (
        "\n    Instantaneous power reading:                  5123 Watts\n"
        "    Minimum during sampling period:                 88 Watts\n"
    )
    tool(path_of_tools, "ipmitool", text)
    meter, reason = ipmi_meter()
    assert meter is not None, reason
    (reading,) = meter.read() or ()
    assert (reading.scope, reading.power_w) == ("node", 5123)


def test_what_ipmitool_says_instead_is_the_reason(path_of_tools: Path) -> None:
    said = "Could not open device at /dev/ipmi0: No such file or directory"
    tool(path_of_tools, "ipmitool", said, code=1)
    meter, reason = ipmi_meter()
    assert meter is None
    assert reason == f"IPMI: {said}"
