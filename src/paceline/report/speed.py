"""Sections on how fast a run was: standing, tokens/s over time, latency, live sequences."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from paceline.mlperf import rules
from paceline.mlperf.logs import DetailLog
from paceline.mlperf.published import load_published
from paceline.report.blocks import Figure, Section, Table, lines_figure, number, plain_figure
from paceline.report.rundata import RunData, TestData, number_of
from paceline.report.standing import standing

__all__ = [
    "latencies",
    "latency_section",
    "live_section",
    "percentile_figure",
    "rates",
    "standing_section",
    "timeline_section",
]

_LATENCY = re.compile(r"result_(\d+\.\d+)_percentile_latency_ns")
_FIRST_TOKEN = re.compile(r"result_first_token_(\d+\.\d+)_percentile_latency_ns")
_PER_TOKEN = re.compile(r"result_time_per_output_token_(\d+\.\d+)_percentile_ns")
_LIVE = ("live_sequences", "waiting_sequences")
_KV = "kv_used_fraction"
# Rows are a second apart.
_LEAST_INTERVAL_S = 0.5


def standing_section(run: RunData) -> Section:
    """Where the run stands among published results of its hardware category, per card."""
    section = Section(name="standing", title="Standing among published results")
    value = (run.verdict or {}).get("tokens_per_second")
    name, cards = run.accelerator
    reason = _no_standing(run, value, cards)
    found = None if reason else standing(run.category, float(value or 0), cards)
    if found is None:
        section.missing.append(reason or f"No result of the category {run.category} is on file.")
        return section
    section.paragraphs += [
        (
            f"Teams compete within their hardware category. Among {len(found.others)} published "
            f"closed Offline results of {found.category}, {found.per_accelerator:,.1f} tokens/s of "
            f"a card is place {found.place}."
        ),
        (
            "The list is a choice of rounds v4.0 to v6.1: the best of each card, not all of them. "
            f"Sources: {'; '.join(str(source) for source in load_published().sources.values())}."
        ),
    ]
    own = ("", "this run", f"{cards} x {name}", number(found.per_accelerator), number(value))
    rows = [
        (
            result.round,
            result.submitter or "(not stated)",
            f"{result.system}{f' ({result.note})' if result.note else ''}",
            number(result.per_accelerator),
            number(result.tokens_per_second),
        )
        for result in found.others
    ]
    rows.insert(found.place - 1, own)
    section.tables.append(
        Table(
            caption=f"{found.category}, by tokens/s of a card",
            head=("place", "round", "submitter", "system", "tokens/s of a card", "tokens/s"),
            rows=tuple((str(place), *row) for place, row in enumerate(rows, 1)),
            numeric=(0, 4, 5),
            marks={found.place - 1: "own"},
        )
    )
    return section


def _no_standing(run: RunData, value: float | None, cards: int) -> str | None:
    if not rules.benchmark(run.config["benchmark"]).is_mlperf:
        return f"{run.config['benchmark']} is not an MLPerf benchmark: nothing published compares."
    if run.is_simulated:
        return "The engine ran no model: a simulated figure stands nowhere."
    if run.config["scenario"] != "Offline":
        return f"The published figures on file are of Offline, not {run.config['scenario']}."
    if not cards:
        return "The run used no accelerator that its engine named: it is in no published category."
    return None if value is not None else "The run has no performance result."


def rates(test: TestData) -> tuple[list[float], list[float]]:
    """Seconds, and tokens/s made between one row of the timeline and the next.

    The last row comes when the test ends: a moment that is too short for a rate of its own is part
    of the second before it.
    """
    points = [(0.0, 0.0)]
    for row in test.timeline:
        elapsed_s, made = float(row["elapsed_s"]), float(row["made"])
        if 0 < elapsed_s - points[-1][0] < _LEAST_INTERVAL_S and len(points) > 1:
            points.pop()
        if elapsed_s > points[-1][0]:
            points.append((elapsed_s, made))
    ys = [
        max(0.0, made - before) / (elapsed_s - before_s)
        for (before_s, before), (elapsed_s, made) in itertools.pairwise(points)
    ]
    return [elapsed_s for elapsed_s, _ in points[1:]], ys


def timeline_section(run: RunData) -> Section:
    """Tokens/s over time, and how many samples were answered."""
    section = Section(name="timeline", title="Tokens/s over time")
    for test in run.tests.values():
        xs, ys = rates(test)
        if len(xs) < 2:
            section.missing.append(
                f"The {test.name} test was over before its timeline had two rows: "
                f"{number(test.facts.get('elapsed_s'), 2)} s."
            )
            continue
        peak, mean = max(ys), sum(ys) / len(ys)
        section.figures.append(
            lines_figure(
                f"rate-{test.name}",
                f"Tokens/s of the {test.name} test",
                summary=f"{len(xs)} points over {xs[-1]:,.0f} s; at most {peak:,.0f}, "
                f"on average {mean:,.0f} tokens/s.",
                axes=("seconds", "tokens/s made"),
                series=[("tokens/s", xs, ys)],
            )
        )
        section.figures.append(_answered(test))
    if not run.tests:
        section.missing.append("The run has no test yet.")
    return section


def _answered(test: TestData) -> Figure:
    rows = [row for row in test.timeline if "answered" in row]
    xs = [float(row["elapsed_s"]) for row in rows]
    return lines_figure(
        f"answered-{test.name}",
        f"Samples of the {test.name} test",
        summary=f"Samples issued and answered over {xs[-1] if xs else 0:,.0f} s.",
        axes=("seconds", "samples"),
        series=[
            ("answered", xs, [float(row["answered"]) for row in rows]),
            ("issued", xs, [float(row.get("issued", 0)) for row in rows]),
        ],
    )


def latencies(log: DetailLog, pattern: re.Pattern[str] = _LATENCY) -> list[tuple[float, float]]:
    """(percentile, seconds) of LoadGen's records of one kind, in order."""
    found = {}
    for record in log.records:
        if match := pattern.fullmatch(record.key):
            value = number_of(log, record.key)
            if value is not None:
                found[float(match[1])] = value * 1e-9
    return sorted(found.items())


def latency_section(run: RunData) -> Section:
    """LoadGen's percentiles; with the limits, where the scenario has any."""
    section = Section(name="latency", title="Latency percentiles")
    test = run.performance
    log = None if test is None else test.log
    if log is None:
        section.missing.append("The run has no performance test's detail log.")
        return section
    scenario = run.config["scenario"]
    limit = rules.benchmark(run.config["benchmark"]).latency.get(scenario)
    kinds: list[tuple[str, str, re.Pattern[str], float | None]] = [
        ("latency", "Latency of a sample", _LATENCY, None),
        ("ttft", "Time to first token", _FIRST_TOKEN, limit.ttft_ms / 1e3 if limit else None),
        ("tpot", "Time per output token", _PER_TOKEN, limit.tpot_ms / 1e3 if limit else None),
    ]
    if scenario == "Offline":
        section.paragraphs.append(
            "Offline has no latency limit: all samples are issued at once, and the latency of one "
            "is the time until it was answered."
        )
    for name, title, pattern, bound_s in kinds:
        if points := latencies(log, pattern):
            section.figures.append(percentile_figure(name, title, points, bound_s))
        elif name == "latency" or limit is not None:
            section.missing.append(f"{title}: LoadGen's log has no percentiles.")
        figure = _over_time(test, name, title, bound_s) if test is not None else None
        section.figures += [figure] if figure is not None else []
    return section


def _over_time(test: TestData, name: str, title: str, bound_s: float | None) -> Figure | None:
    """The 99th percentile so far, as the timeline has it; with the limit, where there is one."""
    label, xs, ys = _column(test.timeline, f"{name}_p99_ms", 1.0)
    if len(xs) < 2:
        return None
    series = [(label, xs, ys)]
    if bound_s is not None:
        series.append(("limit", [xs[0], xs[-1]], [bound_s * 1e3] * 2))
    return lines_figure(
        f"{name}-over-time",
        f"{title}, 99 % so far",
        summary=f"{ys[-1]:,.2f} ms at the end, at most {max(ys):,.2f} ms.",
        axes=("seconds", "ms"),
        series=series,
    )


def percentile_figure(
    name: str, title: str, points: Sequence[tuple[float, float]], bound_s: float | None
) -> Figure:
    """Bars of percentiles, and the limit of the 99th as a line."""
    labels = [f"{percentile:g} %" for percentile, _ in points]
    scale, unit = (1e3, "ms") if points[-1][1] < 10 else (1.0, "s")
    values = [round(seconds * scale, 3) for _, seconds in points]
    data: list[dict[str, Any]] = [
        {"type": "bar", "name": title, "x": labels, "y": values, "meta": "c0"}
    ]
    said = ""
    if bound_s is not None:
        bound = bound_s * scale
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": "limit of the 99 %",
                "x": labels,
                "y": [bound] * len(labels),
                "meta": "bound",
            }
        )
        at = dict(points).get(99.0)
        held = "unknown" if at is None else "held" if at <= bound_s else "BROKEN"
        said = f" The limit of the 99th percentile, {bound:,.0f} {unit}, is {held}."
    table = Table(
        caption=title,
        head=("percentile", unit),
        rows=tuple(zip(labels, (f"{value:,.3f}" for value in values), strict=True)),
        numeric=(1,),
    )
    summary = f"{labels[-1]}: {values[-1]:,.1f} {unit}.{said}"
    axes = ("percentile", unit)
    return plain_figure(name, title, summary=summary, axes=axes, data=data, table=table)


def live_section(run: RunData) -> Section:
    """Sequences in the engine and the share of the KV cache in use."""
    section = Section(name="live", title="Live sequences and KV cache")
    for test in run.tests.values():
        rows = test.timeline
        for names, title, axis in ((_LIVE, "Sequences", "sequences"), ((_KV,), "KV cache", "%")):
            series = [_column(rows, name, 100.0 if name == _KV else 1.0) for name in names]
            series = [one for one in series if len(one[1]) > 1]
            if series:
                section.figures.append(
                    lines_figure(
                        f"{axis}-{test.name}".replace("%", "kv"),
                        f"{title} of the {test.name} test",
                        summary=f"At most {max(max(ys) for _, _, ys in series):,.1f}.",
                        axes=("seconds", axis),
                        series=series,
                    )
                )
            elif names == (_KV,) and _is_unknown(rows):
                section.missing.append(
                    f"KV cache of the {test.name} test: unknown. The engine, or a server of it, "
                    "does not tell it."
                )
        section.tables += [*_copies(test), *_parts(test)]
    if not section.figures:
        section.missing.append(
            "The timeline has no live_sequences and no kv_used_fraction: this engine does not "
            "report them over time."
        )
    return section


def _is_unknown(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether an engine that tells its sequences tells nothing of its cache."""
    return any(_LIVE[0] in row for row in rows) and not any(_KV in row for row in rows)


def _column(
    rows: Sequence[Mapping[str, Any]], name: str, factor: float
) -> tuple[str, list[float], list[float]]:
    chosen = [row for row in rows if isinstance(row.get(name), int | float)]
    xs = [float(row["elapsed_s"]) for row in chosen]
    return name.replace("_", " "), xs, [float(row[name]) * factor for row in chosen]


def _copies(test: TestData) -> list[Table]:
    """What each copy of the engine counted, one row a copy."""
    copies = test.engine.get("copies")
    if not isinstance(copies, list) or not all(isinstance(copy, Mapping) for copy in copies):
        return []
    names = list(dict.fromkeys(name for copy in copies for name in copy))
    rows = tuple(
        (name.replace("_", " "), *(str(copy.get(name, "-")) for copy in copies)) for name in names
    )
    head = ("counter", *(f"copy {place}" for place in range(len(copies))))
    caption = f"Counters of the engine at the end of the {test.name} test"
    return [Table(caption=caption, head=head, rows=rows, numeric=tuple(range(1, len(head))))]


def _parts(test: TestData) -> list[Table]:
    """Copies, servers or replicas as the last row of the timeline has them."""
    rows = [row["parts"] for row in test.timeline if isinstance(row.get("parts"), list)]
    parts = [part for part in rows[-1] if isinstance(part, Mapping)] if rows else []
    if not parts:
        return []
    total = sum(_count(part.get("tokens")) for part in parts)
    body = tuple(
        (
            str(part.get("name", "-")),
            number(_count(part.get("tokens")), 0),
            f"{_count(part.get('tokens')) / total:.1%}" if total else "-",
            number(part.get("answered"), 0),
            "up" if part.get("is_up", True) else "away",
        )
        for part in parts
    )
    head = ("part", "tokens", "share", "samples answered", "state")
    caption = f"Parts of the engine in the last second of the {test.name} test's timeline"
    return [Table(caption=caption, head=head, rows=body, numeric=(1, 2, 3))]


def _count(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
