"""The flags of `paceline doctor`; what it does is in `doctor_verbs`.

A module of flags imports nothing heavy, as `paceline --help` loads it.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["doctor"]


def doctor(
    recipe: Annotated[
        Path | None, typer.Argument(help="A TOML recipe; none: the machine alone.")
    ] = None,
    mode: Annotated[
        str | None, typer.Option(help="performance, accuracy, all or submission (run.mode).")
    ] = None,
    benchmark: Annotated[str | None, typer.Option(help="Benchmark (run.benchmark).")] = None,
    scenario: Annotated[
        str | None, typer.Option(help="Offline, Server or Interactive (run.scenario).")
    ] = None,
    round_name: Annotated[
        str | None, typer.Option("--round", help="MLPerf round, as v6.1 (run.round).")
    ] = None,
    engine: Annotated[str | None, typer.Option(help="Engine (engine.name).")] = None,
    model: Annotated[str | None, typer.Option(help="Checkpoint (model.path).")] = None,
    data: Annotated[str | None, typer.Option(help="Dataset (data.path).")] = None,
    trust_pickle: Annotated[
        bool,
        typer.Option(
            "--trust-pickle", help="Open a pickle whose checksum is not the published one."
        ),
    ] = False,
    find_qps: Annotated[
        bool, typer.Option("--find-qps", help="As of the run that is asked about.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Where runs will be written.", metavar="DIR")] = Path(
        "runs"
    ),
    submitter: Annotated[
        str | None, typer.Option(help="Whether this can be the submitter's name.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Set a key; may be given many times."),
    ] = None,
    show_all: Annotated[
        bool, typer.Option("--all", help="Say of what is well why it matters, too.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")] = False,
) -> None:
    """Look at the machine, and at what a recipe needs of it, before anything long starts.

    Exits 0 when nothing blocks the run, 1 when something does, 2 when the recipe cannot be used.
    """
    importlib.import_module("paceline.cli.doctor_verbs").doctor(
        recipe,
        flags={
            "run.mode": mode,
            "run.benchmark": benchmark,
            "run.scenario": scenario,
            "run.round": round_name,
            "engine.name": engine,
            "model.path": model,
            "data.path": data,
            "data.trust_pickle": trust_pickle or None,
            "run.find_qps": find_qps or None,
        },
        overrides=overrides or [],
        out=out,
        submitter=submitter,
        show_all=show_all,
        as_json=as_json,
    )
