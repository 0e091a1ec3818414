"""What the flags of `mlcr run-mlperf,inference` on sizes and precision become: --set KEY=VALUE."""

from __future__ import annotations

from paceline.cli.mlcr_words import Translation, Words, is_yes
from paceline.errors import InputError

__all__ = ["container_words", "engine_settings", "loadgen_settings"]

# What containers/Containerfile and containers/paceline.def are built as.
_IMAGES = {"docker": "paceline", "apptainer": "paceline.sif"}
_TEST_SAMPLES = "10"
_PRECISIONS = {
    "float32": "float32",
    "fp32": "float32",
    "float16": "float16",
    "fp16": "float16",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "float8": "fp8",
    "fp8": "fp8",
}
_PRESETS = {"vllm": "vllm", "sglang": "sglang", "trtllm": "trtllm", None: "vllm", "pytorch": "vllm"}


def container_words(words: Words) -> list[str]:
    """The verb: run, or launch with a container and its image. Raises InputError."""
    flags = words.flags
    asked = [kind for kind in _IMAGES if is_yes(words, kind)]
    for kind in _IMAGES:
        if f"{kind}_image" in flags and kind not in asked:
            raise InputError(
                f"mlcr: --{kind}_image does nothing without --{kind}.", hint=f"--{kind}"
            )
    if len(asked) > 1:
        raise InputError("mlcr: --docker and --apptainer are given; a run has one container.")
    if not asked:
        return ["run"]
    gpus = {None: [], "cpu": ["--gpu", "none"]}.get(
        flags.get("device"), ["--gpu", flags.get("device", "")]
    )
    image = flags.get(f"{asked[0]}_image", _IMAGES[asked[0]])
    return ["launch", "--container", asked[0], "--image", image, *gpus]


def engine_settings(words: Words, engine: str, implementation: str, made: Translation) -> list[str]:
    """Settings of the engine that was chosen. Raises InputError."""
    flags = words.flags
    prefix = f"engine.{engine}"
    settings = _device(words, engine, made)
    if engine == "endpoint":
        settings.append(f"{prefix}.urls={flags['api_server']}")
        if "vllm_model_name" in flags:
            settings.append(f"{prefix}.model={flags['vllm_model_name']}")
    elif "vllm_model_name" in flags:
        raise InputError(
            "mlcr: --vllm_model_name names a model of a server.", hint="with --api_server=URL"
        )
    if engine == "managed":
        preset = _PRESETS[flags.get("framework", flags.get("backend"))]
        rocm = preset == "vllm" and (implementation == "amd" or flags.get("device") == "rocm")
        settings.append(f"{prefix}.preset={'vllm-rocm' if rocm else preset}")
    if implementation == "nvidia" and engine == "native":
        made.notes.append(
            "--implementation=nvidia: paceline's own engine runs in TensorRT-LLM's place."
        )
    for name, key in (("tp_size", "tensor_parallel"), ("pp_size", "pipeline_parallel")):
        settings += _parallel(words, name, key, engine)
    return settings + _batch(words, engine) + _precision(words, engine)


def loadgen_settings(words: Words, style: str) -> list[str]:
    """Settings of LoadGen, and of a test run's few samples. Raises InputError."""
    flags = words.flags
    settings = []
    if style == "test":
        count = _whole("test_query_count", flags.get("test_query_count", _TEST_SAMPLES))
        settings += [f"run.num_samples={count}", "loadgen.min_duration_ms=0"]
    scenario = flags.get("scenario", "Offline").lower()
    for name in ("target_qps", "offline_target_qps", "server_target_qps"):
        if name not in flags:
            continue
        if name.partition("_")[0] in ("offline", "server") and not name.startswith(scenario):
            raise InputError(f"mlcr: --{name} does nothing in {flags.get('scenario', 'Offline')}.")
        settings.append(f"loadgen.target_qps={_positive(name, flags[name])}")
    if "min_duration" in flags:
        if style == "test":
            raise InputError(
                "mlcr: --min_duration does nothing in a test run.", hint="--execution_mode=valid"
            )
        settings.append(f"loadgen.min_duration_ms={_whole('min_duration', flags['min_duration'])}")
    if "min_query_count" in flags:
        count = _whole("min_query_count", flags["min_query_count"])
        settings.append(f"loadgen.min_query_count={count}")
    return settings


def _device(words: Words, engine: str, made: Translation) -> list[str]:
    device = words.flags.get("device")
    if device is None:
        return []
    if device not in ("cpu", "cuda", "rocm"):
        raise InputError(f"mlcr: --device={device}: paceline runs on cpu, cuda and rocm.")
    if engine not in ("native", "reference"):
        made.notes.append(f"--device={device}: the server's start decides, not its client.")
        return []
    if device == "rocm":
        made.notes.append("--device=rocm: PyTorch for ROCm calls its devices cuda.")
        device = "cuda"
    return [f"engine.{engine}.device={device}"]


def _parallel(words: Words, name: str, key: str, engine: str) -> list[str]:
    if name not in words.flags:
        return []
    width = _whole(name, words.flags[name])
    can = {"native": ("tensor_parallel",), "managed": ("tensor_parallel", "pipeline_parallel")}
    if key in can.get(engine, ()):
        return [f"engine.{engine}.{key}={width}"]
    if width == 1:
        return []
    raise InputError(
        f"mlcr: --{name}={width}: the {engine} engine has no {key.replace('_', ' ')}.",
        hint="--framework=vllm starts a server that has",
    )


def _batch(words: Words, engine: str) -> list[str]:
    if "batch_size" not in words.flags:
        return []
    # On rounds from 5.0 MLC writes the model before it: llama2-70b:1024.
    size = _whole("batch_size", words.flags["batch_size"].rpartition(":")[2])
    keys = {
        "reference": "batch_size",
        "native": "max_live_sequences",
        "managed": "max_num_seqs",
        "endpoint": "concurrency",
    }
    return [f"engine.{engine}.{keys[engine]}={size}"]


def _precision(words: Words, engine: str) -> list[str]:
    asked = words.flags.get("precision")
    if asked is None:
        return []
    precision = _PRECISIONS.get(asked.lower())
    if precision is None:
        raise InputError(
            f"mlcr: --precision={asked}: paceline does not run llama2-70b so.",
            hint=", ".join(_PRECISIONS),
        )
    if engine == "endpoint":
        return [f"engine.endpoint.dtype={precision}"]
    if precision != "fp8":
        if engine == "managed":
            raise InputError(
                f"mlcr: --precision={asked}: a managed server takes its type from the checkpoint.",
                hint="leave it out, or --precision=fp8",
            )
        return [f"engine.{engine}.dtype={precision}"]
    if engine == "reference":
        raise InputError(
            "mlcr: --precision=fp8: the reference computes what the checkpoint holds; MLC would "
            "run float32 and say nothing.",
            hint="--implementation=nvidia, or a checkpoint that is quantized",
        )
    return [f"engine.{engine}.quantization={'fp8' if engine == 'managed' else 'fp8-tensor'}"]


def _whole(name: str, value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise InputError(f"mlcr: --{name}={value} is no whole number from 1 on.")
    return int(value)


def _positive(name: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise InputError(f"mlcr: --{name}={value} is no number above 0.")
    return number
