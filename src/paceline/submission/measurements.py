"""measurements.json and the calibration document: what was done to the weights.

Both are written from the manifest: the checkpoint's files, and the data types and quantization
that the engine was told to use. Where the manifest cannot say, the submitter is asked.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from paceline.errors import InputError
from paceline.submission.matching import Result, Test, is_simulated

__all__ = ["calibration_text", "gpus_used", "measurements", "weight_type"]

_SHORT = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
_SHORT |= {name: name for name in ("fp32", "bf16", "fp16", "fp8", "fp4", "int8", "int4")}
_INPUT_TYPE = "int32"
_WHOLE_PRECISION = """\
The weights are used in {dtype}. They are not quantized, so nothing was calibrated and no sample
of the calibration set was used.
"""
_SCALE_A_ROW = """\
The weights of the linear layers are quantized to FP8 (e4m3) while they are read: one scale an
output channel, the largest absolute value divided by 448. The scale of an activation is found for
each token at run time, in the same way. No sample was used to calibrate.
"""
_SCALE_A_TENSOR = """\
The weights of the linear layers are quantized to FP8 (e4m3) while they are read: one scale a
weight, the largest absolute value divided by 448. A checkpoint that fixes the scales of
activations keeps them; of any other, the scale of an activation is found for each token at run
time. paceline used no sample to calibrate; fixed scales come with the checkpoint.
"""


def measurements(result: Result) -> dict[str, str]:
    """The five fields that every round asks for."""
    test = result.performance
    dtype = weight_type(test)
    return {
        "input_data_types": _INPUT_TYPE,
        "retraining": "No",
        "starting_weights_filename": _weights(test),
        "weight_data_types": dtype,
        "weight_transformations": _transformations(test, dtype),
    }


def weight_type(test: Test) -> str:
    """The type that the linear layers' weights have in memory, as fp8.

    What the engine says of itself ("dtype" of its description) goes before what it was told.
    """
    if test.config["engine"] == "fake":
        return "none (simulated)"
    config, engine = test.config["engine_config"], test.facts.get("engine", {})
    if str(config.get("quantization", "none")).startswith("fp8"):
        return "fp8"
    dtype = str(engine.get("dtype") or config.get("dtype", ""))
    if dtype == "auto":
        dtype = "float32" if engine.get("device") == "cpu" else "bfloat16"
    if dtype not in _SHORT:
        raise InputError(
            f"{test.run_dir} does not say the type of its weights (dtype {dtype!r}).",
            hint="run again with the dtype set: --set engine.NAME.dtype=bfloat16",
        )
    return _SHORT[dtype]


def calibration_text(test: Test, given: Path | None, *, division: str) -> str:
    """documentation/calibration.md. Raises InputError when only the submitter can know."""
    head = "# Calibration and quantization\n\n"
    if given is not None:
        try:
            return given.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{given} cannot be read: {error}.") from error
    quantization = str(test.config["engine_config"].get("quantization", "none"))
    if is_simulated(test):
        return head + "A rehearsal: no model ran, so nothing was quantized or calibrated.\n"
    dtype = weight_type(test)
    if dtype in ("fp32", "bf16", "fp16"):
        return head + _WHOLE_PRECISION.format(dtype=dtype)
    if quantization == "fp8-token":
        return head + _SCALE_A_ROW
    if quantization == "fp8-tensor" and division == "open":
        return head + _SCALE_A_TENSOR
    if division == "open":
        return head + f"The weights are of type {dtype}; how they became so is not on record.\n"
    raise InputError(
        f"Weights of type {dtype} ({quantization}) need a calibration document in the {division} "
        "division: the checkpoint may fix scales that somebody calibrated.",
        hint="--calibration FILE.md that says how, and with which samples",
    )


def gpus_used(test: Test) -> bool:
    """Whether the test ran on a GPU, as far as its engine says."""
    device = str(test.facts.get("engine", {}).get("device", "none"))
    return device not in ("none", "cpu", "remote")


def _weights(test: Test) -> str:
    model: dict[str, Any] | None = test.manifest.get("model")
    served = test.facts.get("engine", {}).get("model")
    if model is None and served and not is_simulated(test):
        return f"{served} (the name that the server gives)"
    if model is None or not model["files"]:
        return "none: the engine is simulated"
    weights = [name for name in model["files"] if name.endswith((".safetensors", ".gguf", ".bin"))]
    first = f"{Path(model['path']).name}/{weights[0]}" if weights else Path(model["path"]).name
    more = f" and {len(weights) - 1} more files" if len(weights) > 1 else ""
    return f"{first}{more}"


def _transformations(test: Test, dtype: str) -> str:
    if is_simulated(test):
        return "none (simulated)"
    if dtype == "fp8":
        how = test.config["engine_config"].get("quantization", test.config["engine"])
        return f"quantization to FP8 e4m3 ({how})"
    if dtype in ("fp4", "int8", "int4"):
        return f"quantization to {dtype}"
    return f"none, but conversion to {dtype}"
