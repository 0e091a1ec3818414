"""Flags that several verbs have: one name, one meaning, one help.

A module of flags imports nothing heavy, as `paceline --help` loads it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "BenchmarkOption",
    "DataOption",
    "EngineOption",
    "JsonOption",
    "ModeOption",
    "ModelOption",
    "RecipeArgument",
    "RoundOption",
    "ScenarioOption",
    "SetOption",
    "TrustOption",
]

RecipeArgument = Annotated[
    Path | None, typer.Argument(help="A TOML recipe; none: the demo on the embedded model.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set a key; may be given many times."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
BenchmarkOption = Annotated[
    str | None, typer.Option(help="Benchmark, as llama2-70b-99.9 (run.benchmark).")
]
ScenarioOption = Annotated[
    str | None, typer.Option(help="Offline, Server or Interactive (run.scenario).")
]
RoundOption = Annotated[
    str | None, typer.Option("--round", help="MLPerf round, as v6.1 (run.round).")
]
ModeOption = Annotated[
    str | None,
    typer.Option(help="performance, accuracy, compliance, all or submission (run.mode)."),
]
EngineOption = Annotated[str | None, typer.Option(help="Engine (engine.name).")]
ModelOption = Annotated[
    str | None, typer.Option(help="Checkpoint: Hugging Face folder or GGUF (model.path).")
]
DataOption = Annotated[
    str | None, typer.Option(help="Dataset: parquet or the published pickle (data.path).")
]
TrustOption = Annotated[
    bool,
    typer.Option("--trust-pickle", help="Open a pickle whose checksum is not the published one."),
]
