"""Watts of the host: the processors' energy counters (RAPL), and the whole node's by its BMC.

RAPL's counters count microjoules and start again at a stated range; power is their difference over
the time between two readings. Since 2020 only root may read them (CVE-2020-8694), which is said.
"""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path

from paceline.power.readings import CPU, MEMORY, NODE, PLATFORM, Meter, Reading
from paceline.power.sysfs import number_of, text_of
from paceline.power.tools import ask

__all__ = ["IpmiMeter", "RaplMeter", "ipmi_meter", "rapl_meter"]

_EVERY_S = 1.0
# Counters are updated about once a millisecond: over less than this a difference says little.
_LEAST_S = 0.2
_IPMI_EVERY_S = 5.0
_IPMI_TIMEOUT_S = 10.0
# intel-rapl:0 is a package, intel-rapl:0:1 a part of it. AMD's processors have the same names;
# intel-rapl-mmio is the same package by another way.
_ZONE = re.compile(r"intel-rapl:\d+(:\d+)?")
_IPMI_WATTS = re.compile(r"Instantaneous power reading:\s*(\d+)\s*Watts")


class RaplMeter:
    """Packages and memory of this host's processors; a part inside a package is left out."""

    name = "rapl"
    every_s = _EVERY_S

    def __init__(self, zones: dict[Path, tuple[str, str]]) -> None:
        self._zones = zones
        self._ranges = {zone: number_of(zone / "max_energy_range_uj") for zone in zones}
        self._before = {zone: (time.monotonic(), number_of(zone / "energy_uj")) for zone in zones}

    def read(self) -> list[Reading] | None:
        now_s = time.monotonic()
        if any(now_s - before_s < _LEAST_S for before_s, _ in self._before.values()):
            return None
        readings = []
        for zone, (device, scope) in self._zones.items():
            watts = self._watts(zone)
            if watts is not None:
                readings.append(
                    Reading(device=device, scope=scope, source=self.name, power_w=watts)
                )
        return readings

    def close(self) -> None:
        """Nothing is held."""

    def _watts(self, zone: Path) -> float | None:
        now_s, count = time.monotonic(), number_of(zone / "energy_uj")
        before_s, before = self._before[zone]
        self._before[zone] = (now_s, count)
        if count is None or before is None or now_s <= before_s:
            return None
        used = count - before
        if used < 0:
            most = self._ranges[zone]
            if most is None:
                return None
            used += most
        return used / 1e6 / (now_s - before_s)


class IpmiMeter:
    """The node's power as its BMC tells it, by `ipmitool dcmi power reading`."""

    name = "ipmi"
    every_s = _IPMI_EVERY_S

    def __init__(self, tool: str) -> None:
        self._command = (tool, "dcmi", "power", "reading")
        self.problem = ""

    def read(self) -> list[Reading]:
        answer = ask(self._command, timeout_s=_IPMI_TIMEOUT_S)
        match = _IPMI_WATTS.search(answer.printed)
        if match is None:
            self.problem = answer.said
            return []
        return [Reading(device="node", scope=NODE, source=self.name, power_w=float(match[1]))]

    def close(self) -> None:
        """Nothing is held."""


def rapl_meter(sysfs: Path) -> tuple[Meter | None, str | None]:
    """The meter, or why there is none. Zones that may not be read are named in the reason."""
    root = sysfs / "class" / "powercap"
    found = [p for p in sorted(root.glob("intel-rapl:*")) if _ZONE.fullmatch(p.name)]
    if not found:
        return None, f"RAPL: no zone in {root}"
    zones, refused = {}, []
    for zone in found:
        known = _known_zone(zone)
        if known is None:
            continue
        try:
            (zone / "energy_uj").read_text()
        except PermissionError:
            refused.append(zone.name)
        except OSError as error:
            refused.append(f"{zone.name} ({error.strerror})")
        else:
            zones[zone] = known
    reason = f"RAPL: only root may read {', '.join(refused)}" if refused else None
    return (RaplMeter(zones) if zones else None), reason


def ipmi_meter() -> tuple[Meter | None, str | None]:
    """The meter, or why there is none."""
    tool = shutil.which("ipmitool")
    if tool is None:
        return None, "IPMI: ipmitool is not installed"
    meter = IpmiMeter(tool)
    return (meter, None) if meter.read() else (None, f"IPMI: {meter.problem}")


def _known_zone(zone: Path) -> tuple[str, str] | None:
    """Device and scope of a zone; None for a part whose energy its package counts."""
    name = text_of(zone / "name")
    if name is None:
        return None
    number = zone.name.split(":")[1]
    if name.startswith("package"):
        return f"cpu {name.removeprefix('package-')}", CPU
    if name == "dram":
        return f"memory {number}", MEMORY
    return (f"platform {number}", PLATFORM) if name == "psys" else None
