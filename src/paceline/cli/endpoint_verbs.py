"""What `paceline preflight` and `paceline bench endpoint` do."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from paceline import config
from paceline.cli.screen import Bar, RunScreen, table
from paceline.cli.verbs import print_facts
from paceline.engines import endpoint_bench
from paceline.engines.probe import ProbeResult
from paceline.harness import loadgen
from paceline.harness import preflight as checks

__all__ = ["bench_endpoint", "preflight"]

_WORDS = {True: "PASS", False: "FAIL", None: "not known"}


def preflight(
    recipe: Path | None,
    *,
    flags: Mapping[str, Any],
    overrides: Sequence[str],
    seconds: float,
    as_json: bool,
) -> None:
    """`paceline preflight`."""
    settings = config.read_settings(recipe, overrides, flags=flags)
    resolved = config.resolve(settings, loadgen.wheel().round)
    with Bar("preflight") as bar:
        found = checks.examine(resolved, seconds=seconds, observer=RunScreen(bar).observe)
    engine, measured = found["engine"], found["probe"]
    failed = [check for check in engine.get("preflight", ()) if check["passed"] is False]
    if as_json:
        plain = None if measured is None else dataclasses.asdict(measured)
        target = None if measured is None else _target(measured)
        facts = {"engine": engine, "probe": plain, "target_qps": target}
        typer.echo(json.dumps(facts, indent=2))
    else:
        _print(engine, measured)
    raise typer.Exit(1 if failed else 0)


def bench_endpoint(requests: int, tokens: int, *, concurrency: int, as_json: bool) -> None:
    """`paceline bench endpoint`."""
    facts = endpoint_bench.bench_endpoint(requests, tokens, concurrency=concurrency)
    print_facts(facts, as_json=as_json)


def _print(engine: Mapping[str, Any], measured: ProbeResult | None) -> None:
    servers: list[tuple[str, ...]] = [
        (server["url"], server["kind"], server["version"] or "version not known", server["dialect"])
        for server in engine.get("servers", ())
    ]
    rows: list[tuple[str, ...]] = [
        (_WORDS[check["passed"]], check["server"], check["name"], check["detail"])
        for check in engine.get("preflight", ())
    ]
    for lines in (servers, rows):
        if lines:
            typer.echo(table(lines))
    for note in engine.get("notes", ()):
        typer.echo(note)
    if measured is not None:
        typer.echo(
            f"{measured.samples_per_second:,.4g} samples/s, {measured.tokens_per_second:,.1f} "
            f"tokens/s at {measured.tokens_per_sample:.1f} tokens a sample; +/- "
            f"{measured.relative_error:.1%} in {measured.seconds:g} s"
        )
        typer.echo(f"--set loadgen.target_qps={_target(measured)}")


def _target(measured: ProbeResult) -> float:
    return float(f"{measured.high_samples_per_second:.4g}")
