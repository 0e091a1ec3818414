"""Meters read at their own pace, one thread each, and the newest reading of every device.

A meter that starts a program or asks a BMC takes its time without holding up the others. Times are
of the wall clock, which nodes share as far as their clocks agree, and of this host's monotonic
clock, which is the harness's own.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from paceline.power.cards import card_meters
from paceline.power.host import ipmi_meter, rapl_meter
from paceline.power.readings import Meter, Reading, summed_scopes
from paceline.power.redfish import redfish_meter

__all__ = ["Board", "Sampler", "host_name", "open_meters", "sysfs_of"]

_SYSFS = "PACELINE_SYSFS"
# A device that was not read for so long is no part of a sum: three readings of the slowest meter.
_STALE_S = 15.0
_STOP_WITHIN_S = 2.0

Put = Callable[[float, Sequence[Reading]], None]


def host_name() -> str:
    """This host's name, without its domain."""
    return socket.gethostname().split(".")[0]


def sysfs_of(environment: Mapping[str, str]) -> Path:
    """Where the kernel's files are; a container may have the host's mounted elsewhere."""
    return Path(environment.get(_SYSFS, "/sys"))


def open_meters(
    environment: Mapping[str, str], *, redfish: str | None, verify_tls: bool
) -> tuple[list[Meter], list[str]]:
    """All that tells watts here, and in words what does not.

    Raises EnvironmentProblem or InputError when a BMC that was named does not answer.
    """
    sysfs = sysfs_of(environment)
    meters, unread = card_meters(sysfs)
    rapl, reason = rapl_meter(sysfs)
    if rapl is not None:
        meters.append(rapl)
    if reason is not None:
        unread.append(reason)
    if redfish is not None:
        meters.append(redfish_meter(redfish, environment, verify_tls=verify_tls))
        return meters, unread
    ipmi, reason = ipmi_meter()
    if ipmi is not None:
        meters.append(ipmi)
    if reason is not None:
        unread.append(reason)
    return meters, unread


@dataclass(frozen=True, slots=True)
class _Latest:
    unix_s: float
    scope: str
    facts: Mapping[str, Any]


class Board:
    """The newest reading of every device of every host. Any thread may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._latest: dict[tuple[str, str], _Latest] = {}

    def put(self, host: str, unix_s: float, facts: Mapping[str, Any]) -> None:
        """A reading, as plain values."""
        key = (host, str(facts["device"]))
        with self._lock:
            self._latest[key] = _Latest(unix_s, str(facts.get("scope", "card")), facts)

    def fresh(self, now_s: float) -> dict[tuple[str, str], Mapping[str, Any]]:
        """Readings that are young enough to be true, by host and device."""
        with self._lock:
            found = self._latest.items()
            return {key: one.facts for key, one in found if now_s - one.unix_s < _STALE_S}

    def newest_s(self) -> float | None:
        """When the newest reading was taken."""
        with self._lock:
            return max((one.unix_s for one in self._latest.values()), default=None)

    def silent(self, now_s: float) -> list[str]:
        """Hosts of which nothing was read lately."""
        fresh = {host for host, _ in self.fresh(now_s)}
        with self._lock:
            return sorted({host for host, _ in self._latest} - fresh)

    def total_w(self, now_s: float) -> float | None:
        """The sum over hosts now; None when nothing is known."""
        fresh = self.fresh(now_s)
        total, num_summed = 0.0, 0
        for host in {host for host, _ in fresh}:
            own = [facts for (name, _), facts in fresh.items() if name == host]
            scopes = summed_scopes(str(facts.get("scope", "card")) for facts in own)
            summed = [float(f["power_w"]) for f in own if f.get("scope", "card") in scopes]
            total, num_summed = total + sum(summed), num_summed + len(summed)
        return total if num_summed else None


class Sampler:
    """Threads that read meters and hand on what they say; use it as a context manager.

    `put` gets the wall time of a reading and the readings; calls do not overlap. `missed` counts,
    by meter, the times that one did not answer.
    """

    def __init__(self, meters: Sequence[Meter], put: Put) -> None:
        self._meters = meters
        self._put = put
        self._lock = threading.Lock()
        self._reading = {meter.name: threading.Lock() for meter in meters}
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self.missed: Counter[str] = Counter()

    def __enter__(self) -> Self:
        for meter in self._meters:
            thread = threading.Thread(
                target=self._run, args=(meter,), name=f"power-{meter.name}", daemon=True
            )
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        for meter, thread in zip(self._meters, self._threads, strict=True):
            thread.join(_STOP_WITHIN_S)
            # A thread that still waits for its meter ends with the process.
            if not thread.is_alive():
                meter.close()

    def read_now(self) -> None:
        """Read the quick meters once more, so that a window's end has a reading beside it."""
        for meter in self._meters:
            if meter.every_s <= 1.0:
                self._read(meter)

    def _run(self, meter: Meter) -> None:
        due_s = time.monotonic()
        while not self._stop.is_set():
            self._read(meter)
            due_s = max(due_s + meter.every_s, time.monotonic())
            self._stop.wait(due_s - time.monotonic())

    def _read(self, meter: Meter) -> None:
        with self._reading[meter.name]:
            readings = meter.read()
        unix_s = time.time()
        with self._lock:
            if readings:
                self._put(unix_s, readings)
            elif readings is not None:
                self.missed[meter.name] += 1
