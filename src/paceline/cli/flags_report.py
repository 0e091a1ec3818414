"""The flags of `paceline report` and `paceline site`; what they do is in `report_verbs`.

A module of flags imports nothing heavy, as `paceline --help` loads it.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["report", "site"]


def _verbs() -> Any:
    return importlib.import_module("paceline.cli.report_verbs")


def report(
    run_dirs: Annotated[list[Path], typer.Argument(help="Run directories.")],
    out: Annotated[
        Path | None,
        typer.Option(help="The page to write; none: report.html in the run's directory."),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Put the runs side by side: what differs comes first.")
    ] = False,
) -> None:
    """Write one HTML page about runs: it holds all that it shows and needs no network."""
    _verbs().report(run_dirs, out, compare=compare)


def site(
    repository: Annotated[
        Path | None, typer.Argument(help="A repository of submissions.", metavar="RESULTS_REPO")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the site.")] = None,
    init: Annotated[
        Path | None,
        typer.Option(
            "--init", help="Write the GitHub workflows into this repository.", metavar="DIR"
        ),
    ] = None,
    package: Annotated[
        str | None, typer.Option(help="With --init: what pip installs; none: this version.")
    ] = None,
    branch: Annotated[str, typer.Option(help="With --init: the branch of the results.")] = "main",
) -> None:
    """Make a static site of the results in a repository, or its workflow files."""
    if init is not None:
        _verbs().site_init(init, package, branch, asked_too=[repository, out])
    else:
        _verbs().site(repository, out)
