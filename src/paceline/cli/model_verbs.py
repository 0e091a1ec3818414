"""What `paceline model verify`, `describe` and `fetch` do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from paceline import models
from paceline.cli.screen import Bar, table
from paceline.cli.stopping import keeping

__all__ = ["describe", "fetch", "verify"]


def verify(model: Path, *, manifest: Path | None, writes: bool, as_json: bool) -> None:
    """Print the findings; exit 1 when one fails."""
    with Bar("verify") as bar:
        if writes:
            typer.echo(str(models.write_manifest(model, bar.update)))
            return
        findings = models.verify(model, manifest=manifest, progress=bar.update)
    passed = all(finding.passed for finding in findings)
    if as_json:
        rows = [{"rule": f.rule, "passed": f.passed, "detail": f.detail} for f in findings]
        typer.echo(json.dumps({"passed": passed, "findings": rows}, indent=2))
    else:
        typer.echo(table([("PASS" if f.passed else "FAIL", f.rule, f.detail) for f in findings]))
    raise typer.Exit(0 if passed else 1)


def describe(model: Path, *, context: int, as_json: bool) -> None:
    """Print the facts, then the cards."""
    facts = models.describe(model, context_tokens=context)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    fits = facts.pop("fits")
    typer.echo(table([(name, _shown(value)) for name, value in facts.items()]))
    precisions = list(fits[0]["live_sequences"])
    typer.echo(
        f"\nlive sequences on one card, {context} tokens each, as it is ({precisions[0]}) and as "
        "it could be; -: the weights do not fit"
    )
    rows = [("card", "GB", *precisions)]
    rows += [(fit["card"], f"{fit['memory_bytes'] / 1e9:.0f}", *_cells(fit)) for fit in fits]
    typer.echo(table(rows))


def _cells(fit: Mapping[str, Any]) -> list[str]:
    return [f"{live:,}" if live else "-" for live in fit["live_sequences"].values()]


def fetch(source: str, out: Path, *, revision: str, only_list: bool, as_json: bool) -> None:
    """Fetch, or list what would be fetched."""
    if only_list:
        files = models.listing(source, revision=revision)
        rows = [{"name": f.name, "bytes": f.size, f.algorithm: f.digest} for f in files]
        if as_json:
            typer.echo(json.dumps(rows, indent=2))
        else:
            sizes = ["?" if f.size is None else f"{f.size:,}" for f in files]
            typer.echo(table([(f.name, size) for f, size in zip(files, sizes, strict=True)]))
            typer.echo(f"{sum(f.size or 0 for f in files) / 1e9:.2f} GB in {len(files)} files")
        return
    when_stopped = keeping("What was fetched is kept.", "the same command goes on with it")
    with when_stopped, Bar("fetch") as bar:
        counts = models.fetch(source, out, revision=revision, progress=bar.update)
    if as_json:
        typer.echo(json.dumps({"out": str(out), **counts}, indent=2))
    else:
        again = f", {counts['tried_again']} tries repeated" if counts["tried_again"] else ""
        typer.echo(
            f"{out}: {counts['files']} files, {counts['bytes'] / 1e9:.2f} GB; "
            f"{counts['already_there']} were there already{again}"
        )
        typer.echo(f"paceline model verify {out}")


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
