"""The flags of `paceline system` and `paceline submit`; what they do is in `submit_verbs`.

A module of flags imports nothing heavy, as `paceline --help` loads it.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated, Any

import typer

from paceline.cli.flags_shared import JsonOption

__all__ = ["submit", "system"]

FieldOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Give a field; may be given many times."),
]


def _verbs() -> Any:
    return importlib.import_module("paceline.cli.submit_verbs")


def system(
    descriptions: Annotated[
        list[Path] | None,
        typer.Argument(help="Descriptions to begin with; none: this host is described."),
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Join the descriptions' hosts into one system.")
    ] = False,
    file: Annotated[Path | None, typer.Option(help="A system.toml with fields to give.")] = None,
    overrides: FieldOption = None,
    out: Annotated[Path | None, typer.Option(help="Write the description to this file.")] = None,
    network: Annotated[
        bool, typer.Option("--network", help="With the fields of the network division.")
    ] = False,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="Describe every node of a Ray cluster: HOST:PORT, or auto."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Describe this host as a submission wants it; every field says where it is from."""
    options = {
        "file": file,
        "overrides": overrides or [],
        "network": network,
        "merge": merge,
        "ray": ray,
    }
    _verbs().describe_system(descriptions or [], options=options, out=out, as_json=as_json)


def submit(
    run_dirs: Annotated[list[Path], typer.Argument(help="Run directories of the result.")],
    submitter: Annotated[str, typer.Option(help="Name of the team or organisation.")],
    system_name: Annotated[
        str,
        typer.Option(
            "--system", help="File of `paceline system --out`, or a name: this host is described."
        ),
    ],
    division: Annotated[str, typer.Option(help="open, closed or network.")],
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    round_name: Annotated[
        str | None, typer.Option("--round", help="MLPerf round; none: that of the runs.")
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="Calibration document (Markdown).")
    ] = None,
    weights_dtype: Annotated[
        str, typer.Option(help="Type of the weights of a server that does not say it, as fp8.")
    ] = "",
    attempt: Annotated[
        int, typer.Option(min=1, help="Number of a contest's attempt, in cert-N-mlperf.*.")
    ] = 1,
    also_99: Annotated[
        bool, typer.Option("--also-99", help="Submit a 99.9 % result as the 99 % one too.")
    ] = False,
    rehearsal: Annotated[
        bool, typer.Option("--rehearsal", help="Take simulated and short runs, and say so.")
    ] = False,
    overrides: FieldOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a submission of runs: tree, check, tarball. Exits 1 when a rule is broken."""
    order = {
        "submitter": submitter,
        "division": division,
        "round": round_name,
        "calibration": calibration,
        "weights_dtype": weights_dtype,
        "attempt": attempt,
        "also_99": also_99,
        "is_rehearsal": rehearsal,
    }
    _verbs().submit(
        run_dirs,
        out,
        order=order,
        system_name=system_name,
        overrides=overrides or [],
        as_json=as_json,
    )
