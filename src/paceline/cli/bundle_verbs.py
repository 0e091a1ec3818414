"""What `paceline bundle` does."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from paceline.cli.screen import Bar
from paceline.operate import bundle as bundles
from paceline.operate.bundle import BundleOrder
from paceline.operate.bundle_wheels import WheelOrder, commands, extras_of, source_of
from paceline.operate.launch_plan import errand

__all__ = ["bundle"]


def bundle(
    recipe: Path | None,
    out: Path,
    *,
    flags: Mapping[str, Any],
    overrides: Sequence[str],
    asked: Mapping[str, Any],
    dry_run: bool,
    as_json: bool,
) -> None:
    """`paceline bundle`."""
    order = _order(recipe, out, flags=flags, overrides=overrides, asked=asked)
    if dry_run:
        for name, path in sorted(bundles.plan(order).items()):
            typer.echo(f"{name}: {path}")
        for command in commands(order.wheels, out / "wheels", order.wheels.source):
            typer.echo(shlex.join(command))
        return
    with Bar("bundle") as bar:
        made = bundles.make(order, show=bar.stage, progress=bar.update)
    if as_json:
        typer.echo(json.dumps(made, indent=1))
        return
    for name in made["removed"]:
        typer.echo(f"removed from an earlier try: {name}", err=True)
    typer.echo(
        f"{made['out']}: {made['files']} files, {made['bytes'] / 1e9:.2f} GB, "
        f"{made['wheels']} wheels for Python {order.python}; "
        f"{made['copied_bytes'] / 1e9:.2f} GB copied"
    )
    typer.echo(f"SHA-256 of its SHA256SUMS: {made['sums_sha256']}")
    typer.echo(f"there: sh {shlex.quote(str(out))}/install.sh [PREFIX]")


def _order(
    recipe: Path | None,
    out: Path,
    *,
    flags: Mapping[str, Any],
    overrides: Sequence[str],
    asked: Mapping[str, Any],
) -> BundleOrder:
    run = errand(recipe, overrides=overrides, flags=flags, out=None, wheel_round=None)
    source = source_of(asked["source"])
    embeds = "model.path" not in run.files and not run.benchmark.startswith("llama2")
    extras = {*extras_of(run.engine, run.model_engine), *asked["extras"]}
    wheels = WheelOrder(
        source=source,
        constraints=(asked["constraints"] or source / "constraints.txt").resolve(),
        extras=tuple(sorted(extras)),
        has_embedded_model=embeds,
        python=asked["python"],
        platforms=asked["platforms"],
        find_links=tuple(path.expanduser().resolve() for path in asked["find_links"]),
    )
    return BundleOrder(errand=run, wheels=wheels, out=out.expanduser().resolve(), how=asked["how"])
