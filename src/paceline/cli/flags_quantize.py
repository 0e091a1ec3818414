"""The flags of `paceline quantize`; what it does is in `quantize_verbs`.

A module of flags imports nothing heavy, as `paceline --help` loads it.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated, Any

import typer

from paceline.cli.flags_shared import JsonOption, TrustOption

__all__ = ["quantize"]


def _verbs() -> Any:
    return importlib.import_module("paceline.cli.quantize_verbs")


def quantize(
    model: Annotated[
        str, typer.Argument(help="Hugging Face folder or GGUF file; 'embedded': the demo's model.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder to make.")],
    format_name: Annotated[
        str, typer.Option("--format", help="fp8, fp8-token, w4a16, w4a8, mxfp4 or nvfp4.")
    ],
    calibrate: Annotated[
        str | None,
        typer.Option(help="Calibration set; 'demo': the demo's.", metavar="DATASET"),
    ] = None,
    evaluation: Annotated[
        Path | None,
        typer.Option(help="The benchmark's dataset: shows that the set is the rules' own."),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Only the first so many samples of the set.")
    ] = None,
    kv: Annotated[str | None, typer.Option(help="fp8: fixed scales for the KV cache.")] = None,
    percentile: Annotated[
        float, typer.Option(help="For fixed scales; 100 is the widest value.")
    ] = 99.9,
    percentile_of: Annotated[
        str, typer.Option(help="tokens: of each token's widest |x|; values: of all |x|.")
    ] = "tokens",
    smoothquant: Annotated[
        float | None, typer.Option(help="Fold with this alpha, as 0.5.", metavar="ALPHA")
    ] = None,
    gptq: Annotated[bool, typer.Option("--gptq", help="Four-bit codes by GPTQ.")] = False,
    group_size: Annotated[
        int, typer.Option(help="INT4 inputs that share a scale; 0: the widest of 128, 64, 32.")
    ] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    trust_pickle: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a quantised checkpoint that our engines and vLLM load (compressed-tensors)."""
    _verbs().quantize(
        model,
        out,
        options={
            "format": format_name,
            "group_len": group_size,
            "percentile": percentile,
            "percentile_of": percentile_of,
            "smooth_alpha": smoothquant,
            "uses_gptq": gptq,
            "device": device,
        },
        kv=kv,
        data={
            "calibrate": calibrate,
            "evaluation": evaluation,
            "limit": samples,
            "trust_pickle": trust_pickle,
        },
        as_json=as_json,
    )
