"""`paceline system` and `paceline submit`: from a host and its runs to a checked tarball."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from paceline.cli.screen import table
from paceline.errors import InputError
from paceline.rundir import write_atomically
from paceline.submission import system
from paceline.submission.check import check_tree
from paceline.submission.submit import Order, package, prepare, write_tree
from paceline.submission.system_cluster import describe_cluster
from paceline.submission.system_host import this_host

__all__ = ["describe_system", "submit"]

_SHOWN_FAILURES = 40


def describe_system(
    paths: Sequence[Path], *, options: Mapping[str, Any], out: Path | None, as_json: bool
) -> None:
    """`paceline system`."""
    if options["merge"] and not paths:
        raise InputError("--merge joins files, and none is given.", hint="--merge a.json b.json")
    if len(paths) > 1 and not options["merge"]:
        raise InputError(
            f"{len(paths)} descriptions are given.", hint="--merge joins them into one system"
        )
    if options["ray"] is not None:
        if paths:
            raise InputError(
                "--ray describes the cluster's nodes, and files are given too.",
                hint="--out FILE first, then --merge FILE OTHER.json",
            )
        if not options["ray"]:
            raise InputError("--ray names no cluster.", hint="--ray HOST:PORT, or --ray auto")
        with contextlib.redirect_stdout(sys.stderr):  # where Ray prints, JSON is to stand
            description = describe_cluster(options["ray"], network=options["network"])
    elif paths:
        description = system.merge([system.read(path) for path in paths])
    else:
        description = system.describe(this_host(), network=options["network"])
    description = _given(description, options["file"], options["overrides"])
    facts = description.as_json()
    if out is not None:
        write_atomically(out, json.dumps(facts, indent=2) + "\n")
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    rows: list[tuple[str, ...]] = [("field", "value", "is", "from")]
    rows += [
        (name, "" if f.value is None else str(f.value), f.provenance, f.origin)
        for name, f in description.fields.items()
    ]
    typer.echo(table(rows))
    for difference in description.differences:
        typer.echo(f"hosts differ in {difference}")
    unknown = system.missing(description)
    if unknown:
        typer.echo(f"\n{len(unknown)} required fields are unknown:")
        typer.echo(table([("  " + name, how) for name, how in unknown]))
    if out is not None:
        typer.echo(f"written to {out}")


def submit(
    run_dirs: Sequence[Path],
    out: Path,
    *,
    order: Mapping[str, Any],
    system_name: str,
    overrides: Sequence[str],
    as_json: bool,
) -> None:
    """`paceline submit`."""
    path = Path(system_name)
    if path.suffix == ".json":
        description, name = system.read(path), path.stem
    elif path.exists():
        raise InputError(f"--system {system_name}: a description is a .json file.")
    else:
        is_network = order["division"] == "network"
        description, name = system.describe(this_host(), network=is_network), system_name
    description = _given(description, None, overrides)
    prepared = prepare(run_dirs, Order(system_id=name, **order), description)
    tree = write_tree(prepared, out)
    findings = check_tree(tree, round_name=prepared.submission.round.name)
    failed = [finding for finding in findings if not finding.passed]
    is_rehearsal = prepared.submission.is_rehearsal
    made = package(prepared, out) if is_rehearsal or not failed else None
    if as_json:
        facts = {"tree": str(tree), "passed": not failed, "made": made, "rehearsal": is_rehearsal}
        typer.echo(json.dumps(facts | {"findings": [f.as_json() for f in failed]}, indent=2))
    else:
        _print_outcome(failed, len(findings), tree=tree, made=made, is_rehearsal=is_rehearsal)
    raise typer.Exit(1 if failed else 0)


def _print_outcome(
    failed: Sequence[Any],
    num_findings: int,
    *,
    tree: Path,
    made: Mapping[str, Any] | None,
    is_rehearsal: bool,
) -> None:
    for finding in failed[:_SHOWN_FAILURES]:
        typer.echo(f"FAIL {finding.path}\n     {finding.rule}: {finding.detail}")
        typer.echo(f"     {finding.mend}")
    if len(failed) > _SHOWN_FAILURES:
        typer.echo(f"... and {len(failed) - _SHOWN_FAILURES} more: paceline check {tree}")
    typer.echo(f"check: {num_findings - len(failed)} of {num_findings} rules hold")
    typer.echo(f"tree: {tree}")
    if made is None:
        typer.echo("No tarball: the tree does not pass.")
        return
    typer.echo(f"tarball: {made['tarball']}  {made['bytes']:,} bytes")
    typer.echo(f"sha256: {made['sha256']}")
    typer.echo("Keep the run directories: they hold the whole accuracy log.")
    if is_rehearsal:
        typer.echo("THIS IS A REHEARSAL, NOT A SUBMISSION.")


def _given(
    description: system.Description, path: Path | None, overrides: Sequence[str]
) -> system.Description:
    if path is not None:
        description = system.give(description, system.read_toml(path), origin=str(path))
    values: dict[str, str] = {}
    for text in overrides:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(
                f"--set {text}: not of the form FIELD=VALUE.", hint="--set cooling=air"
            )
        values[name.strip()] = value.strip().strip('"')
    return system.give(description, values, origin="--set")
