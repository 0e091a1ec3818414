"""Runs side by side: first what differs in what made them, then their figures and curves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paceline.report.blocks import Section, Table, lines_figure, number, plain_figure
from paceline.report.formulas import tokens_per_joule
from paceline.report.origin import effective_config, made_by
from paceline.report.rundata import RunData
from paceline.report.samples import ROUGES, Samples
from paceline.report.speed import latencies, rates

__all__ = ["comparison", "labels"]

_NONE = "-"


def labels(runs: Sequence[RunData]) -> list[str]:
    """A name for each run: its directory's, with its place where two are the same."""
    names = [run.name for run in runs]
    return [
        f"{name} ({place})" if names.count(name) > 1 else name for place, name in enumerate(names)
    ]


def comparison(runs: Sequence[RunData], samples: Sequence[Samples]) -> list[Section]:
    """The sections of a comparison."""
    names = labels(runs)
    return [
        _differences(runs, names),
        _figures(runs, names),
        _speed(runs, names),
        _latency(runs, names),
        _rouge(samples, names),
    ]


def _differences(runs: Sequence[RunData], names: Sequence[str]) -> Section:
    section = Section(name="differences", title="What differs")
    configs = [{key: value for key, (value, _) in effective_config(run).items()} for run in runs]
    for caption, facts in (
        ("Config", configs),
        ("Code, packages, seeds, inputs, host", [made_by(run) for run in runs]),
    ):
        keys = list(dict.fromkeys(key for own in facts for key in own))
        rows = [(key, *(own.get(key, _NONE) for own in facts)) for key in keys]
        differing = tuple(row for row in rows if len(set(row[1:])) > 1)
        if differing:
            section.tables.append(
                Table(caption=f"{caption}: what differs", head=("key", *names), rows=differing)
            )
        else:
            section.paragraphs.append(f"{caption}: nothing differs in {len(rows)} keys.")
    return section


def _figures(runs: Sequence[RunData], names: Sequence[str]) -> Section:
    section = Section(name="figures", title="Figures")
    verdicts = [run.verdict or {} for run in runs]
    rows: list[tuple[str, ...]] = [
        ("verdict", *(str(v.get("verdict") or run.manifest["status"]) for v, run in _both(runs))),
        ("result", *(str(v.get("result") or _NONE) for v in verdicts)),
        ("simulated", *("yes" if run.is_simulated else "no" for run in runs)),
    ]
    for key, digits in (
        ("tokens_per_second", 1),
        ("samples_per_second", 2),
        ("duration_s", 1),
        ("rouge1", 4),
        ("rouge2", 4),
        ("rougeL", 4),
        ("tokens_per_sample", 1),
    ):
        values = [v.get(key) for v in verdicts]
        rows.append((key.replace("_", " "), *(number(value, digits) for value in values)))
    cards = [run.accelerator[1] for run in runs]
    each = [
        v["tokens_per_second"] / count if count and v.get("tokens_per_second") else None
        for v, count in zip(verdicts, cards, strict=True)
    ]
    rows.append(("tokens/s of a card", *(number(value) for value in each)))
    joules = [tokens_per_joule(run.performance) if run.performance else None for run in runs]
    rows.append(("tokens per joule", *(number(value, 3) for value in joules)))
    rows.append(("tokens/s against the first", *_relative(verdicts[0], verdicts)))
    section.tables.append(
        Table(
            caption="Side by side",
            head=("figure", *names),
            rows=tuple(rows),
            numeric=tuple(range(1, len(names) + 1)),
        )
    )
    return section


def _both(runs: Sequence[RunData]) -> list[tuple[dict[str, object], RunData]]:
    return [(dict(run.verdict or {}), run) for run in runs]


def _relative(first: object, verdicts: Sequence[object]) -> list[str]:
    def rate(verdict: object) -> float | None:
        value = verdict.get("tokens_per_second") if isinstance(verdict, dict) else None
        return float(value) if value else None

    base = rate(first)
    found = []
    for verdict in verdicts:
        own = rate(verdict)
        found.append(_NONE if base is None or own is None else f"{own / base - 1:+.1%}")
    return found


def _speed(runs: Sequence[RunData], names: Sequence[str]) -> Section:
    section = Section(name="speed", title="Tokens/s over time")
    series = []
    for run, name in zip(runs, names, strict=True):
        xs, ys = rates(run.performance) if run.performance is not None else ([], [])
        if len(xs) > 1:
            series.append((name, xs, ys))
        else:
            section.missing.append(f"{name}: no timeline of a performance test.")
    if series:
        section.figures.append(
            lines_figure(
                "rates",
                "Tokens/s of the performance tests",
                summary="; ".join(f"{name}: at most {max(ys):,.0f}" for name, _, ys in series),
                axes=("seconds", "tokens/s made"),
                series=series,
            )
        )
    return section


def _latency(runs: Sequence[RunData], names: Sequence[str]) -> Section:
    section = Section(name="latency", title="Latency percentiles")
    rows, data = [], []
    for place, (run, name) in enumerate(zip(runs, names, strict=True)):
        test = run.performance
        points = latencies(test.log) if test is not None and test.log is not None else []
        if not points:
            section.missing.append(f"{name}: no latencies in a performance test's log.")
            continue
        xs, ys = [f"{p:g} %" for p, _ in points], [round(s, 4) for _, s in points]
        data.append({"type": "bar", "name": name, "x": xs, "y": ys, "meta": f"c{place % 8}"})
        rows += [(name, x, number(y, 3)) for x, y in zip(xs, ys, strict=True)]
    if data:
        table = Table(
            caption="Latency of a sample",
            head=("run", "percentile", "s"),
            rows=tuple(rows),
            numeric=(2,),
        )
        section.figures.append(
            plain_figure(
                "latencies",
                "Latency of a sample",
                summary=f"Percentiles of {len(data)} runs, in seconds.",
                axes=("percentile", "s"),
                data=data,
                table=table,
            )
        )
    return section


def _rouge(samples: Sequence[Samples], names: Sequence[str]) -> Section:
    section = Section(name="rouge", title="Scores of single samples")
    rows = []
    first = samples[0].frame
    for found, name in zip(samples, names, strict=True):
        frame = found.frame
        if frame is None:
            section.missing.append(f"{name}: no scores of single samples.")
            continue
        means = [float(frame[metric].mean()) * 100 for metric in ROUGES]
        differing = "-"
        if first is not None:
            both = first.merge(frame, on="sample_index", suffixes=("_first", ""))
            apart = np.abs(both["rouge1"] - both["rouge1_first"]) > 1e-12
            differing = f"{int(apart.sum()):,} of {len(both):,}"
        rows.append((name, *(number(mean, 4) for mean in means), differing))
    if rows:
        section.tables.append(
            Table(
                caption="Means in percent, and samples whose ROUGE-1 is not that of the first run",
                head=("run", *ROUGES, "differing from the first"),
                rows=tuple(rows),
                numeric=(1, 2, 3, 4),
            )
        )
    return section
