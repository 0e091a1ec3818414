"""The flags of `paceline bench engine` and `bench products`; what they do is in `engine_verbs`.

A module of flags imports nothing heavy, as `paceline --help` loads it.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated

import typer

from paceline.cli.flags_shared import JsonOption

__all__ = ["bench_engine", "bench_products"]


def bench_engine(
    weights: Annotated[
        str, typer.Option(help="A folder, a GGUF file, or random:NAME.")
    ] = "random:llama2-70b",
    lengths: Annotated[
        Path | None,
        typer.Option(help="JSON list of [prompt, output] tokens; none: drawn lengths."),
    ] = None,
    samples: Annotated[int, typer.Option(min=1)] = 3000,
    layers: Annotated[int | None, typer.Option(min=1, help="Only so many layers.")] = None,
    steady: Annotated[
        int | None, typer.Option(min=20, help="Time so many steps from a full cache instead.")
    ] = None,
    order: Annotated[str, typer.Option(help="Prompts longest first, or as given.")] = "longest",
    stop_after: Annotated[float | None, typer.Option(help="Stop after so many seconds.")] = None,
    device: Annotated[str, typer.Option(help="cuda or cpu.")] = "cuda",
    dtype: Annotated[str, typer.Option(help="bfloat16, float16 or float32.")] = "bfloat16",
    quantization: Annotated[
        str, typer.Option(help="none, fp8-tensor, fp8-token, w4a8, w4a16, mxfp4 or nvfp4.")
    ] = "fp8-tensor",
    max_step_tokens: Annotated[int, typer.Option(min=1)] = 2048,
    max_live: Annotated[int, typer.Option(min=1, help="Most live sequences.")] = 1280,
    kv_memory_fraction: Annotated[float, typer.Option(min=0.05, max=1.0)] = 0.97,
    as_json: JsonOption = False,
) -> None:
    """Speed of the native engine alone: whole run, steady, and where a step's time goes."""
    importlib.import_module("paceline.cli.engine_verbs").bench_engine(
        lengths,
        samples=samples,
        options={
            "weights": weights,
            "device": device,
            "dtype": dtype,
            "quantization": quantization,
            "max_step_tokens": max_step_tokens,
            "max_live_sequences": max_live,
            "kv_memory_fraction": kv_memory_fraction,
            "max_context_len": 2048,
            "num_layers": layers,
            "steady_steps": steady,
            "is_longest_first": order == "longest",
            "stop_after_s": stop_after,
        },
        as_json=as_json,
    )


def bench_products(
    weights: Annotated[str, typer.Option(help="random:NAME, for its shapes.")] = (
        "random:llama2-70b"
    ),
    formats: Annotated[
        str, typer.Option(help="Formats beside FP8 per tensor, separated by commas.")
    ] = "fp8-token,w4a8,w4a16,mxfp4,nvfp4",
    tokens: Annotated[str, typer.Option(help="Tokens of a step, separated by commas.")] = (
        "512,1024"
    ),
    seconds: Annotated[float, typer.Option(min=0.01, help="How long to run each.")] = 1.0,
    device: Annotated[str, typer.Option(help="cuda or cpu.")] = "cuda",
    as_json: JsonOption = False,
) -> None:
    """Rate of each product of a layer, beside cuBLASLt's in FP8."""
    importlib.import_module("paceline.cli.engine_verbs").bench_products(
        {"weights": weights, "formats": formats, "tokens": tokens},
        seconds=seconds,
        device=device,
        as_json=as_json,
    )
