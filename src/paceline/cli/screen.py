"""Progress and results as people see them.

Progress goes to standard error, results to standard output. On a terminal progress is one
moving line; elsewhere it is a plain line every few seconds, so that a log of a batch job stays
readable.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import typer

__all__ = ["Bar", "RunScreen", "table", "verdict_text"]

_PLAIN_EVERY_S = 5.0


class Bar:
    """A progress bar on a terminal, plain lines elsewhere. Use it as a context manager."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._printed_s = -_PLAIN_EVERY_S
        self._progress: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=30),
                TextColumn("{task.fields[figures]}"),
                console=Console(stderr=True),
                transient=True,
            )
            self._progress.start()
            self._task = self._progress.add_task(self._what, total=None, figures="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def stage(self, what: str) -> None:
        """Something new begins."""
        self._what = what
        if self._progress is not None:
            self._progress.update(self._task, description=what, total=None, completed=0, figures="")
        else:
            typer.echo(what, err=True)
            self._printed_s = time.monotonic()

    def note(self, text: str) -> None:
        """A line that stays."""
        if self._progress is not None:
            self._progress.console.print(text, highlight=False)
        else:
            typer.echo(text, err=True)

    def update(self, done: float, total: float | None, figures: str) -> None:
        """So much of it is done."""
        if self._progress is not None:
            self._progress.update(self._task, completed=done, total=total, figures=figures)
        elif time.monotonic() - self._printed_s >= _PLAIN_EVERY_S:
            self._printed_s = time.monotonic()
            typer.echo(f"{self._what}: {figures}", err=True)


class RunScreen:
    """Shows the events of a run; give its `observe` to harness.run."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._shown = ""

    def observe(self, event: Mapping[str, Any]) -> None:
        kind = event["event"]
        if kind == "stage":
            self._stage(str(event["what"]))
        elif kind == "loading":
            self._stage(f"{event['test']}: {event['what']}")
            if event["fraction"] is not None:
                self._bar.update(event["fraction"], 1.0, f"{event['fraction']:.0%}")
        elif kind == "started" and event["test"] != "find_qps":
            self._stage(f"{event['test']}: running")
        elif kind == "probing":
            rate = event["target_qps"]
            what = "Offline" if rate is None else f"{rate:g} samples/s"
            self._stage(f"{event['test']}: probe {event['number']}, {what}")
        elif kind in ("probe", "note"):
            self._bar.note(str(event["text"]))
        elif kind == "scoring":
            self._bar.update(event["done"], event["total"], f"{event['done']}/{event['total']}")
        elif kind == "progress":
            self._bar.update(event["answered"], event["issued"] or None, _figures(event))
        elif kind == "finished":
            self._finished(event)

    def _stage(self, what: str) -> None:
        if what != self._shown:
            self._shown = what
            self._bar.stage(what)

    def _finished(self, event: Mapping[str, Any]) -> None:
        if event["resumed"]:
            typer.echo(
                f"{event['test']}: {event['resumed']} samples were finished before and kept",
                err=True,
            )
        if event["torn_lines"]:
            typer.echo(
                f"{event['test']}: {event['torn_lines']} journal line(s) cut short by a crash; "
                "their samples ran again",
                err=True,
            )


def _figures(event: Mapping[str, Any]) -> str:
    elapsed_s = event["elapsed_s"]
    fresh = event["answered"] - event["resumed"]
    rate = event["made"] / elapsed_s if elapsed_s else 0.0
    text = f"{event['answered']}/{event['issued']} samples  {rate:,.0f} tokens/s"
    left = event["issued"] - event["answered"]
    latencies = [name for name in event if name.startswith(("ttft_p", "tpot_p"))]
    for name in latencies:
        what, percentile, _ = name.split("_")
        text += f"  {percentile} {what.upper()} {event[name]:,.0f} ms"
    # Where samples come at a rate, what is issued says nothing of what is still to come.
    if fresh > 0 and left and not latencies:
        text += f"  ETA {_duration(left * elapsed_s / fresh)}"
    return text


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def verdict_text(verdict: Mapping[str, Any], run_dir: str) -> str:
    """A verdict in a few lines, every figure with its bound."""
    lines = [f"{verdict['benchmark']}  {verdict['scenario']}  {verdict['engine']} engine"]
    if verdict["result"] is not None:
        lines.append(
            f"  performance  {verdict['result']:7}  {verdict['tokens_per_second']:,.1f} tokens/s  "
            f"{verdict['samples_per_second']:,.2f} samples/s  in {verdict['duration_s']:,.1f} s"
            if verdict["tokens_per_second"] is not None
            else f"  performance  {verdict['result']:7}"
        )
        lines += _latency_lines(verdict)
    if verdict.get("find_qps") is not None:
        found = verdict["find_qps"]
        lines.append(
            f"    found {found['found_qps']:g} samples/s by {found['num_probes']} probes; "
            f"attempt {len(found['attempts'])} at a margin of {found['margin']:.0%}"
        )
    if verdict["accuracy"] is not None:
        lines.append(f"  accuracy     {verdict['accuracy']}")
        for metric, bound in verdict["targets"].items():
            high = f" and <= {bound['high']:.4f}" if bound["high"] is not None else ""
            lines.append(
                f"    {metric:17} {verdict[metric]:>9.4f}   target >= {bound['low']:.4f}{high}"
            )
    if verdict.get("compliance") is not None:
        lines.append(f"  compliance   {verdict['compliance']}   TEST06")
    lines += _power_lines(verdict.get("power"))
    lines += [
        f"  FAIL {finding['rule']}: {finding['detail']}"
        for finding in verdict["findings"]
        if not finding["passed"]
    ]
    lines += [f"  note: {note}" for note in verdict.get("notes", ())]
    lines.append(f"  verdict      {verdict['verdict']}")
    if verdict["shortfalls"]:
        lines.append(f"  THIS RUN IS NOT A SUBMISSION: {'; '.join(verdict['shortfalls'])}.")
    lines.append(f"  run directory: {run_dir}")
    return "\n".join(lines)


def _latency_lines(verdict: Mapping[str, Any]) -> list[str]:
    """Rate and latencies of a latency-bound scenario, each beside what it is held to."""
    limits_ms = verdict.get("latency_limits_ms")
    if limits_ms is None:
        return []
    scheduled = verdict["scheduled_samples_per_second"]
    percentile = f"p{verdict['latency_percentile']}"
    lines = [f"    target {verdict['target_qps']:g} samples/s, scheduled {_plain(scheduled)}"]
    for name, limit_ms in limits_ms.items():
        found_ms = _plain(verdict[f"{name}_{percentile}_ms"])
        lines.append(f"    {percentile} {name.upper():13} {found_ms} ms   limit < {limit_ms:g} ms")
    return lines


def _power_lines(power: Mapping[str, Any] | None) -> list[str]:
    """What the test drew, and of what; or why that is unknown."""
    if power is None:
        return []
    if not power["known"]:
        return [f"  power        unknown ({power['reason']})"]
    summed = [device for device in power["devices"] if device["in_sum"]]
    scopes = [device["scope"] for device in summed]
    counts = [f"{scopes.count(scope)} {scope}" for scope in dict.fromkeys(scopes)]
    rate = power["tokens_per_joule"]
    each = "" if rate is None else f"  {rate:,.3f} tokens/J"
    said = (
        f"  power        mean {power['mean_w']:,.0f} W, peak {power['peak_w']:,.0f} W, "
        f"{power['energy_joules']:,.0f} J in the {power['test']} test{each}  (of: "
        f"{', '.join(counts)})"
    )
    return [said] + [
        f"    {device['host']} {device['device']}: not read for {device['gap_s']:g} s of it"
        for device in power["devices"]
        if device["gap_s"]
    ]


def _plain(value: float | None) -> str:
    return "none" if value is None else f"{value:>9.2f}"


def table(rows: list[tuple[str, ...]]) -> str:
    """Columns aligned with spaces."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
