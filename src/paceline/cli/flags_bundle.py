"""The flags of `paceline bundle`; what it does is in `bundle_verbs`.

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
    ScenarioOption,
    SetOption,
)

__all__ = ["bundle"]


def bundle(
    out: Annotated[Path, typer.Option(help="Folder to fill.", metavar="DIR")],
    recipe: RecipeArgument = None,
    mode: ModeOption = None,
    engine: EngineOption = None,
    benchmark: BenchmarkOption = None,
    scenario: ScenarioOption = None,
    model: ModelOption = None,
    data: DataOption = None,
    overrides: SetOption = None,
    python: Annotated[
        str | None, typer.Option(help="Python of the far machine, as 3.12; none: this one.")
    ] = None,
    platform: Annotated[
        list[str] | None,
        typer.Option(help="Of the far machine, as manylinux_2_28_x86_64; may be given many times."),
    ] = None,
    extra: Annotated[
        list[str] | None,
        typer.Option(help="An extra of paceline besides what the engine needs; many times."),
    ] = None,
    constraints: Annotated[
        Path | None, typer.Option(help="The lock; none: constraints.txt of the source.")
    ] = None,
    wheels: Annotated[
        list[Path] | None,
        typer.Option(help="Take wheels from this folder, and from no index; many times."),
    ] = None,
    source: Annotated[
        Path | None, typer.Option(help="A checkout of paceline; none: the one that runs.")
    ] = None,
    files: Annotated[
        str, typer.Option(help="How model and data come in: copy, hardlink or symlink.")
    ] = "copy",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print every command and file; do nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Gather wheels, model, data and recipe for a machine that reaches no registry.

    There, `sh DIR/install.sh` verifies every file and installs it. The same command again goes on
    where it was left.
    """
    importlib.import_module("paceline.cli.bundle_verbs").bundle(
        recipe,
        out,
        flags={
            "run.mode": mode,
            "run.benchmark": benchmark,
            "run.scenario": scenario,
            "engine.name": engine,
            "model.path": model,
            "data.path": data,
        },
        overrides=overrides or [],
        asked={
            "python": python or "",
            "platforms": tuple(platform or ()),
            "extras": tuple(extra or ()),
            "constraints": constraints,
            "find_links": tuple(wheels or ()),
            "source": source,
            "how": files,
        },
        dry_run=dry_run,
        as_json=as_json,
    )
