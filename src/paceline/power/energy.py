"""Energy and watts of a window of time, from readings.

Between two readings of a device its power is taken to go in a straight line (the trapezoid rule);
before the first and after the last it is held. A device that was not read near the window's edge,
or for long in between, is a gap: its seconds are counted, and whoever reads the figures is told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from paceline.power.readings import summed_scopes

__all__ = ["Device", "Floats", "Row", "sum_over_time", "summarise"]

# Three readings of the slowest source.
_LONGEST_GAP_S = 15.0

Row = Mapping[str, Any]
Device = tuple[str, str]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Series:
    """Readings of one device in order of time."""

    scope: str
    source: str
    times: Floats
    watts: Floats

    def joules(self, start_s: float, end_s: float) -> float:
        """Energy from `start_s` to `end_s`."""
        inside = (self.times > start_s) & (self.times < end_s)
        moments_s = np.concatenate(([start_s], self.times[inside], [end_s]))
        watts = np.interp(moments_s, self.times, self.watts)
        return float(np.trapezoid(watts, moments_s))

    def peak_w(self, start_s: float, end_s: float) -> float:
        """The highest power from `start_s` to `end_s`."""
        inside = (self.times > start_s) & (self.times < end_s)
        edges = np.interp([start_s, end_s], self.times, self.watts)
        return float(max(edges.max(), self.watts[inside].max(initial=0.0)))

    def gap_s(self, start_s: float, end_s: float) -> float:
        """Seconds of the window in which the device was not read for too long."""
        inside = np.clip(self.times, start_s, end_s)
        steps = np.diff(np.concatenate(([start_s], inside, [end_s])))
        return float(steps[steps > _LONGEST_GAP_S].sum())


def summarise(rows: Sequence[Row], start_s: float, end_s: float) -> dict[str, Any] | None:
    """Figures of the window from rows of power.jsonl; None when no device was read in it.

    `energy_joules`, `mean_w` and `peak_w` are of the sum over hosts; each device is listed with
    its own, and with whether it is part of the sum.
    """
    series = _series_of(rows)
    near = {
        device: one
        for device, one in series.items()
        if one.times[0] < end_s + _LONGEST_GAP_S and one.times[-1] > start_s - _LONGEST_GAP_S
    }
    if not near or end_s <= start_s:
        return None
    summed = _summed(near)
    in_sum = {device: one for device, one in near.items() if device in summed}
    devices = [
        {
            "host": device[0],
            "device": device[1],
            "scope": one.scope,
            "source": one.source,
            "in_sum": device in in_sum,
            "mean_w": round(one.joules(start_s, end_s) / (end_s - start_s), 2),
            "peak_w": round(one.peak_w(start_s, end_s), 2),
            "energy_joules": round(one.joules(start_s, end_s), 2),
            "gap_s": round(one.gap_s(start_s, end_s), 1),
        }
        for device, one in sorted(near.items())
    ]
    if not in_sum:
        return None
    joules = sum(one.joules(start_s, end_s) for one in in_sum.values())
    return {
        "window_s": [round(start_s, 3), round(end_s, 3)],
        "energy_joules": round(joules, 2),
        "mean_w": round(joules / (end_s - start_s), 2),
        "peak_w": round(_peak_of_sum(list(in_sum.values()), start_s, end_s), 2),
        "devices": devices,
    }


def sum_over_time(rows: Sequence[Row]) -> tuple[list[float], list[float]]:
    """The sum over hosts at every moment at which anything was read: seconds, watts."""
    series = _series_of(rows)
    in_sum = [one for device, one in series.items() if device in _summed(series)]
    if not in_sum:
        return [], []
    moments_s = np.unique(np.concatenate([one.times for one in in_sum]))
    total = _sum_at(in_sum, moments_s)
    return [float(t) for t in moments_s], [round(float(w), 3) for w in total]


def _summed(series: Mapping[Device, _Series]) -> set[Device]:
    """The devices whose power adds up to that of the hosts."""
    scopes: dict[str, set[str]] = {}
    for (host, _), one in series.items():
        scopes.setdefault(host, set()).add(one.scope)
    kept = {host: summed_scopes(found) for host, found in scopes.items()}
    return {device for device, one in series.items() if one.scope in kept[device[0]]}


def _sum_at(series: Sequence[_Series], moments_s: Floats) -> Floats:
    total = np.zeros(len(moments_s))
    for one in series:
        total += np.interp(moments_s, one.times, one.watts)
    return total


def _peak_of_sum(series: Sequence[_Series], start_s: float, end_s: float) -> float:
    read_s = np.concatenate([one.times for one in series])
    inside = read_s[(read_s > start_s) & (read_s < end_s)]
    return float(_sum_at(series, np.concatenate(([start_s, end_s], inside))).max())


def _series_of(rows: Sequence[Row]) -> dict[Device, _Series]:
    found: dict[Device, list[Row]] = {}
    for row in rows:
        found.setdefault((str(row.get("host", "")), str(row.get("device", ""))), []).append(row)
    series = {}
    for device, own in found.items():
        own.sort(key=lambda row: float(row["t_s"]))
        series[device] = _Series(
            scope=str(own[-1].get("scope", "card")),
            source=str(own[-1].get("source", "")),
            times=np.array([float(row["t_s"]) for row in own]),
            watts=np.array([float(row["power_w"]) for row in own]),
        )
    return series
