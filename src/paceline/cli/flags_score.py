"""The flags of `paceline score`; what it does is in `score_verbs`.

A module of flags imports nothing heavy, as `paceline --help` loads it.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated

import typer

from paceline.cli.flags_shared import JsonOption

__all__ = ["score"]


def score(
    log: Annotated[
        Path, typer.Argument(help="mlperf_log_accuracy.json, whole, or the folder that holds it.")
    ],
    data: Annotated[Path, typer.Option(help="The dataset that the log answers.")],
    tokenizer: Annotated[
        Path, typer.Option(help="tokenizer.json, its folder (the checkpoint's), or a GGUF file.")
    ],
    benchmark: Annotated[
        str, typer.Option(help="Benchmark, whose targets are held against it.")
    ] = "llama2-70b-99.9",
    trust_pickle: Annotated[
        bool,
        typer.Option("--trust-pickle", help="Open a pickle whose checksum is not the published."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Compute the accuracy of anybody's accuracy log. Exits 1 when a target is missed."""
    importlib.import_module("paceline.cli.score_verbs").score(
        log,
        data=data,
        tokenizer=tokenizer,
        benchmark=benchmark,
        trust_pickle=trust_pickle,
        as_json=as_json,
    )
