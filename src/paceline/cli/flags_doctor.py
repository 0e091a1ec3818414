"""The flags of `paceline doctor`; what it does is in `doctor_verbs`.

A module of flags imports nothing heavy, as `paceline --help` loads it.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated

import typer

from paceline.cli.flags_shared import (
    BenchmarkOption,
    DataOption,
    EngineOption,
    JsonOption,
    ModelOption,
    ModeOption,
    RoundOption,
    ScenarioOption,
    SetOption,
    TrustOption,
)

__all__ = ["doctor"]


def doctor(
    recipe: Annotated[
        Path | None, typer.Argument(help="A TOML recipe; none: the machine alone.")
    ] = None,
    mode: ModeOption = None,
    benchmark: BenchmarkOption = None,
    scenario: ScenarioOption = None,
    round_name: RoundOption = None,
    engine: EngineOption = None,
    model: ModelOption = None,
    data: DataOption = None,
    trust_pickle: TrustOption = False,
    find_qps: Annotated[
        bool, typer.Option("--find-qps", help="As of the run that is asked about.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Where runs will be written.", metavar="DIR")] = Path(
        "runs"
    ),
    submitter: Annotated[
        str | None, typer.Option(help="Whether this can be the submitter's name.")
    ] = None,
    overrides: SetOption = None,
    show_all: Annotated[
        bool, typer.Option("--all", help="Say of what is well why it matters, too.")
    ] = False,
    as_json: JsonOption = False,
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
