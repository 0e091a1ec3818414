"""Watts of accelerators: NVIDIA's through NVML, AMD's through the kernel's sensors or amd-smi.

All cards that the driver shows are read, whether the run uses them or not: they draw power either
way, and a cap is on all of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paceline import nvml
from paceline.power.readings import CARD, Meter, Reading
from paceline.power.sysfs import number_of, text_of
from paceline.power.tools import ask

__all__ = ["AmdMeter", "AmdToolMeter", "NvmlMeter", "card_meters"]

_EVERY_S = 1.0
# The tools are programs that start an interpreter each time.
_TOOL_EVERY_S = 5.0
_TOOL_TIMEOUT_S = 20.0
_GPU_CORE = 0
_TOOLS = (
    ("amd-smi", ("metric", "--power", "--clock", "--temperature", "--json")),
    ("rocm-smi", ("--showpower", "--json")),
)


class NvmlMeter:
    """Every NVIDIA card of this host."""

    name = "nvml"
    every_s = _EVERY_S

    def __init__(self, library: str = nvml.LIBRARY) -> None:
        self._stack = contextlib.ExitStack()
        self._nvml = self._stack.enter_context(nvml.opened(library))
        self._devices = [] if self._nvml is None else nvml.devices(self._nvml)

    @property
    def has_driver(self) -> bool:
        return self._nvml is not None

    @property
    def num_cards(self) -> int:
        return len(self._devices)

    def read(self) -> list[Reading]:
        readings = [self._card(index, device) for index, device in enumerate(self._devices)]
        return [reading for reading in readings if reading is not None]

    def close(self) -> None:
        self._devices = []
        self._stack.close()

    def _card(self, index: int, device: Any) -> Reading | None:
        driver = self._nvml
        power_w = nvml.watts(driver, "nvmlDeviceGetPowerUsage", device)
        if power_w is None:
            return None
        clock, core = ctypes.c_int(nvml.CLOCK_SM), ctypes.c_int(_GPU_CORE)
        return Reading(
            device=f"gpu {index}",
            scope=CARD,
            source=self.name,
            power_w=power_w,
            clock_mhz=nvml.number(driver, "nvmlDeviceGetClockInfo", device, clock),
            temperature_c=nvml.number(driver, "nvmlDeviceGetTemperature", device, core),
            limit_w=nvml.watts(driver, "nvmlDeviceGetEnforcedPowerLimit", device),
            throttles=nvml.throttles(driver, device),
        )


class AmdMeter:
    """Every card that the kernel's amdgpu driver has sensors of: what rocm-smi reads itself."""

    name = "amdgpu"
    every_s = _EVERY_S

    def __init__(self, sysfs: Path) -> None:
        self._sensors = [
            folder
            for folder in sorted(sysfs.glob("class/hwmon/hwmon*"), key=_number_at_end)
            if text_of(folder / "name") == "amdgpu" and _microwatts(folder) is not None
        ]

    @property
    def num_cards(self) -> int:
        return len(self._sensors)

    def read(self) -> list[Reading]:
        readings = [self._card(index, folder) for index, folder in enumerate(self._sensors)]
        return [reading for reading in readings if reading is not None]

    def close(self) -> None:
        self._sensors = []

    def _card(self, index: int, folder: Path) -> Reading | None:
        microwatts = _microwatts(folder)
        if microwatts is None:
            return None
        hertz, millidegrees = number_of(folder / "freq1_input"), number_of(folder / "temp1_input")
        cap = number_of(folder / "power1_cap")
        return Reading(
            device=f"gpu {index}",
            scope=CARD,
            source=self.name,
            power_w=microwatts / 1e6,
            clock_mhz=None if hertz is None else round(hertz / 1e6),
            temperature_c=None if millidegrees is None else millidegrees / 1000,
            limit_w=None if cap is None else cap / 1e6,
        )


class AmdToolMeter:
    """AMD cards through amd-smi or rocm-smi, where the kernel's sensors cannot be seen."""

    every_s = _TOOL_EVERY_S

    def __init__(self, tool: str, words: tuple[str, ...]) -> None:
        self.name = Path(tool).name
        self._command = (tool, *words)
        self.problem = ""

    def read(self) -> list[Reading]:
        answer = ask(self._command, timeout_s=_TOOL_TIMEOUT_S)
        try:
            found = json.loads(answer.printed)
        except ValueError:
            self.problem = answer.said
            return []
        self.problem = "tells no power"
        cards = _amd_smi_cards(found) if self.name == "amd-smi" else _rocm_smi_cards(found)
        return [
            Reading(
                device=f"gpu {index}",
                scope=CARD,
                source=self.name,
                power_w=watts,
                temperature_c=degrees,
            )
            for index, (watts, degrees) in cards
        ]

    def close(self) -> None:
        """Nothing is held."""


def card_meters(sysfs: Path) -> tuple[list[Meter], list[str]]:
    """Meters of this host's cards, and why others are not there."""
    meters: list[Meter] = []
    unread = []
    own = NvmlMeter()
    if own.has_driver and own.read():
        meters.append(own)
    else:
        said = "the driver tells no card's power" if own.has_driver else "no NVIDIA driver answers"
        unread.append(f"NVML: {said}")
        own.close()
    amd = AmdMeter(sysfs)
    if amd.num_cards:
        return [*meters, amd], unread
    unread.append(f"amdgpu: no sensor in {sysfs}/class/hwmon")
    for name, words in _TOOLS:
        tool = shutil.which(name)
        if tool is None:
            unread.append(f"{name}: not installed")
            continue
        meter = AmdToolMeter(tool, words)
        if meter.read():
            return [*meters, meter], unread
        unread.append(f"{name}: {meter.problem}")
    return meters, unread


def _amd_smi_cards(found: Any) -> Iterator[tuple[int, tuple[float, float | None]]]:
    """amd-smi's list of cards; newer releases wrap it in {"gpu_data": [...]}."""
    rows = found.get("gpu_data", []) if isinstance(found, dict) else found
    for row in rows if isinstance(rows, list) else []:
        power = row.get("power") if isinstance(row, dict) else None
        if not isinstance(power, dict):
            continue
        watts = _figure(power.get("socket_power"))
        if watts is not None:
            heat = row.get("temperature")
            degrees = _figure(heat.get("hotspot")) if isinstance(heat, dict) else None
            yield int(row.get("gpu", 0)), (watts, degrees)


def _rocm_smi_cards(found: Any) -> Iterator[tuple[int, tuple[float, float | None]]]:
    """rocm-smi's {"card0": {"... Power (W)": "43.0"}}."""
    for name, facts in found.items() if isinstance(found, dict) else ():
        if not (name.startswith("card") and isinstance(facts, dict)):
            continue
        for key, value in facts.items():
            watts = _figure(value) if "Power (W)" in key and "Max" not in key else None
            if watts is not None:
                yield int(name.removeprefix("card")), (watts, None)
                break


def _figure(value: Any) -> float | None:
    """A number, as such, as text, or in {"value": 148, "unit": "W"}; None for "N/A"."""
    if isinstance(value, dict):
        value = value.get("value")
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _microwatts(folder: Path) -> int | None:
    average = number_of(folder / "power1_average")
    return number_of(folder / "power1_input") if average is None else average


def _number_at_end(path: Path) -> tuple[int, str]:
    digits = path.name.lstrip("abcdefghijklmnopqrstuvwxyz")
    return (int(digits) if digits.isdecimal() else 0, path.name)
