"""The flags of `paceline model ...`; what they do is in `model_verbs`.

A module of flags imports nothing heavy, as `paceline --help` loads it.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated, Any

import typer

from paceline.cli.flags_shared import JsonOption

__all__ = ["app", "describe", "fetch", "verify"]

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Fetch, check and look at checkpoints."
)


def _verbs() -> Any:
    return importlib.import_module("paceline.cli.model_verbs")


@app.command()
def verify(
    model: Annotated[Path, typer.Argument(help="A Hugging Face folder.")],
    manifest: Annotated[
        Path | None,
        typer.Option(help="Hashes: sha256sum or md5sum lines, or a run's manifest.json."),
    ] = None,
    write_manifest: Annotated[
        bool, typer.Option("--write-manifest", help="Write SHA256SUMS into the folder instead.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check a checkpoint: files, names, shapes, types, NaNs, hashes. Exits 1 when one fails."""
    _verbs().verify(model, manifest=manifest, writes=write_manifest, as_json=as_json)


@app.command()
def describe(
    model: Annotated[Path, typer.Argument(help="A Hugging Face folder; config.json is enough.")],
    context: Annotated[
        int, typer.Option(min=1, help="Mean tokens of a live sequence; OpenOrca's are 490.")
    ] = 490,
    as_json: JsonOption = False,
) -> None:
    """Print parameters, bytes, precision, and what fits on which card."""
    _verbs().describe(model, context=context, as_json=as_json)


@app.command()
def fetch(
    source: Annotated[
        str, typer.Argument(help="A folder, a hub's ORG/MODEL, or MLCommons' https://.../NAME.uri.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder to fill.")],
    revision: Annotated[str, typer.Option(help="Of a hub's repository.")] = "main",
    only_list: Annotated[
        bool, typer.Option("--list", help="Print the files and their sizes, fetch nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Fetch a checkpoint, checked; the same command again goes on where it was left."""
    _verbs().fetch(source, out, revision=revision, only_list=only_list, as_json=as_json)
