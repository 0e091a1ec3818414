"""The flags of `paceline forecast`; what it does is in `forecast_verbs`.

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
    RecipeArgument,
    RoundOption,
    ScenarioOption,
    SetOption,
    TrustOption,
)

__all__ = ["forecast"]


def forecast(
    recipe: RecipeArgument = None,
    mode: ModeOption = None,
    engine: EngineOption = None,
    benchmark: BenchmarkOption = None,
    scenario: ScenarioOption = None,
    round_name: RoundOption = None,
    model: ModelOption = None,
    data: DataOption = None,
    trust_pickle: TrustOption = False,
    overrides: SetOption = None,
    find_qps: Annotated[
        bool, typer.Option("--find-qps", help="As of the run that is forecast.")
    ] = False,
    seconds: Annotated[
        float, typer.Option(min=1, help="How long to measure, once the model is loaded.")
    ] = 60.0,
    out: Annotated[
        Path | None, typer.Option(help="Keep the log here; none: it is removed.", metavar="DIR")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the engine for a minute and say how long the run takes, and whether it is VALID.

    Exits 1 when the run as configured would not be VALID, or might not be.
    """
    flags = {
        "run.mode": mode,
        "run.benchmark": benchmark,
        "run.scenario": scenario,
        "run.round": round_name,
        "engine.name": engine,
        "model.path": model,
        "data.path": data,
        "data.trust_pickle": trust_pickle or None,
        "run.find_qps": find_qps or None,
    }
    importlib.import_module("paceline.cli.forecast_verbs").forecast(
        recipe, flags=flags, overrides=overrides or [], seconds=seconds, out=out, as_json=as_json
    )
