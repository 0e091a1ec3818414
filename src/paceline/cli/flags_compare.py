"""The flags of `paceline compare`; what it does is in `compare_verbs`.

A module of flags imports nothing heavy, as `paceline --help` loads it.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated

import typer

from paceline.cli.flags_shared import JsonOption

__all__ = ["compare"]


def compare(
    a: Annotated[Path, typer.Argument(help="A run directory with an accuracy test.")],
    b: Annotated[Path, typer.Argument(help="Another, of the same samples.")],
    logits: Annotated[
        int,
        typer.Option(min=0, help="Samples on which both models' logits are compared; 0: none."),
    ] = 4,
    plot: Annotated[
        Path | None, typer.Option(help="Write the picture here (SVG).", metavar="FILE.svg")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Two precisions on the same prompts: scores, equal answers, and how far logits are apart.

    Exits 1 when B misses the accuracy gate of its benchmark.
    """
    importlib.import_module("paceline.cli.compare_verbs").compare(
        a, b, logits=logits, plot=plot, as_json=as_json
    )
