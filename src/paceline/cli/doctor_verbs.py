"""What `paceline doctor` does."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

from paceline import config
from paceline.errors import LoadGenError
from paceline.harness import loadgen
from paceline.operate import Asked, Diagnosis, Finding, Request, asked, examine
from paceline.submission.system_host import this_host

__all__ = ["doctor"]

_STYLES = {"ok": "green", "warning": "yellow", "blocker": "bold red"}
_INDENT = " " * 10


def doctor(
    recipe: Path | None,
    *,
    flags: Mapping[str, Any],
    overrides: Sequence[str],
    out: Path,
    submitter: str | None,
    show_all: bool,
    as_json: bool,
) -> None:
    """`paceline doctor`."""
    request = Request(
        asked=_asked(recipe, flags, overrides),
        out=out,
        submitter=submitter,
        environment=os.environ,
    )
    found = examine(request, this_host())
    if as_json:
        typer.echo(json.dumps(found.as_json(), indent=1))
    else:
        _print(found, show_all=show_all)
    raise typer.Exit(1 if found.num_blockers else 0)


def _asked(recipe: Path | None, flags: Mapping[str, Any], overrides: Sequence[str]) -> Asked | None:
    """What is asked of the machine; None when nothing but the machine is."""
    if recipe is None and not overrides and not any(flags.values()):
        return None
    try:
        wheel_round = loadgen.wheel().round
    except LoadGenError:
        wheel_round = None  # a finding of its own
    settings = config.read_settings(recipe, overrides, flags=flags)
    return asked(settings, recipe=recipe, wheel_round=wheel_round)


def _print(found: Diagnosis, *, show_all: bool) -> None:
    # Lines are left whole: the commands in them are there to be copied.
    console = Console(highlight=False, soft_wrap=True)
    order = {"ok": 0, "warning": 1, "blocker": 2}
    for finding in sorted(found.findings, key=lambda one: order[one.level]):
        console.print(_line(finding))
        if finding.level != "ok" or show_all:
            console.print(Text(f"{_INDENT}why: {finding.why}"))
        if finding.mend is not None:
            console.print(Text(f"{_INDENT}mend: {finding.mend}", style="bold"))
    for name, reason in found.not_checked:
        console.print(Text(f"{'not seen':9} {name}: {reason}", style="dim"))
    _print_plan(console, found.plan)
    counts = found.as_json()
    console.print(
        Text(
            f"{len(found.findings)} findings: {counts['ok']} ok, "
            f"{_counted(counts['warnings'], 'warning')}, "
            f"{_counted(counts['blockers'], 'blocker')}; "
            f"{counts['unknown']} unknown; {len(found.not_checked)} not looked at"
        )
    )


def _counted(number: int, what: str, plural: str = "s", singular: str = "") -> str:
    return f"{number} {what}{singular if number == 1 else plural}"


def _line(finding: Finding) -> Text:
    line = Text(f"{finding.level:9} ", style=_STYLES[finding.level])
    line.append(f"{finding.name}: {finding.seen}", style="default")
    return line


def _print_plan(console: Console, plan: Mapping[str, Any] | None) -> None:
    if plan is None:
        return
    console.print(
        Text(
            f"plan      {plan['cards']}: {_counted(plan['replicas'], 'cop', 'ies', 'y')} over "
            f"{_counted(plan['tensor_parallel'], 'card')} each, {plan['precision']}, "
            f"{plan['live_sequences_per_replica']:,} live sequences a copy"
        )
    )
    rate = plan["tokens_per_second_at_best"]
    if rate is None:
        console.print(Text(f"{_INDENT}speed unknown: {plan['basis']}"))
    else:
        console.print(
            Text(
                f"{_INDENT}at best {rate:,} tokens/s ({plan['basis']}): the performance run takes "
                f"{plan['performance_hours_at_least']:.2f} h or more, the accuracy run as long"
            )
        )
    console.print(Text(f"{_INDENT}your own speed: {plan['measure']}"))
