"""What was done to the weights, for people (calibration.md) and programs (calibration.json).

Closed submissions must say how a model was quantised and calibrated; both files are written from
what was done, lie beside the weights and travel with them.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import paceline
from paceline.quantize.gptq import DAMPING, DAMPING_BY_SCARCITY
from paceline.quantize.options import QuantizeOptions
from paceline.quantize.samples import CalibrationSet
from paceline.quantize.statistics import NUM_BINS
from paceline.rundir import file_sha256

__all__ = ["calibration_record", "calibration_text"]

_PACKAGES = ("torch", "numpy", "safetensors")
_WEIGHTS = {
    "fp8": "FP8 (e4m3), one scale a weight: the largest absolute value divided by 448. Query, "
    "key and value share a scale, as do gate and up",
    "fp8-token": "FP8 (e4m3), one scale an output channel: the largest absolute value divided by "
    "448",
    "w4a16": "INT4, symmetric, one bfloat16 scale for {group} inputs",
    "w4a8": "INT4, symmetric, one bfloat16 scale for {group} inputs",
    "mxfp4": "MXFP4 (e2m1), one power of two for {group} inputs",
    "nvfp4": "NVFP4 (e2m1), one e4m3 scale for {group} inputs and one float32 scale a weight",
}
_ACTIVATIONS = {
    "fp8": "FP8 (e4m3), one fixed symmetric scale for what each product reads: the {percent:g} "
    "percentile (see Statistic) divided by 448; wider values are clipped",
    "fp8-token": "FP8 (e4m3), one scale a token, found at run time: its largest absolute value "
    "divided by 448",
    "w4a8": "FP8 (e4m3), one scale a token, found at run time: its largest absolute value divided "
    "by 448",
}


def calibration_record(
    options: QuantizeOptions,
    *,
    group_len: int,
    model: Path,
    samples: CalibrationSet | None,
) -> dict[str, Any]:
    """Everything that decides the bytes of the checkpoint; the scales found are added to it."""
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {
        "format": options.format,
        "group_len": group_len,
        "kv_cache": "fp8" if options.is_kv_fp8 else "16 bit",
        "percentile": options.percentile if _has_percentile(options) else None,
        "percentile_of": options.percentile_of if _has_percentile(options) else None,
        "smoothquant_alpha": options.smooth_alpha,
        "gptq": _gptq(options),
        "random_numbers": "none: every rounding is to nearest",
        "starting_weights": _hashes(model),
        "calibration": None
        if samples is None
        else {
            "set": samples.name,
            "sha256": samples.sha256,
            "provenance": samples.provenance,
            "is_verified": samples.is_verified,
            "is_used": options.uses_samples,
            "num_samples": len(samples.prompts),
            "rows": list(samples.rows),
            "num_tokens": sum(len(prompt) for prompt in samples.prompts),
            "prompts_sha256": hashlib.sha256("".join(samples.prompt_hashes()).encode()).hexdigest(),
        },
        "versions": {"paceline": paceline.__version__, **versions},
        "device": options.device.partition(":")[0],
    }


def _gptq(options: QuantizeOptions) -> dict[str, Any] | None:
    if not options.uses_gptq:
        return None
    by_scarcity = DAMPING_BY_SCARCITY
    return {
        "damping": DAMPING,
        "damping_by_width_over_tokens": by_scarcity,
        "order": "activation",
        "inputs": "rounded" if options.makes_up_for_reads else "whole",
    }


def _has_percentile(options: QuantizeOptions) -> bool:
    return options.format == "fp8" or options.is_kv_fp8


def _hashes(model: Path) -> dict[str, str]:
    """SHA-256 of the files that hold the starting weights."""
    files = [model] if model.is_file() else sorted(model.glob("*.safetensors"))
    return {file.name: file_sha256(file) for file in files}


def calibration_text(record: Mapping[str, Any]) -> str:
    """The calibration document of a submission."""
    lines = ["# Calibration and quantization", "", *_what(record), "", "## Samples", ""]
    used = record["calibration"]
    if used is None:
        lines.append(
            "No sample was used: every scale comes from the weights or is found at run time."
        )
    else:
        lines += _samples(used)
    if record["percentile"] is not None:
        lines += ["", "## Statistic", "", *_statistic(record)]
    lines += ["", "## Starting weights", "", "| file | SHA-256 |", "|---|---|"]
    lines += [f"| `{name}` | `{sha}` |" for name, sha in record["starting_weights"].items()]
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    lines += ["", f"Made with {versions}, on {record['device']}. No retraining, no pruning.", ""]
    return "\n".join(lines)


def _what(record: Mapping[str, Any]) -> list[str]:
    name, values = record["format"], {"group": record["group_len"], "percent": record["percentile"]}
    activations = _ACTIVATIONS.get(name, "16 bit").format(**values)
    lines = [
        (
            "The linear layers of all blocks are quantized; embeddings, norms and the output "
            "layer are kept in 16 bit."
        ),
        "",
        f"- weights: {_WEIGHTS[name].format(**values)}",
        f"- activations: {activations}",
    ]
    if record["kv_cache"] == "fp8":
        lines.append(
            f"- KV cache: FP8 (e4m3), one fixed scale for keys (after rotation) and one for values "
            f"of each block: the {record['percentile']:g} percentile (see Statistic) divided by 448"
        )
    else:
        lines.append("- KV cache: 16 bit")
    if name in ("w4a16", "w4a8", "mxfp4", "nvfp4"):
        lines.append(f"- choice of a group's scale: {_choice(record)}")
    if record["smoothquant_alpha"] is not None:
        lines.append(
            f"- SmoothQuant (arXiv:2211.10438), alpha {record['smoothquant_alpha']:g}: widths of "
            "activation channels are folded into norms, value and up projections, which leaves "
            "the model's function as it is"
        )
    return lines


def _choice(record: Mapping[str, Any]) -> str:
    fitted = "" if record["format"] == "mxfp4" else ", fitted to its codes by least squares"
    least = f"of a few that suit the widest value, the one with the least squared error{fitted}"
    if (made := record["gptq"]) is not None:
        return (
            f"{least}, weighed by what an error costs once later columns make up for it; codes by "
            f"GPTQ (arXiv:2210.17323), columns by the mean square of their inputs, the largest "
            f"first; damping {made['damping']:g} plus {made['damping_by_width_over_tokens']:g} "
            f"times inputs / tokens, of the mean diagonal{_inputs_of(made)}"
        )
    used = record["calibration"]
    weighed = ", weighed by the inputs' mean square" if used and used["is_used"] else ""
    return f"{least}{weighed}; codes to nearest"


def _inputs_of(made: Mapping[str, Any]) -> str:
    if made["inputs"] == "whole":
        return ""
    return (
        "; inputs are rounded to FP8 as at run time, each product is seen behind the block's "
        "rounded ones before it, and weights are first moved to the least squared error against "
        "the output of inputs that are not rounded"
    )


def _samples(used: Mapping[str, Any]) -> list[str]:
    if not used["is_used"]:
        return [
            f"`{used['set']}` was given and not used: this format finds no scale from activations."
        ]
    rows = used["rows"]
    return [
        f"- set: `{used['set']}`, SHA-256 `{used['sha256']}`",
        f"- {used['provenance']}",
        (
            f"- {used['num_samples']} samples, rows {rows[0]} to {rows[-1]}, {used['num_tokens']} "
            "prompt tokens; answers are not used"
        ),
        f"- SHA-256 of the SHA-256s of the prompts' ids, in order: `{used['prompts_sha256']}`",
    ]


def _statistic(record: Mapping[str, Any]) -> list[str]:
    tables = {name: record[name] for name in ("input_scales", "kv_scales") if record[name]}
    digest = hashlib.sha256(json.dumps(tables, sort_keys=True).encode()).hexdigest()
    values = {"tokens": "the widest |x| of each token", "values": "|x| over tokens and channels"}
    of = values[record["percentile_of"]]
    return [
        (
            f"Symmetric. The {record['percentile']:g} percentile of {of} is read from a histogram "
            f"of {NUM_BINS} bins of equal width from 0 to the least power of two that is not under "
            "the widest value, as the upper edge of the bin it lies in, and never above the "
            "widest value. Sequences are run one by one, without padding. Activations are those "
            "of the unquantized model."
        ),
        "",
        f"Every scale is in calibration.json (SHA-256 of the tables: `{digest}`).",
    ]
