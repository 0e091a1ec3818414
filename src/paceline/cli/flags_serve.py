"""The flags of `paceline serve`; what it does is in `serve_verbs`.

A module of flags imports nothing heavy, as `paceline --help` loads it.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated

import typer

from paceline.cli.flags_shared import EngineOption, ModelOption, SetOption

__all__ = ["serve"]


def serve(
    recipe: Annotated[
        Path | None,
        typer.Argument(help="A TOML recipe; none: the embedded model on the native engine."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: any free one.")] = 8000,
    engine: EngineOption = None,
    benchmark: Annotated[
        str | None, typer.Option(help="Whose EOS and vocabulary (run.benchmark).")
    ] = None,
    model: ModelOption = None,
    model_name: Annotated[
        str | None, typer.Option(help="The model's id; none: the name of its file.")
    ] = None,
    max_in_flight: Annotated[
        int, typer.Option(min=1, help="Most prompts in the engine at once.")
    ] = 1024,
    max_queue: Annotated[
        int, typer.Option(min=0, help="Most prompts that wait; beyond that a request gets a 429.")
    ] = 4096,
    max_body_mib: Annotated[int, typer.Option(min=1, help="Largest body of a request.")] = 64,
    client_timeout: Annotated[
        float,
        typer.Option(min=0.1, help="Seconds a client may take for its body, or take nothing."),
    ] = 60.0,
    grace: Annotated[
        int, typer.Option(min=0, help="Seconds that answers under way have at the end.")
    ] = 30,
    overrides: SetOption = None,
) -> None:
    """Serve an engine behind the OpenAI API (/v1/completions), until Ctrl-C.

    An API key is wanted from clients when PACELINE_SERVE_API_KEY holds one.
    """
    importlib.import_module("paceline.cli.serve_verbs").serve(
        recipe,
        flags={"engine.name": engine, "run.benchmark": benchmark, "model.path": model},
        overrides=overrides or [],
        options={
            "host": host,
            "port": port,
            "model_name": model_name,
            "max_in_flight": max_in_flight,
            "max_queue": max_queue,
            "max_body_bytes": max_body_mib << 20,
            "client_timeout_s": client_timeout,
            "grace_s": grace,
        },
    )
