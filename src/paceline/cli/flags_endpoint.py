"""The flags of `paceline preflight` and `paceline bench endpoint`; see `endpoint_verbs`.

A module of flags imports nothing heavy, as `paceline --help` loads it.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated, Any

import typer

from paceline.cli.flags_shared import JsonOption, SetOption

__all__ = ["bench_endpoint", "preflight"]


def _verbs() -> Any:
    return importlib.import_module("paceline.cli.endpoint_verbs")


def preflight(
    recipe: Annotated[Path | None, typer.Argument(help="A TOML recipe.")] = None,
    engine: Annotated[str, typer.Option(help="Engine (engine.name).")] = "endpoint",
    benchmark: Annotated[
        str | None, typer.Option(help="Benchmark, as llama2-70b-99.9 (run.benchmark).")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Checkpoint, for an engine that loads one (model.path).")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Dataset: parquet or the published pickle (data.path).")
    ] = None,
    overrides: SetOption = None,
    seconds: Annotated[
        float, typer.Option(min=0, help="How long to measure the speed; 0: only check.")
    ] = 30.0,
    as_json: JsonOption = False,
) -> None:
    """Check an engine, or the servers behind it, and predict its samples/s.

    Exits 1 when a check fails that engine.endpoint.preflight=warn lets pass.
    """
    flags = {
        "engine.name": engine if recipe is None or engine != "endpoint" else None,
        "run.benchmark": benchmark,
        "model.path": model,
        "data.path": data,
    }
    _verbs().preflight(
        recipe, flags=flags, overrides=overrides or [], seconds=seconds, as_json=as_json
    )


def bench_endpoint(
    requests: Annotated[int, typer.Option(min=1)] = 10000,
    tokens: Annotated[int, typer.Option(min=3, help="Tokens of each prompt and answer.")] = 300,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests in flight.")] = 256,
    as_json: JsonOption = False,
) -> None:
    """Requests/s of the endpoint engine against a local server that costs next to nothing."""
    _verbs().bench_endpoint(requests, tokens, concurrency=concurrency, as_json=as_json)
