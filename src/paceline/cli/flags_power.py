"""The flags of `paceline power` and `paceline watch`, and those of `run` that are about power.

A module of flags imports nothing heavy, as `paceline --help` loads it.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated, Any

import typer

from paceline.cli.flags_shared import JsonOption

__all__ = [
    "CapOption",
    "LowerOption",
    "NodesOption",
    "power",
    "power_keys",
    "watch",
]

CapOption = Annotated[
    str | None,
    typer.Option(
        "--power-cap", metavar="10kW", help="Warn when the sum of power nears this (power.cap)."
    ),
]
LowerOption = Annotated[
    bool,
    typer.Option(
        "--lower-limits",
        help="Near the cap, lower the cards' power limits; back at the end. Needs root.",
    ),
]
NodesOption = Annotated[
    str | None,
    typer.Option(
        "--power-nodes",
        metavar="DIR",
        help="Where `paceline power --out DIR` of other nodes writes (power.nodes).",
    ),
]


def power_keys(cap: str | None, lower_limits: bool, nodes: str | None) -> dict[str, Any]:
    """The recipe's keys of the flags above; None for a flag that was not given."""
    return {"power.cap": cap, "power.lower_limits": lower_limits or None, "power.nodes": nodes}


def power(
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write power-HOST.jsonl there; none: show only."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="This node's name in the file; none: its host name.")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0.1, help="End after so long; none: at Ctrl-C or SIGTERM.")
    ] = None,
    redfish: Annotated[
        str | None, typer.Option(metavar="URL", help="BMC that tells the node's power.")
    ] = None,
    verify_tls: Annotated[
        bool, typer.Option("--verify-tls/--no-verify-tls", help="Check the BMC's certificate.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Read this node's power about once a second: cards, processors, the whole node.

    Exits 0 when something was read, 3 when nothing here tells watts.
    """
    importlib.import_module("paceline.cli.power_verbs").power(
        out, name=name, seconds=seconds, redfish=redfish, verify_tls=verify_tls, as_json=as_json
    )


def watch(
    run_dir: Annotated[Path, typer.Argument(help="A run directory.", metavar="DIR")],
    once: Annotated[bool, typer.Option("--once", help="Print one view and end.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, with --once: one object, else one a line.")
    ] = False,
    every: Annotated[float, typer.Option(min=0.2, help="Seconds between looks.")] = 1.0,
) -> None:
    """Watch a run from its directory, on any node that sees it.

    Ends when the run ends. Exits 0 when the run goes on or is complete, 1 when it has failed or
    stopped, 2 when the directory holds no run.
    """
    importlib.import_module("paceline.cli.watch_verbs").watch(
        run_dir, once=once, as_json=as_json, every_s=every
    )
