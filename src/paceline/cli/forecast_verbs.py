"""What `paceline forecast` does."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from paceline import config
from paceline.cli.screen import Bar, RunScreen, table
from paceline.harness import loadgen
from paceline.operate import make_forecast
from paceline.submission.system_parse import size_text

__all__ = ["forecast"]

# Twice such an error is all of it.
_HALF = 0.5


def forecast(
    recipe: Path | None,
    *,
    flags: Mapping[str, Any],
    overrides: Sequence[str],
    seconds: float,
    out: Path | None,
    as_json: bool,
) -> None:
    """`paceline forecast`."""
    settings = config.read_settings(recipe, overrides, flags=flags)
    wheel = loadgen.wheel()
    resolved = config.resolve(settings, wheel.round)
    wheel.require(resolved.round)
    with (
        tempfile.TemporaryDirectory(prefix="paceline-forecast-") as scratch,
        Bar("starting") as bar,
    ):
        found = make_forecast(
            resolved,
            seconds=seconds,
            folder=out or Path(scratch),
            observer=RunScreen(bar).observe,
        )
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        _print(found)
    raise typer.Exit(1 if found["validity"]["result"] in ("INVALID", "UNCERTAIN") else 0)


def _print(found: Mapping[str, Any]) -> None:
    speed, sizing, validity = found["speed"], found["sizing"], found["validity"]
    typer.echo(
        f"{found['benchmark']}  {found['scenario']}  {found['engine']} engine, measured for "
        f"{found['measured_for_s']:g} s"
    )
    rows: list[tuple[str, ...]] = [
        (
            "  speed",
            (
                f"{speed['tokens_per_second']:,.4g} tokens/s{_error(speed['relative_error'])}, "
                f"{speed['samples_per_second']:,.4g} samples/s   {speed['how']}"
            ),
        ),
        ("  model load", _loads(found)),
    ]
    rows += _tests(found["tests"])
    rows.append(("  all of it", _all_of_it(found)))
    if sizing["min_duration_s"]:
        query = sizing["query_samples"]
        rows.append(
            (
                f"  {sizing['min_duration_s']:g} s need",
                f"{sizing['samples_needed']:,} samples; target_qps {sizing['target_qps']:g} "
                f"samples/s with margin" + (f" gives {query:,} samples" if query else ""),
            )
        )
    rows += [("  memory", text) for text in _memory(found["memory"])]
    if found["samples_note"]:
        rows.append(("  samples", found["samples_note"]))
    if found["crowding"]:
        rows.append(("  machine", f"{found['crowding']}: the times hold beside the like"))
    rows.append(("  energy", found["energy_note"]))
    rows.append(("  verdict", f"{validity['result']}: {validity['reason']}"))
    if validity["change"]:
        rows.append(("", f"Next: {validity['change']}"))
    typer.echo(table(rows))
    if found["submission_shortfalls"]:
        typer.echo(f"  NOT A SUBMISSION: {'; '.join(found['submission_shortfalls'])}.")


def _tests(tests: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    return [
        (
            f"  {name}",
            (
                f"{test['num_samples']:,} samples in {_time(test['seconds'])} "
                f"({_time(test['low_s'])} to {_time(test['high_s'])})   {test['how']}"
            ),
        )
        for name, test in tests.items()
    ]


def _all_of_it(found: Mapping[str, Any]) -> str:
    left = " and ".join(found["not_foretold"])
    if not found["tests"]:
        return f"not known: the time of {left} is not foretold"
    return f"{_time(found['wall_s'])}, without scoring" + (f" and {left}" if left else "")


def _loads(found: Mapping[str, Any]) -> str:
    times = "once for all tests" if found["num_loads"] < len(found["tests"]) else "for each test"
    return f"{found['load_s']:,.1f} s, {times}"


def _memory(memory: Mapping[str, Any]) -> list[str]:
    lines = []
    if memory["kv_pages"] is not None:
        lines.append(
            f"{memory['kv_used_fraction']:.0%} of {memory['kv_pages']:,} KV pages used by "
            f"{memory['live_sequences'] or 0:,} live sequences; {memory['preemptions']:,} "
            "preemptions"
        )
    lines += [
        f"gpu {card['index']}: {size_text(card['free_bytes'])} of "
        f"{size_text(card['memory_bytes'])} free with the engine full"
        for card in memory["cards"] or ()
        if card["free_bytes"] is not None and card["memory_bytes"] is not None
    ]
    lines.append(
        f"{size_text(memory['process_peak_bytes'])} of {size_text(memory['host_bytes'])} of the "
        "host, at most, by the engine's process"
    )
    return lines


def _error(relative: float | None) -> str:
    if relative is None:
        return ""
    return f" +/- {2 * relative:.1%}" if relative < _HALF else " +/- more than 100 %"


def _time(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
