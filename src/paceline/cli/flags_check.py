"""The flags of `paceline check` and `paceline bench check`; what they do is in `check_verbs`.

A module of flags imports nothing heavy, as `paceline --help` loads it.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated, Any

import typer

from paceline.cli.flags_shared import JsonOption

__all__ = ["bench_check", "check"]


def _verbs() -> Any:
    return importlib.import_module("paceline.cli.check_verbs")


def check(
    tree: Annotated[
        Path, typer.Argument(help="The directory that holds closed/, open/, network/.")
    ],
    round_name: Annotated[
        str | None,
        typer.Option("--round", help="MLPerf round; none: the one whose seeds each log has."),
    ] = None,
    submitter: Annotated[str | None, typer.Option(help="Check this submitter only.")] = None,
    csv: Annotated[
        Path | None, typer.Option(help="Write the passing results as the official summary.csv.")
    ] = None,
    official: Annotated[
        Path | None,
        typer.Option(
            help="A checkout of mlcommons/inference: run its checker too, print disagreements.",
            metavar="DIR",
        ),
    ] = None,
    annotate: Annotated[
        bool, typer.Option("--annotate", help="Also print GitHub's annotations of a pull request.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check a submission tree. Exits 0 when nothing fails, 1 when something does."""
    _verbs().check(
        tree,
        round_name=round_name,
        submitter=submitter,
        csv=csv,
        official=official,
        annotate=annotate,
        as_json=as_json,
    )


def bench_check(
    directories: Annotated[int, typer.Option(min=2, help="Scenario directories.")] = 2000,
    as_json: JsonOption = False,
) -> None:
    """Seconds to check a made-up tree with logs of the real size."""
    _verbs().bench_check(directories, as_json=as_json)
