"""The command line of `paceline mlcr`; what it does is in `mlcr_verbs`.

A module of flags imports nothing heavy, as `paceline --help` loads it.
"""

from __future__ import annotations

import importlib
import sys
from typing import Annotated

import typer

__all__ = ["mlcr"]

_SHOW = "--dry-run"


def mlcr(
    arguments: Annotated[
        list[str],
        typer.Argument(
            help="An mlcr command: run-mlperf,inference,... generate,inference,submission,... "
            "push,github,mlperf,inference,submission; process,mlperf,accuracy; "
            "get,dataset,openorca; get,ml-model,llama2-70b; each with its flags.",
            metavar="TAGS [--FLAG=VALUE]...",
        ),
    ],
    dry_run: Annotated[bool, typer.Option(_SHOW, help="Only print what it becomes.")] = False,
) -> None:
    """Follow a command of the MLC guide: print the paceline command it becomes, and run it.

    What the guide gets wrong is put right and said; a flag that cannot be followed is refused.
    """
    verbs = importlib.import_module("paceline.cli.mlcr_verbs")
    program = importlib.import_module("paceline.cli").app
    verbs.mlcr(arguments, lambda words: program(words, prog_name=sys.argv[0]), dry_run=dry_run)
