"""The flags of `paceline tune`; what it does is in `tune_verbs`.

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

__all__ = ["tune"]


def tune(
    recipe: RecipeArgument = None,
    budget: Annotated[
        str, typer.Option(help="Time for all of it, as 90s, 30m or 2h.", metavar="TIME")
    ] = "30m",
    trials: Annotated[
        int | None, typer.Option(min=1, help="Most trials; none: as the budget has it.")
    ] = None,
    trial_seconds: Annotated[
        float, typer.Option(min=0.5, help="How long a trial measures, once loaded.")
    ] = 20.0,
    pairs: Annotated[
        int, typer.Option(min=2, help="Pairs of measurements that confirm the best.")
    ] = 5,
    seed: Annotated[int, typer.Option(help="Of the search.")] = 0,
    search: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=A,B,C",
            help="Search these values of an engine's setting, and these settings only.",
        ),
    ] = None,
    accuracy_settings: Annotated[
        bool,
        typer.Option(
            "--accuracy-settings",
            help="Search precision too; what fails the accuracy gate makes way for the next best.",
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder; one that holds this search goes on.", metavar="DIR"),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the search in this folder.", metavar="DIR")
    ] = None,
    mode: ModeOption = None,
    engine: EngineOption = None,
    benchmark: BenchmarkOption = None,
    scenario: ScenarioOption = None,
    round_name: RoundOption = None,
    model: ModelOption = None,
    data: DataOption = None,
    trust_pickle: TrustOption = False,
    find_qps: Annotated[
        bool, typer.Option("--find-qps", help="As of the run that is tuned.")
    ] = False,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Search an engine's own settings for speed, and write a recipe if one is faster for sure.

    Exits 0 with a recipe, 1 when nothing beats the recipe's own settings by more than noise.
    """
    asked = {
        "recipe": None if recipe is None else str(recipe.resolve()),
        "flags": {
            "run.mode": mode,
            "engine.name": engine,
            "run.benchmark": benchmark,
            "run.scenario": scenario,
            "run.round": round_name,
            "model.path": model,
            "data.path": data,
            "data.trust_pickle": trust_pickle or None,
            "run.find_qps": find_qps or None,
        },
        "overrides": overrides or [],
        "search": search or [],
        "accuracy_settings": accuracy_settings,
    }
    importlib.import_module("paceline.cli.tune_verbs").tune(
        asked,
        out=out,
        resume=resume,
        limits={
            "budget": budget,
            "max_trials": trials,
            "trial_s": trial_seconds,
            "num_pairs": pairs,
            "seed": seed,
        },
        as_json=as_json,
    )
