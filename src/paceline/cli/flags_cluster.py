"""The flags of `paceline bench cluster`; what it does is in `cluster_verbs`.

A module of flags imports nothing heavy, as `paceline --help` loads it.
"""

from __future__ import annotations

import importlib
from typing import Annotated

import typer

from paceline.cli.flags_shared import JsonOption

__all__ = ["bench_cluster"]


def bench_cluster(
    replicas: Annotated[int, typer.Option(min=1, help="Paced replicas.")] = 64,
    per_actor: Annotated[int, typer.Option(min=1, help="Replicas in one process.")] = 1,
    samples: Annotated[int, typer.Option(min=1)] = 24576,
    seconds: Annotated[
        float, typer.Option(min=1.0, help="How long the run takes at the sum of the speeds.")
    ] = 180.0,
    concurrency: Annotated[int, typer.Option(min=1, help="Samples at once in a replica.")] = 2,
    kill: Annotated[float, typer.Option(help="Part of the processes that are killed.")] = 0.05,
    seed: Annotated[int, typer.Option(help="Which are slow, and when which are killed.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Part of the replicas' speed that a run gets on a real Ray, while some are killed."""
    importlib.import_module("paceline.cli.cluster_verbs").bench_cluster(
        options={
            "replicas": replicas,
            "per_actor": per_actor,
            "samples": samples,
            "seconds": seconds,
            "concurrency": concurrency,
            "kill_fraction": kill,
            "seed": seed,
        },
        as_json=as_json,
    )
