"""Each figure of a result with the formula behind it and the numbers put into it.

A reader who doubts a figure can redo it from this table: the numbers are those of LoadGen's detail
log, of the manifest and of scores.parquet, and where a figure can be computed a second time from
other numbers it is, and a difference is said.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from paceline.mlperf import rules
from paceline.power import summarise
from paceline.report.blocks import Table, number
from paceline.report.rundata import RunData, TestData, number_of

__all__ = ["energy_joules", "formulas", "power_figures", "tokens_per_joule"]

# LoadGen prints six digits; two ways to the same figure differ by no more.
_SAME = 1e-3


def formulas(run: RunData) -> Table:
    """The table "figure, value, formula, with the numbers"."""
    rows = [*_speed(run), *_power(run), *_accuracy(run)]
    return Table(
        caption="The figures and how they come about",
        head=("figure", "value", "formula", "with the numbers of this run"),
        rows=tuple(rows),
        numeric=(1,),
    )


def power_figures(test: TestData) -> dict[str, Any] | None:
    """What `paceline.power` makes of the readings, in the test's timed window.

    Readings of a test whose process did not say when its window was are taken from end to end.
    """
    if not test.power:
        return None
    times = [point.t_s for point in test.power]
    window = test.facts.get("window_s")
    start_s, end_s = window if isinstance(window, list) else (min(times), max(times))
    return summarise([asdict(point) for point in test.power], float(start_s), float(end_s))


def energy_joules(test: TestData) -> float | None:
    """Energy of the test's timed window: power over time by the trapezoid rule."""
    figures = power_figures(test)
    return figures["energy_joules"] if figures and figures["energy_joules"] > 0 else None


def tokens_per_joule(test: TestData) -> float | None:
    """Tokens of the test for each joule; None without a power series."""
    joules, tokens = energy_joules(test), test.facts.get("tokens")
    return None if joules is None or not tokens else float(tokens) / joules


def _speed(run: RunData) -> list[tuple[str, ...]]:
    test, verdict = run.performance, run.verdict
    if test is None or verdict is None or test.log is None:
        return []
    seconds = number_of(test.log, "result_max_latency_ns")
    tokens = test.facts.get("tokens")
    offline = run.config["scenario"] == "Offline"
    value = verdict.get("tokens_per_second")
    rows: list[tuple[str, ...]] = []
    if offline and seconds is not None and tokens is not None:
        seconds *= 1e-9
        own = tokens / seconds
        said = f"{tokens:,} tokens / {seconds:,.3f} s = {own:,.1f}"
        if value is not None and abs(own - value) > _SAME * value:
            said += f"; LoadGen says {value:,.1f}"
        formula = "tokens returned / time to the last completion (result_max_latency_ns)"
        rows.append(("tokens/s", number(value), formula, said))
    else:
        formula = "tokens of completed queries / time to the last completion"
        key = "result_tokens_per_second" if offline else "result_completed_tokens_per_second"
        rows.append(("tokens/s", number(value), formula, f"{key} of LoadGen's detail log"))
    count = "generated_samples_per_query" if offline else "result_query_count"
    samples = number_of(test.log, count)
    rate = verdict.get("samples_per_second")
    said = "of LoadGen's detail log" if samples is None else f"{samples:,.0f} samples ({count})"
    rows.append(("samples/s", number(rate, 2), "samples completed / the same time", said))
    name, cards = run.accelerator
    if cards and value is not None:
        said = f"{value:,.1f} / {cards} x {name}"
        rows.append(("tokens/s of a card", number(value / cards), "tokens/s / cards", said))
    return rows


def _power(run: RunData) -> list[tuple[str, ...]]:
    test = run.performance
    joules = None if test is None else energy_joules(test)
    if test is None or joules is None:
        return []
    tokens = test.facts.get("tokens") or 0
    rate = tokens_per_joule(test)
    return [
        (
            "energy",
            f"{joules:,.0f} J",
            "integral of power from the first query to the last answer, summed over hosts",
            "power.jsonl",
        ),
        (
            "tokens/J",
            number(rate, 3),
            "tokens returned / energy",
            f"{tokens:,} / {joules:,.0f} J",
        ),
    ]


def _accuracy(run: RunData) -> list[tuple[str, ...]]:
    verdict = run.verdict or {}
    rows: list[tuple[str, ...]] = []
    targets = verdict.get("targets", {})
    count = run.config["num_samples"]
    for metric in rules.ACCURACY_METRICS:
        value, bound = verdict.get(metric), targets.get(metric)
        if value is None or bound is None:
            continue
        high = f" and at most {bound['high']:.4f}" if bound["high"] is not None else ""
        limit = f"at least {bound['low']:.4f}{high}"
        if metric == "tokens_per_sample":
            accuracy = run.tests.get("accuracy")
            tokens = None if accuracy is None else accuracy.facts.get("tokens")
            formula = "tokens of all answers / samples, to one digit"
            said = f"{tokens:,} / {count:,}; {limit}" if tokens else limit
        else:
            formula = "100 x mean over samples of F = 2PR / (P + R)"
            said = f"{count:,} samples; {limit}"
        rows.append((metric, number(value, 4), formula, said))
    return rows
