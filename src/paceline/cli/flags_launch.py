"""The flags of `paceline launch`; what it does is in `launch_verbs`.

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
    ModelOption,
    ModeOption,
    RoundOption,
    ScenarioOption,
    SetOption,
    TrustOption,
)

__all__ = ["launch"]


def launch(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[local|slurm|pbs] [IMAGE] [RECIPE.toml] | follow JOB_DIR",
            help="Where, with --container the image, and a TOML recipe (none: the demo).",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run directory; none: runs/TIME-BENCHMARK-ENGINE.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Finish the run in this directory.", metavar="DIR")
    ] = None,
    mode: ModeOption = None,
    engine: EngineOption = None,
    benchmark: BenchmarkOption = None,
    scenario: ScenarioOption = None,
    round_name: RoundOption = None,
    model: ModelOption = None,
    data: DataOption = None,
    trust_pickle: TrustOption = False,
    find_qps: Annotated[
        bool, typer.Option("--find-qps", help="Search the highest rate that stays VALID.")
    ] = False,
    overrides: SetOption = None,
    container: Annotated[
        str | None, typer.Option(help="apptainer, podman or docker; none: no container.")
    ] = None,
    image: Annotated[
        str | None, typer.Option(help="The image, when it does not stand among the words.")
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(help="cuda, rocm or none, for a container; none: what is here or asked for."),
    ] = None,
    bind: Annotated[
        list[Path] | None,
        typer.Option(help="Another path to read in the container; may be given many times."),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(help="Home in the container, for compiled kernels; ~/.cache/paceline."),
    ] = None,
    nodes: Annotated[int | None, typer.Option(help="Nodes of the job; 1.")] = None,
    gpus_per_node: Annotated[
        str | None, typer.Option(help="GPUs of each node: 8, or h100:8.")
    ] = None,
    cpus_per_node: Annotated[
        int | None, typer.Option(min=1, help="Cores of each node; all, when exclusive.")
    ] = None,
    memory: Annotated[str | None, typer.Option("--mem", help="Memory of each node: 500G.")] = None,
    time: Annotated[
        str | None, typer.Option(help="Limit: HH:MM:SS, minutes, or days-hours.")
    ] = None,
    account: Annotated[str | None, typer.Option(help="Account that pays.")] = None,
    partition: Annotated[str | None, typer.Option(help="Slurm's partition, PBS's queue.")] = None,
    qos: Annotated[str | None, typer.Option(help="Slurm's quality of service.")] = None,
    job_name: Annotated[str | None, typer.Option(help="The job's name; paceline.")] = None,
    shared: Annotated[
        bool, typer.Option("--shared", help="Let other jobs onto the nodes: not for a result.")
    ] = False,
    setup: Annotated[
        list[str] | None,
        typer.Option(help="A line of shell before the run, as `module load cuda`; many times."),
    ] = None,
    directive: Annotated[
        list[str] | None,
        typer.Option(help="A line for the scheduler, as `--reservation=x`; many times."),
    ] = None,
    ray_port: Annotated[
        int | None, typer.Option(help="Port of Ray's head; none: of the job's number.")
    ] = None,
    submit: Annotated[
        bool, typer.Option("--submit", help="Submit the job, and follow it to its verdict.")
    ] = False,
    every_s: Annotated[
        float, typer.Option("--every", min=0.2, help="Seconds between two looks at a job.")
    ] = 5.0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print every command and file; do nothing.")
    ] = False,
) -> None:
    """Run elsewhere: in a container, as a Slurm or PBS job on one node or many, or both.

    `slurm` and `pbs` write a batch file beside the run directory; --submit submits and follows it.
    `follow` looks at a job again. Without a scheduler, --container runs it right here.
    """
    importlib.import_module("paceline.cli.launch_verbs").launch(
        words or [],
        run={
            "out": out,
            "resume": resume,
            "overrides": overrides or [],
            "flags": {
                "run.mode": mode,
                "run.benchmark": benchmark,
                "run.scenario": scenario,
                "run.round": round_name,
                "engine.name": engine,
                "model.path": model,
                "data.path": data,
                "data.trust_pickle": trust_pickle or None,
                "run.find_qps": find_qps or None,
            },
        },
        container={
            "container": container,
            "image": image,
            "gpu": gpu,
            "bind": bind or None,
            "cache": cache,
        },
        job={
            "nodes": nodes,
            "gpus_per_node": gpus_per_node,
            "cpus_per_node": cpus_per_node,
            "memory": memory,
            "time": time,
            "account": account,
            "partition": partition,
            "qos": qos,
            "job_name": job_name,
            "exclusive": False if shared else None,
            "setup": tuple(setup) if setup else None,
            "directives": tuple(directive) if directive else None,
            "ray_port": ray_port,
        },
        submits=submit,
        every_s=every_s,
        dry_run=dry_run,
    )
