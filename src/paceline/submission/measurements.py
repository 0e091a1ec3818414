"""measurements.json and the calibration document: what was done to the weights.

Both are written from the manifest: the checkpoint's files, and the data types and quantization
that the engine was told to use. Where the manifest cannot say, the submitter is asked.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from paceline.errors import InputError
from paceline.rundir import file_sha256
from paceline.submission.matching import Result, Test, is_simulated

__all__ = ["calibration_text", "gpus_used", "measurements", "weight_type"]

_SHORT = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
_SHORT |= {name: name for name in ("fp32", "bf16", "fp16", "fp8", "fp4", "int8", "int4")}
# Of a checkpoint's format, as the engine names it.
_STORED = {
    "fp8": "fp8",
    "fp8-token": "fp8",
    "w4a16": "int4",
    "w4a8": "int4",
    "mxfp4": "fp4",
    "nvfp4": "fp4",
}
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

    What the engine says of itself ("dtype" of its description) goes before what it was told, and
    that before what the submitter says, which must not be another. Raises InputError.
    """
    if is_simulated(test):
        return "none (simulated)"
    known, given = _known_type(test), _SHORT.get(test.weights_dtype)
    if test.weights_dtype and given is None:
        raise InputError(
            f"--weights-dtype {test.weights_dtype} is no type.", hint=f"one of {', '.join(_SHORT)}"
        )
    if known and given and known != given:
        raise InputError(
            f"{test.run_dir} ran with weights of type {known}, not {given}.",
            hint="leave --weights-dtype out",
        )
    if found := known or given:
        return found
    raise InputError(
        f"{test.run_dir} does not say the type of its weights.",
        hint="--weights-dtype TYPE, as the server was started; the next run can say it: "
        "--set engine.NAME.dtype=TYPE",
    )


def _known_type(test: Test) -> str | None:
    """The type as the run has it; None where nobody told it, as of a server elsewhere."""
    config, engine = test.config["engine_config"], test.facts.get("engine", {})
    if str(config.get("quantization", "none")).startswith("fp8"):
        return "fp8"
    if (stored := _stored_format(test)) is not None:
        return _STORED[stored]
    dtype = str(engine.get("dtype") or config.get("dtype", ""))
    if dtype == "auto":
        dtype = "float32" if engine.get("device") == "cpu" else "bfloat16"
    return _SHORT.get(dtype)


def _stored_format(test: Test) -> str | None:
    """The format of a quantised checkpoint that ran as it is stored; None for any other."""
    engine = test.facts.get("engine", {})
    stored = engine.get("checkpoint_format", "none")
    return stored if stored in _STORED and engine.get("quantization") != "none" else None


def _checkpoints_own_text(test: Test, division: str) -> str | None:
    """The document that `paceline quantize` wrote beside the weights; None if there is none.

    Raises
        InputError  it is not the one that the run saw, or a closed submission could not use it.
    """
    model = test.manifest["model"]
    if not {"calibration.json", "calibration.md"} <= set(model["files"]):
        return None
    found = {}
    for name in ("calibration.json", "calibration.md"):
        path = Path(model["path"]) / name
        if not path.is_file() or file_sha256(path) != model["files"][name]:
            raise InputError(
                f"{path} is not what the run read.",
                hint="--calibration FILE.md with the document of the checkpoint that ran",
            )
        found[name] = path.read_text()
    used = json.loads(found["calibration.json"])["calibration"]
    if division != "open" and used and used["is_used"] and not used["is_verified"]:
        raise InputError(
            f"{model['path']} was calibrated on {used['set']}, which is not known to be the "
            "rules' calibration set.",
            hint="paceline quantize --calibrate SET --evaluation DATASET checks that",
        )
    return found["calibration.md"]


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
    if _stored_format(test) is not None:
        own = _checkpoints_own_text(test, division)
        if own is not None:
            return own
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
        asked = test.config["engine_config"].get("quantization", test.config["engine"])
        how = _stored_format(test) or asked
        return f"quantization to FP8 e4m3 ({how})"
    if dtype in ("fp4", "int8", "int4"):
        stored = _stored_format(test)
        return f"quantization to {dtype}" + (f" ({stored})" if stored else "")
    return f"none, but conversion to {dtype}"
