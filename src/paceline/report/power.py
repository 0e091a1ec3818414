"""The section on power: watts and clocks over time, energy, tokens for each joule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict

from paceline.power import sum_over_time
from paceline.report.blocks import Figure, Section, Table, lines_figure, number
from paceline.report.formulas import energy_joules, power_figures, tokens_per_joule
from paceline.report.rundata import PowerPoint, RunData, TestData

__all__ = ["power_section"]

_NO_POWER = (
    "The run has no power.jsonl: power was not measured, and tokens per joule are not known."
)


def power_section(run: RunData) -> Section:
    """Power and clocks over time, and the figures of the test's timed window."""
    section = Section(name="power", title="Power and tokens per joule")
    cap_w = run.config.get("power", {}).get("cap_w")
    for test in run.tests.values():
        if not test.power:
            continue
        section.figures += [_sum(test, cap_w), _each(test)]
        clocks = _clocks(test)
        section.figures += [clocks] if clocks is not None else []
        section.tables += [_devices(test)]
    if not section.figures:
        section.missing.append(_NO_POWER)
    reasons = run.manifest.get("power", {}).get("unread", ())
    if reasons:
        section.paragraphs.append(f"Not read: {'; '.join(reasons)}.")
    section.paragraphs += _of_cap(run)
    return section


def _sum(test: TestData, cap_w: float | None) -> Figure:
    """The sum over hosts, with the cap where there was one."""
    times, watts = sum_over_time([asdict(point) for point in test.power])
    series = [("sum over hosts", times, watts)]
    if cap_w is not None and times:
        series.append(("cap", [times[0], times[-1]], [cap_w, cap_w]))
    figures = power_figures(test) or {}
    return lines_figure(
        f"power-{test.name}",
        f"Power during the {test.name} test",
        summary=f"{_counted(len(test.devices), 'device')}; energy "
        f"{number(energy_joules(test), 0)} J, mean {number(figures.get('mean_w'), 0)} W, at most "
        f"{number(figures.get('peak_w'), 0)} W from the first query to the last answer; "
        f"{number(tokens_per_joule(test), 3)} tokens for each joule.",
        axes=("seconds", "watts"),
        series=series,
    )


def _each(test: TestData) -> Figure:
    series = _series(test, lambda point: point.power_w)
    watts = [value for _, _, ys in series for value in ys]
    return lines_figure(
        f"devices-{test.name}",
        f"Power of each device during the {test.name} test",
        summary=f"From {min(watts):,.0f} to {max(watts):,.0f} W.",
        axes=("seconds", "watts"),
        series=series,
    )


def _clocks(test: TestData) -> Figure | None:
    series = _series(test, lambda point: point.clock_mhz)
    series = [one for one in series if len(one[1]) > 1]
    if not series:
        return None
    values = [value for _, _, ys in series for value in ys]
    return lines_figure(
        f"clocks-{test.name}",
        f"Clocks during the {test.name} test",
        summary=f"From {min(values):,.0f} to {max(values):,.0f} MHz.",
        axes=("seconds", "MHz"),
        series=series,
    )


def _series(
    test: TestData, value: Callable[[PowerPoint], float | None]
) -> list[tuple[str, list[float], list[float]]]:
    """A line of each device, of the points that have the value."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = {key: [] for key in test.devices}
    for point in test.power:
        known = value(point)
        if known is not None:
            found[point.host, point.device].append((point.t_s, known))
    return [
        (_label(test, key), [t for t, _ in sorted(own)], [v for _, v in sorted(own)])
        for key, own in found.items()
        if own
    ]


def _devices(test: TestData) -> Table:
    """Each device in the test's timed window."""
    figures = power_figures(test) or {"devices": []}
    slowed: dict[tuple[str, str], Counter[str]] = {}
    for point in test.power:
        slowed.setdefault((point.host, point.device), Counter()).update(point.throttles)
    counts = Counter((point.host, point.device) for point in test.power)
    rows = []
    for one in figures["devices"]:
        key = (one["host"], one["device"])
        reasons = [f"{why} {n / counts[key]:.0%}" for why, n in slowed[key].items()]
        rows.append(
            (
                _label(test, key),
                one["source"] or "-",
                number(one["mean_w"]),
                number(one["peak_w"]),
                number(one["energy_joules"], 0),
                "yes" if one["in_sum"] else "no: the node's reading has it",
                ", ".join(reasons) or "-",
            )
        )
    return Table(
        caption=f"Devices in the {test.name} test; throttled: share of readings",
        head=("device", "read by", "mean W", "peak W", "J", "in the sum", "throttled"),
        rows=tuple(rows),
        numeric=(2, 3, 4),
    )


def _of_cap(run: RunData) -> list[str]:
    cap = run.manifest.get("power", {}).get("cap")
    if not cap:
        return []
    said = (
        f"Cap of {cap['cap_w']:,.0f} W on the sum: {cap['seconds_above']:,.0f} s above it, "
        f"{cap['seconds_near']:,.0f} s within 5 % of it, at most {number(cap['peak_w'], 0)} W over "
        "the whole run, loading included."
    )
    return [said]


def _label(test: TestData, key: tuple[str, str]) -> str:
    host, device = key
    several = len({host for host, _ in test.devices}) > 1
    return f"{host} {device}" if several else device or "device"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
