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

from paceline.power.readings import summed_scopes

__all__ = ["Device", "Row", "summarise"]

# Three readings of the slowest source.
_LONGEST_GAP_S = 15.0

Row = Mapping[str, Any]
Device = tuple[str, str]


@dataclass(frozen=True, slots=True)
class _Series:
    """Readings of one device in order of time."""

    scope: str
    source: str
    times: np.ndarray[Any, np.dtype[np.float64]]
    watts: np.ndarray[Any, np.dtype[np.float64]]

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
    scopes = {host: {one.scope for (h, _), one in near.items() if h == host} for host, _ in near}
    summed = {host: summed_scopes(found) for host, found in scopes.items()}
    in_sum = {d: one for d, one in near.items() if one.scope in summed[d[0]]}
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


def _peak_of_sum(series: Sequence[_Series], start_s: float, end_s: float) -> float:
    moments = np.concatenate([one.times for one in series])
    inside = moments[(moments > start_s) & (moments < end_s)]
    moments_s = np.unique(np.concatenate(([start_s, end_s], inside)))
    total = np.zeros(len(moments_s))
    for one in series:
        total += np.interp(moments_s, one.times, one.watts)
    return float(total.max())


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
