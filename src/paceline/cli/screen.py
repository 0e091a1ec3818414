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
        elif kind == "started":
            self._stage(f"{event['test']}: running")
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
    if fresh > 0 and left:
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


def table(rows: list[tuple[str, ...]]) -> str:
    """Columns aligned with spaces."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
