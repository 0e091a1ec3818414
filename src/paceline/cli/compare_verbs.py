"""What `paceline compare` does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from paceline import compare as room
from paceline.cli.screen import Bar, table
from paceline.mlperf.rouge import METRICS
from paceline.rundir import write_atomically

__all__ = ["compare"]


def compare(a: Path, b: Path, *, logits: int, plot: Path | None, as_json: bool) -> None:
    """`paceline compare`."""
    with Bar("compare") as bar:
        first, second = room.open_side(a), room.open_side(b)
        compared = room.compare_answers(first, second)
        if logits:
            bar.stage("comparing logits")
            compared["logits"] = _logits(first, second, logits)
    if plot is not None:
        write_atomically(plot, room.picture(compared))
    if as_json:
        typer.echo(json.dumps(compared, indent=2))
    else:
        _print(compared)
        if plot is not None:
            typer.echo(f"picture: {plot}")
    raise typer.Exit(0 if compared["gate"]["b"] else 1)


def _logits(first: room.Side, second: room.Side, num_samples: int) -> dict[str, Any]:
    """The logits' figures, or why there are none."""
    for side in (first, second):
        model = side.config.model_path
        if model is None or not model.exists():
            return {"skipped": f"{side.path} has no model on this machine"}
    from paceline.cli.quantize_verbs import require_torch

    require_torch("comparing logits (--logits 0 leaves it out)")
    from paceline.compare.lens import compare_logits

    return compare_logits(first, second, num_samples=num_samples)


def _room(gate: Mapping[str, Any], metric: str) -> str:
    """What the gate lets the difference be, and whether it is that."""
    held = gate["differences"][metric]
    upper = "" if held["most"] is None else f" to {held['most']:+.4g}"
    return f"{held['least']:+.4g}{upper or ' or more'}: {'yes' if held['passed'] else 'NO'}"


def _print(compared: Mapping[str, Any]) -> None:
    a, b = compared["a"], compared["b"]
    gate = compared["gate"]
    rows: list[tuple[str, ...]] = [("", "a", "b", "b - a", "may be", "each other")]
    names = ("run", "engine", "precision")
    rows += [(name, str(a[name]), str(b[name]), "", "", "") for name in names]
    for metric in METRICS:
        gap = compared["difference"][metric]
        mutual = compared["against_each_other"][metric]
        difference = f"{gap['mean']:+.4f} +- {gap['standard_error']:.4f}"
        both = (f"{a[metric]:.4f}", f"{b[metric]:.4f}")
        rows.append((metric, *both, difference, _room(gate, metric), f"{mutual:.4f}"))
    tokens = [side["tokens_per_sample"] for side in (a, b)]
    change, room = f"{tokens[1] - tokens[0]:+.1f}", _room(gate, "tokens_per_sample")
    rows.append(("tokens/sample", f"{tokens[0]:.1f}", f"{tokens[1]:.1f}", change, room, ""))
    typer.echo(table(rows))
    words = ["PASS" if gate[side] else "FAIL" for side in ("a", "b")]
    missed = f": {'; '.join(gate['missed'])}" if gate["missed"] else ""
    typer.echo(f"accuracy gate of {gate['benchmark']}: a {words[0]}, b {words[1]}{missed}")
    typer.echo(f"identical answers: {compared['identical']} of {compared['samples']}")
    if (places := compared["first_difference"]) is not None:
        shown = ", ".join(f"{name} {place:.0f}" for name, place in places.items())
        typer.echo(f"first differing token of the others: {shown}")
    logits = compared.get("logits")
    if logits is None:
        return
    if "skipped" in logits:
        typer.echo(f"logits were not compared: {logits['skipped']}")
        return
    typer.echo(
        f"logits on {logits['tokens']} tokens of {logits['samples']} samples: mean KL "
        f"{logits['mean_kl']:.5f}, same first choice {logits['top1']:.1%}"
    )
    lines: list[tuple[str, ...]] = [("layer", "same first choice", "relative error")]
    lines += [
        (str(index), f"{layer['top1']:.1%}", f"{layer['relative_error']:.4f}")
        for index, layer in enumerate(logits["layers"])
    ]
    typer.echo(table(lines))
