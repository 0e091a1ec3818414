"""What `paceline serve` does."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from paceline import config
from paceline.cli.screen import Bar
from paceline.errors import MissingExtraError

if TYPE_CHECKING:
    from paceline.serve.completions import Served

__all__ = ["serve"]


def serve(
    recipe: Path | None,
    *,
    flags: Mapping[str, Any],
    overrides: Sequence[str],
    options: Mapping[str, Any],
) -> None:
    """Serve until a signal. The address goes to standard output, all else to standard error."""
    try:
        from paceline import serve as room
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"Serving needs the package {error.name}.",
            hint="pip install 'paceline[serve]' -c constraints.txt",
        ) from error
    logging.basicConfig(
        level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(message)s"
    )
    if recipe is None:
        overrides = ["engine.name=native", *overrides]
    choice = config.resolve_engine(config.read_settings(recipe, overrides, flags=flags))
    key = os.environ.get("PACELINE_SERVE_API_KEY") or None
    with Bar("starting") as bar:
        stage = ""

        def report(what: str, fraction: float | None) -> None:
            nonlocal stage
            if what != stage:
                stage = what
                bar.stage(what)
            elif fraction is not None:
                bar.update(fraction, 1.0, f"{fraction:.0%}")

        def ready(url: str, served: Served) -> None:
            simulated = ", SIMULATED: it runs no model" if served.is_simulated else ""
            bar.stage(f"{served.engine} engine{simulated}; {served.max_model_len} tokens a request")
            typer.echo(f"serving {served.model} at {url}/v1")

        room.serve(choice, room.ServeOptions(**options, api_key=key), report=report, on_ready=ready)
    typer.echo("stopped", err=True)
