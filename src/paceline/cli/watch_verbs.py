"""What `paceline watch` does."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from paceline.errors import RunDirError
from paceline.operate.watch import ENDED, View, look

__all__ = ["watch"]

_STYLES = {
    "COMPLETE": "bold green",
    "RUNNING": "bold cyan",
    "WAITING": "bold",
    "SILENT": "bold red",
    "INCOMPLETE": "bold red",
    "INTERRUPTED": "bold yellow",
}
_PARTS_SHOWN = 8
_NO_RUN = "no run has begun here yet"


def watch(run_dir: Path, *, once: bool, as_json: bool, every_s: float) -> None:
    """`paceline watch`."""
    view = look(run_dir)
    if once and view.status == "WAITING":
        raise RunDirError(
            f"{run_dir} holds no run: it has no manifest.json.",
            hint="give the directory that `paceline run` was told, or leave --once out to wait",
        )
    console = Console(highlight=False)
    try:
        if as_json:
            view = _print_json(run_dir, view, once=once, every_s=every_s)
        elif once or not console.is_terminal:
            view = _print_lines(console, run_dir, view, once=once, every_s=every_s)
        else:
            view = _show(console, run_dir, view, every_s=every_s)
    except KeyboardInterrupt:  # whoever watches has seen enough; the run goes on
        view = look(run_dir)
    raise typer.Exit(0 if view.status in ("RUNNING", "COMPLETE", "WAITING") else 1)


def _show(console: Console, run_dir: Path, view: View, *, every_s: float) -> View:
    with Live(_drawn(view), console=console, auto_refresh=False) as live:
        while view.status not in ENDED:
            time.sleep(every_s)
            view = look(run_dir)
            live.update(_drawn(view), refresh=True)
        live.update(_drawn(view), refresh=True)
    return view


def _print_lines(
    console: Console, run_dir: Path, view: View, *, once: bool, every_s: float
) -> View:
    """Without a terminal: the whole view once, or a line each time, for a log."""
    if once:
        console.print(_drawn(view))
        return view
    said = ""
    while view.status not in ENDED:
        line = _line(view)
        if view.status != "WAITING" or line != said:  # a night's waiting is one line
            typer.echo(line)
        said = line
        time.sleep(every_s)
        view = look(run_dir)
    console.print(_drawn(view))
    return view


def _print_json(run_dir: Path, view: View, *, once: bool, every_s: float) -> View:
    typer.echo(json.dumps(view.as_json(), indent=1 if once else None))
    while not once and view.status not in ENDED:
        time.sleep(every_s)
        view = look(run_dir)
        typer.echo(json.dumps(view.as_json()))
    return view


def _line(view: View) -> str:
    if view.status == "WAITING":
        return f"WAITING  {_NO_RUN}  {view.path}"
    parts = [view.status, view.test or "", view.stage or ""]
    if view.answered is not None:
        parts.append(f"{view.answered:,}/{view.issued:,} samples")
    if view.tokens_per_second is not None:
        parts.append(f"{view.tokens_per_second:,.0f} tokens/s")
    if view.eta_s is not None:
        parts.append(f"ETA {_duration(view.eta_s)}")
    if view.power_w is not None:
        parts.append(f"{view.power_w:,.0f} W")
    return "  ".join(filter(None, parts))


def _drawn(view: View) -> RenderableType:
    head = Text(f"{view.status}", style=_STYLES.get(view.status, "bold"))
    about = "  ".join(filter(None, (view.benchmark, view.scenario, view.engine)))
    head.append(f"  {about}  {view.path}", style="default")
    parts: list[RenderableType] = [head]
    if view.status == "WAITING":
        return Group(head, Text(_NO_RUN))
    if view.status == "SILENT":
        parts.append(
            Text(
                f"no sign of life for {_duration(view.age_s or 0)}: the run was killed, or its "
                f"node is gone\nNext: paceline run --resume {view.path}",
                style="red",
            )
        )
    if view.error:
        parts.append(Text(view.error, style="red"))
    figures = Table.grid(padding=(0, 2))
    for name, value in _figures(view):
        figures.add_row(Text(name, style="dim"), value)
    parts += [figures, *_parts_table(view), *_power_table(view)]
    return Group(*parts)


def _figures(view: View) -> list[tuple[str, Text]]:
    rows = [("tests", Text("  ".join(f"{n} {s}" for n, s in (view.tests or {}).items())))]
    if view.stage is not None:
        percent = "" if view.fraction is None else f" {view.fraction:.0%}"
        rows.append(("now", Text(f"{view.test}: {view.stage}{percent}")))
    if view.issued is not None and view.answered is not None:
        rows.append(("samples", _bar(view.answered, view.issued)))
    if view.elapsed_s is not None:
        left = "" if view.eta_s is None else f", ETA {_duration(view.eta_s)}"
        rows.append(("time", Text(f"{_duration(view.elapsed_s)}{left}")))
    rows += [(name, Text(said)) for name, said in _speeds(view)]
    if view.live_sequences is not None:
        rows.append(
            ("sequences", Text(f"{view.live_sequences:,} live, {view.waiting_sequences:,} waiting"))
        )
    if view.kv_used_fraction is not None:
        rows.append(("KV cache", Text(f"{view.kv_used_fraction:.1%} used")))
    elif view.live_sequences is not None:
        rows.append(("KV cache", Text("unknown")))
    if view.preemptions is not None:
        rows.append(("preemptions", Text(f"{view.preemptions:,}")))
    for name, value in (view.latencies_ms or {}).items():
        what, percentile = name.split("_")
        rows.append((f"{what.upper()} {percentile}", Text(f"{value:,.1f} ms")))
    if view.verdict is not None:
        result = [view.verdict["verdict"], view.verdict["result"], view.verdict["accuracy"]]
        rows.append(("verdict", Text("  ".join(filter(None, result)))))
    return rows


def _speeds(view: View) -> list[tuple[str, str]]:
    if view.tokens_per_second is not None:
        mean = view.tokens_per_second_mean or 0.0
        return [("tokens/s", f"{view.tokens_per_second:,.0f} of late, {mean:,.0f} so far")]
    over_test = view.tokens_per_second_mean
    if over_test is None:
        return []
    return [("tokens/s", f"{over_test:,.1f} over the {view.test} test")]


def _bar(done: int, total: int) -> Text:
    width = 30
    filled = round(width * done / total) if total else 0
    text = Text("#" * filled, style="cyan")
    text.append("." * (width - filled), style="dim")
    return text.append(f"  {done:,}/{total:,}", style="default")


def _parts_table(view: View) -> list[RenderableType]:
    """Copies, servers or replicas, the slowest first."""
    if not view.parts:
        return []
    table = Table(box=None, padding=(0, 2), header_style="dim")
    for title in ("part", "live", "answered", "tokens", ""):
        table.add_column(title, justify="left" if title in ("part", "") else "right")
    ordered = sorted(view.parts, key=lambda part: part["name"] != view.slowest)
    for part in ordered[:_PARTS_SHOWN]:
        mark = "slowest of late" if part["name"] == view.slowest else ""
        table.add_row(
            str(part["name"]),
            f"{part['live_sequences']:,}",
            _count(part.get("answered")),
            _count(part.get("tokens")),
            mark if part.get("is_up", True) else "away",
        )
    more = len(view.parts) - _PARTS_SHOWN
    return [table] if more <= 0 else [table, Text(f"and {more} more", style="dim")]


def _power_table(view: View) -> list[RenderableType]:
    if not view.power_readings:
        reason = "; ".join(view.power_unread)
        return [Text(f"power unknown{f': {reason}' if reason else ''}", style="dim")]
    table = Table(box=None, padding=(0, 2), header_style="dim")
    for title in ("power", "W", "limit", "MHz", "C", "throttled"):
        table.add_column(title, justify="left" if title in ("power", "throttled") else "right")
    hosts = {reading.get("host") for reading in view.power_readings}
    for reading in view.power_readings:
        where = f"{reading.get('host')} " if len(hosts) > 1 else ""
        table.add_row(
            f"{where}{reading['device']}",
            f"{reading['power_w']:,.0f}",
            _count(reading.get("limit_w")),
            _count(reading.get("clock_mhz")),
            _count(reading.get("temperature_c")),
            ", ".join(reading.get("throttles") or ()),
        )
    return [table, *_sum_line(view.power_w, view.cap, is_over=view.status in ENDED)]


def _sum_line(
    watts: float | None, cap: Mapping[str, Any] | None, *, is_over: bool
) -> list[RenderableType]:
    if watts is None:
        return []
    text = Text(f"{'mean of the test' if is_over else 'sum'} {watts:,.0f} W")
    if cap is not None:
        share = watts / cap["cap_w"]
        style = "red" if share > 1 else "yellow" if share >= 0.95 else "default"
        text.append(f"  {share:.0%} of the cap of {cap['cap_w']:,.0f} W", style=style)
        if cap["seconds_above"]:
            text.append(f"  {cap['seconds_above']:g} s above it", style="red")
    return [text]


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
