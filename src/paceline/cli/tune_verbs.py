"""What `paceline tune` does."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from paceline import config
from paceline.cli.screen import Bar, RunScreen, table
from paceline.cli.stopping import keeping
from paceline.errors import InputError
from paceline.harness import loadgen
from paceline.operate import Plan, knobs_of, search_speed
from paceline.operate.tuned import rejections
from paceline.rundir import write_atomically
from paceline.submission import system_nvml

__all__ = ["tune"]

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_SHOWN = 10


def tune(
    asked: Mapping[str, Any],
    *,
    out: Path | None,
    resume: Path | None,
    limits: Mapping[str, Any],
    as_json: bool,
) -> None:
    """`paceline tune`."""
    if resume is not None:
        asked, out = _kept(resume, asked), resume
    recipe = None if asked["recipe"] is None else Path(asked["recipe"])
    settings = config.read_settings(recipe, asked["overrides"], flags=asked["flags"])
    wheel_round = loadgen.wheel().round
    resolved = config.resolve(settings, wheel_round)
    if out is None:
        now = datetime.datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
        out = Path("runs") / f"tune-{now}-{resolved.benchmark}-{resolved.engine}"
    knobs = knobs_of(
        resolved,
        num_gpus=len(system_nvml.gpus()),
        choices=dict(_choices(text, resolved.engine_config) for text in asked["search"]),
        with_accuracy=asked["accuracy_settings"],
    )
    _keep(out, asked)
    plan = Plan(
        settings=settings,
        wheel_round=wheel_round,
        knobs=knobs,
        out=out,
        recipe=asked["recipe"] or "",
        budget_s=_seconds(limits["budget"]),
        **{name: limits[name] for name in ("trial_s", "max_trials", "num_pairs", "seed")},
    )
    when_stopped = keeping("What was measured is kept.", f"paceline tune --resume {out}")
    with when_stopped, Bar("starting") as bar:
        found = search_speed(plan, observer=RunScreen(bar).observe)
    write_atomically(out / "result.json", json.dumps(found, indent=1) + "\n")
    if as_json:
        typer.echo(json.dumps({**found, "out": str(out)}, indent=2))
    else:
        _print(found, out)
    raise typer.Exit(0 if found["recipe"] else 1)


def _keep(out: Path, asked: Mapping[str, Any]) -> None:
    """Note what is searched; a folder that holds another search is refused."""
    path = out / "tune.json"
    if path.exists() and json.loads(path.read_text()) != asked:
        raise InputError(
            f"{out} holds another search: its recipe or settings differ.",
            hint=f"paceline tune --resume {out}, or another --out",
        )
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(asked, indent=1) + "\n")


def _kept(folder: Path, asked: Mapping[str, Any]) -> Mapping[str, Any]:
    given = [name for name, value in asked.items() if name != "flags" and value]
    given += [name for name, value in asked["flags"].items() if value is not None]
    if given:
        raise InputError(
            f"--resume takes no {', '.join(given)}: the search keeps its own.",
            hint=f"paceline tune --resume {folder}",
        )
    path = folder / "tune.json"
    if not path.exists():
        raise InputError(f"{folder} holds no search.", hint="paceline tune RECIPE --out DIR")
    kept: dict[str, Any] = json.loads(path.read_text())
    return kept


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text.strip())
    if found is None:
        raise InputError(f"--budget {text}: not a time.", hint="as 90s, 30m or 2h")
    return float(found[1]) * _UNITS[found[2]]


def _choices(text: str, engine_config: Any) -> tuple[str, tuple[Any, ...]]:
    """NAME=A,B,C with values of the setting's own type."""
    name, equals, values = text.partition("=")
    name = name.strip().rpartition(".")[2]
    current = getattr(engine_config, name, None)
    words = [word.strip() for word in values.split(",") if word.strip()]
    if not equals or len(words) < 2:
        raise InputError(
            f"--search {text}: not of the form NAME=A,B,C with two values or more.",
            hint="--search max_live_sequences=64,256,1024",
        )
    try:
        if isinstance(current, bool):
            return name, tuple({"true": True, "false": False}[word.lower()] for word in words)
        if isinstance(current, int | float):
            return name, tuple(sorted(type(current)(word) for word in words))
    except (KeyError, ValueError) as error:
        raise InputError(f"--search {text}: {error} is no value of {name}.") from error
    return name, tuple(words)


def _print(found: Mapping[str, Any], out: Path) -> None:
    trials = sorted(found["trials"], key=lambda one: -one["tokens_per_second"])
    rows: list[tuple[str, ...]] = [("tokens/s", "trial", *found["space"])]
    rows += [
        (
            f"{one['tokens_per_second']:,.1f}" if one["how"] == "ok" else one["how"],
            str(one["number"]) + (" (default)" if one["number"] == 0 else ""),
            *(str(value) for value in one["values"].values()),
        )
        for one in trials[:_SHOWN]
    ]
    typer.echo(table(rows))
    counts = ", ".join(f"{count} {how}" for how, count in found["counts"].items())
    trials_made = "1 trial" if found["num_trials"] == 1 else f"{found['num_trials']} trials"
    typer.echo(f"{trials_made} of {found['space_size']:,} settings: {counts}")
    for line in rejections(found):
        typer.echo(line)
    judged = found["confirmation"]
    if judged is not None and judged["gain"] is not None:
        bounds = (
            ""
            if judged["gain_low"] is None
            else f" (95 % interval {judged['gain_low']:+.1%} to {judged['gain_high']:+.1%})"
        )
        typer.echo(
            f"best against default: {judged['gain']:+.1%}{bounds}, faster in "
            f"{judged['num_faster']} of {len(judged['pairs'])} pairs"
        )
    typer.echo(f"outcome: {found['outcome']}")
    if found["recipe"]:
        typer.echo(f"paceline run {found['recipe']}")
    else:
        typer.echo(f"no recipe was written; what was tried is in {out}")
