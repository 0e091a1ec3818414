"""What `paceline report` and `paceline site` do."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from paceline.errors import MissingExtraError

__all__ = ["report"]


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
