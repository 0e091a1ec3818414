"""What `paceline report` and `paceline site` do."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from paceline.errors import InputError, MissingExtraError

__all__ = ["report", "site", "site_init"]


def _report() -> Any:
    """The report room, which needs the packages of the extra of its name."""
    try:
        return importlib.import_module("paceline.report")
    except ModuleNotFoundError as error:
        if error.name not in ("jinja2", "plotly"):
            raise
        raise MissingExtraError(
            f"Pages need the package {error.name}, which is not installed.",
            hint="pip install 'paceline[report]'",
        ) from error


def report(run_dirs: Sequence[Path], out: Path | None, *, compare: bool) -> None:
    """`paceline report`."""
    page = _report().build_report(run_dirs, out, compare=compare)
    typer.echo(f"{page}: {page.stat().st_size:,} bytes")


def site(repository: Path | None, out: Path | None) -> None:
    """`paceline site`."""
    if repository is None or out is None:
        raise InputError(
            "A site needs a repository and a folder.", hint="paceline site RESULTS_REPO --out DIR"
        )
    found = _report().build_site(repository, out)
    passing = sum(result.passed for result in found.results)
    typer.echo(f"{out / 'index.html'}: {len(found.results)} results, {passing} pass their check")
    for skipped in found.skipped:
        typer.echo(f"not shown: {skipped.path}: {skipped.reason}")


def site_init(
    repository: Path, package: str | None, branch: str, *, asked_too: Sequence[Path | None]
) -> None:
    """`paceline site --init`."""
    if any(path is not None for path in asked_too):
        raise InputError("--init writes workflow files and no site.", hint="one after the other")
    written = _report().init_workflows(repository, package=package, branch=branch)
    for path in written:
        typer.echo(path)
    if not written:
        typer.echo("The workflow files are there already.")
