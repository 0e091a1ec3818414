"""The energy of a run that is forecast: the watts of a measurement, for as long as each test takes.

    with Watts(config.power) as watts:          reads all that tells watts here
        ...                                     the engine is measured in a process of its own
    watts.energy(tests, held_unix_s=...)        joules of each test, or why they are not known

A test that was measured whole has the mean power of its own time, every other one that of the
engine held full: its end, when few sequences are left, draws less than that.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from paceline import power
from paceline.power import NodeFiles, PowerSettings, Reading, Sampler

__all__ = ["Watts"]

_J_PER_KWH = 3.6e6

_Window = tuple[float, float]


class Watts:
    """Every reading of power from its opening to its end, of this host and of nodes that report.

    Opening it raises EnvironmentProblem or InputError when a BMC that was named does not answer.
    """

    def __init__(self, settings: PowerSettings) -> None:
        self._settings = settings
        self._host = power.host_name()
        self._rows: list[dict[str, Any]] = []
        self._unread: list[str] = []
        self._nodes: NodeFiles | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        settings = self._settings
        meters, self._unread = power.open_meters(
            os.environ, redfish=settings.redfish, verify_tls=settings.redfish_verify_tls
        )
        self._nodes = power.open_nodes(settings, self._host)
        self._stack.enter_context(Sampler(meters, self._take))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()
        for row in self._nodes.poll() if self._nodes is not None else ():
            self._rows.append({**row, "t_s": row["unix_s"]})

    def energy(
        self, tests: Mapping[str, Mapping[str, Any]], *, held_unix_s: Sequence[float] | None
    ) -> dict[str, Any]:
        """Joules and watts of each test and of all, and in words of what they are."""
        held = [] if held_unix_s is None else [(held_unix_s[0], held_unix_s[1])]
        found: dict[str, dict[str, Any]] = {}
        for name, test in tests.items():
            own = [(start_s, end_s) for start_s, end_s in test.get("windows_unix_s", ())]
            drawn = self._drawn(own or held)
            if drawn is not None:
                drawn["energy_j"] = round(drawn["mean_w"] * test["seconds"], 1)
                drawn["how"] = "measured whole" if own else "as with the engine full"
                found[name] = drawn
        if not self._rows or len(found) < len(tests) or not tests:
            return {"energy_j": None, "energy_tests": None, "energy_note": self._why_unknown(tests)}
        return {
            "energy_j": round(sum(test["energy_j"] for test in found.values()), 1),
            "energy_tests": found,
            "energy_note": _words(found),
        }

    def _take(self, unix_s: float, readings: Sequence[Reading]) -> None:
        self._rows += [
            {"host": self._host, **reading.as_json(), "t_s": unix_s} for reading in readings
        ]

    def _drawn(self, windows: Sequence[_Window]) -> dict[str, Any] | None:
        """Mean and peak power over the windows; None where no device that counts was read."""
        joules, seconds, peak_w, num_readings = 0.0, 0.0, 0.0, 0
        parts: list[str] = []
        for start_s, end_s in windows:
            figures = power.summarise(self._rows, start_s, end_s)
            if figures is None:
                return None
            joules += figures["energy_joules"]
            seconds += end_s - start_s
            peak_w = max(peak_w, figures["peak_w"])
            num_readings += sum(start_s <= row["t_s"] <= end_s for row in self._rows)
            parts = [device["scope"] for device in figures["devices"] if device["in_sum"]]
        if not seconds:
            return None
        return {
            "mean_w": round(joules / seconds, 2),
            "peak_w": round(peak_w, 2),
            "of": ", ".join(f"{count} {scope}" for scope, count in Counter(parts).items()),
            "num_readings": num_readings,
        }

    def _why_unknown(self, tests: Mapping[str, Mapping[str, Any]]) -> str:
        if not self._rows:
            return f"not known: no readable meter ({'; '.join(self._unread)})"
        if not tests:
            return "not known: the run has no test whose time is known"
        return "not known: no meter was read while the engine was measured; measure for longer"


def _words(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Kilowatt-hours by test, and what was measured."""
    shown = [
        f"{name} {test['energy_j'] / _J_PER_KWH:,.3g} kWh ({test['energy_j']:,.0f} J)"
        for name, test in found.items()
    ]
    first = next(iter(found.values()))
    is_whole = all(test["how"] == "measured whole" for test in found.values())
    num_readings = sum(test["num_readings"] for test in found.values())
    return (
        f"{', '.join(shown)}; mean {first['mean_w']:,.0f} W of {first['of']}, "
        f"{num_readings} readings" + ("" if is_whole else ", with the engine full")
    )
