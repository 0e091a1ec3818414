"""What `paceline quantize` does."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from paceline.cli.screen import Bar
from paceline.cli.stopping import keeping
from paceline.config import embedded_model
from paceline.errors import InputError, MissingExtraError

__all__ = ["quantize", "require_torch"]


def require_torch(what: str) -> None:
    """Refuse, by name, to begin without PyTorch.

    Raises
        MissingExtraError  it is not installed.
    """
    for package in ("torch", "safetensors"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(
                f"{what} needs {package}, which is not installed.",
                hint="pip install 'paceline[demo]' -c constraints.txt",
            )


def quantize(
    model: str,
    out: Path,
    *,
    options: dict[str, Any],
    kv: str | None,
    data: Mapping[str, Any],
    as_json: bool,
) -> None:
    """`paceline quantize`."""
    require_torch("paceline quantize")
    from paceline import quantize as room

    if kv not in (None, "fp8", "none"):
        raise InputError(f"--kv is '{kv}'.", hint="--kv fp8, or leave it out")
    chosen = room.QuantizeOptions(**options, is_kv_fp8=kv == "fp8")
    samples = None
    chosen.check(is_calibrated=data["calibrate"] is not None)
    if data["calibrate"] is not None:
        is_demo = data["calibrate"].lower() == room.DEMO
        samples = room.load_calibration(
            room.demo_calibration() if is_demo else Path(data["calibrate"]).expanduser(),
            evaluation=data["evaluation"],
            limit=data["limit"],
            trust_pickle=data["trust_pickle"],
        )
    elif data["evaluation"] is not None or data["limit"] is not None:
        raise InputError(
            "--evaluation and --samples say which calibration set, and none is given.",
            hint="--calibrate DATASET",
        )
    path = embedded_model() if model == "embedded" else Path(model).expanduser()
    when_stopped = keeping("Finished shards are kept.", "the same command goes on with them")
    with when_stopped, Bar("quantize") as bar:
        done = room.quantize(
            path,
            out,
            chosen,
            samples=samples,
            progress=lambda what, part: bar.update(round(1000 * part), 1000, what),
            tell=lambda sentence: typer.echo(sentence, err=True),
        )
    if as_json:
        typer.echo(json.dumps(done, indent=2))
    else:
        _print(done, out)


def _print(done: Mapping[str, Any], out: Path) -> None:
    groups = f", groups of {done['group_len']}" if done["group_len"] else ""
    typer.echo(f"{out}: {done['format']}{groups}, KV cache {done['kv_cache']}")
    if done["format"] == "w4a8" and done["group_len"] != 128:
        typer.echo(
            "vLLM's W4A8 products need groups of 128, which do not divide this model's widths."
        )
    used = done["calibration"]
    if used is not None and used["is_used"]:
        typer.echo(f"calibrated on {used['num_samples']} samples of {used['set']}")
        typer.echo(used["provenance"])
    elif used is not None:
        typer.echo(f"{used['set']} was not used: {done['format']} finds no scale from activations.")
    typer.echo(f"what was done: {out / 'calibration.md'}")
    typer.echo(f"paceline run --model {out}")
