"""The flags of `paceline forecast`; what it does is in `forecast_verbs`.

A module of flags imports nothing heavy, as `paceline --help` loads it.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["forecast"]


def forecast(
    recipe: Annotated[
        Path | None, typer.Argument(help="A TOML recipe; none: the demo on the embedded model.")
    ] = None,
    mode: Annotated[
        str | None, typer.Option(help="performance, accuracy, all or submission (run.mode).")
    ] = None,
    engine: Annotated[str | None, typer.Option(help="Engine (engine.name).")] = None,
    benchmark: Annotated[str | None, typer.Option(help="Benchmark (run.benchmark).")] = None,
    scenario: Annotated[
        str | None, typer.Option(help="Offline, Server or Interactive (run.scenario).")
    ] = None,
    round_name: Annotated[
        str | None, typer.Option("--round", help="MLPerf round, as v6.1 (run.round).")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Checkpoint (model.path).")] = None,
    data: Annotated[str | None, typer.Option(help="Dataset (data.path).")] = None,
    trust_pickle: Annotated[
        bool,
        typer.Option(
            "--trust-pickle", help="Open a pickle whose checksum is not the published one."
        ),
    ] = False,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Set a key; may be given many times."),
    ] = None,
    find_qps: Annotated[
        bool, typer.Option("--find-qps", help="As of the run that is forecast.")
    ] = False,
    seconds: Annotated[
        float, typer.Option(min=1, help="How long to measure, once the model is loaded.")
    ] = 60.0,
    out: Annotated[
        Path | None, typer.Option(help="Keep the log here; none: it is removed.", metavar="DIR")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")] = False,
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
