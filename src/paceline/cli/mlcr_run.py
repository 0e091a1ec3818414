"""`mlcr run-mlperf,inference`: the guide's runs as `paceline run`.

Runs lie where `mlcr generate,inference,submission` looks for them:

    mlcr/<valid or test>_results/<implementation>-<model>/<scenario>-<test>[-2, -3, ...]

A run that is there and whole is shown again, one that is not is resumed; --rerun makes another.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from paceline.cli.mlcr_settings import container_words, engine_settings, loadgen_settings
from paceline.cli.mlcr_words import Translation, Words, is_yes, refuse_unknown
from paceline.errors import InputError
from paceline.mlperf import rules
from paceline.rundir import RunDir

__all__ = ["ROOT", "latest", "remembered", "translate_run"]

ROOT = Path("mlcr")
_KNOWN = {
    "model": "--benchmark",
    "implementation": "--engine",
    "framework": "--engine",
    "backend": "the same as --framework",
    "category": "datacenter",
    "division": "kept for generate,inference,submission",
    "scenario": "--scenario",
    "execution_mode": "test: a few samples; valid: all",
    "run_style": "the same as --execution_mode",
    "mode": "--mode",
    "device": "--set engine.NAME.device",
    "docker": "paceline launch --container docker",
    "docker_image": "the image; paceline is where none is given",
    "apptainer": "paceline launch --container apptainer",
    "apptainer_image": "the image; paceline.sif is where none is given",
    "tp_size": "--set engine.NAME.tensor_parallel",
    "pp_size": "1, or more with a managed server",
    "batch_size": "--set engine.NAME.batch_size or max_live_sequences",
    "precision": "--set engine.NAME.dtype or quantization",
    "test_query_count": "--set run.num_samples",
    "target_qps": "--set loadgen.target_qps",
    "offline_target_qps": "--set loadgen.target_qps",
    "server_target_qps": "--set loadgen.target_qps",
    "min_duration": "--set loadgen.min_duration_ms",
    "min_query_count": "--set loadgen.min_query_count",
    "compliance": "--mode submission",
    "api_server": "--set engine.endpoint.urls",
    "vllm_model_name": "--set engine.endpoint.model",
    "checkpoint": "--model",
    "quiet": "nothing: paceline asks nothing",
    "rerun": "a run of its own beside the one that is there",
    "results_dir": "where runs lie",
}
_BY_ITSELF = "paceline finds it out by itself; leave it out."
_OFFLINE = "a run downloads nothing: see mlcr get,ml-model,llama2-70b."
_REFUSED = {
    "all_scenarios": "run each scenario by itself.",
    "beam_size": "the benchmark decodes greedily.",
    "client_id": _OFFLINE,
    "client_secret": f"{_OFFLINE} A secret in a command ends in the shell's history.",
    "custom_system_nvidia": _BY_ITSELF,
    "gpu_name": _BY_ITSELF,
    "hw_name": "it belongs to generate,inference,submission.",
    "max_query_count": "a run that is cut short is not valid; use --execution_mode=test.",
    "max_test_duration": "a run that is cut short is not valid; use --execution_mode=test.",
    "network": "the network division is --implementation=network with --api_server=URL.",
    "nvidia_system_name": _BY_ITSELF,
    "performance_sample_count": "the benchmark fixes it.",
    "power": "MLPerf's own power meter is not driven; see docs/cli.md for power limits.",
    "regenerate_files": "paceline writes its files with each run; use --rerun.",
    "submitter": "it belongs to generate,inference,submission.",
    "use_service_account": _OFFLINE,
}
_MODES = {
    "performance-only": "performance",
    "accuracy-only": "accuracy",
    "performance-and-accuracy": "all",
    "find-performance": "performance",
    "submission": "submission",
}
_REFUSED_VARIATIONS = {
    "all-scenarios": "run each scenario by itself",
    "all-modes": "use _performance-and-accuracy or _submission",
    "populate-readme": "paceline submit writes the README of a result",
    "dashboard": "there is no dashboard; see paceline site",
}
_PLAIN = ("full", "short", "wg-inference")
_FRAMEWORKS = {
    "reference": ("pytorch",),
    "nvidia": ("tensorrt", "pytorch", "vllm", "sglang", "trtllm"),
    "amd": ("pytorch", "vllm", "sglang"),
    "redhat": ("vllm", "openshift"),
    "network": ("vllm", "sglang", "tensorrt", "pytorch", "openai"),
    "paceline": ("pytorch",),
}
_SAME = {"mlcommons-python": "reference", "mlcommons_python": "reference"}


def translate_run(words: Words, cwd: Path) -> Translation:
    """`run-mlperf,inference` as one run. Raises InputError."""
    refuse_unknown(words, known=_KNOWN, refused=_REFUSED, variables={})
    made = Translation(notes=list(words.notes))
    round_name, mode = _variations(words, made)
    model = _model(words)
    implementation, engine = _engine(words)
    _category(words)
    style = _style(words, mode)
    scenario = words.flags.get("scenario", "Offline")
    settings = engine_settings(words, engine, implementation, made) + loadgen_settings(words, style)
    results = Path(words.flags.get("results_dir", str(ROOT)))
    place = results / f"{style}_results" / f"{implementation}-{model}" / f"{scenario}-{mode}"
    verb = container_words(words)
    if _is_there(place, cwd, words, made, verb):
        return made
    inputs = remembered(cwd)
    checkpoint = words.flags.get("checkpoint") or inputs.get("model")
    arguments: list[str | Path] = [*verb, "--benchmark", model, "--scenario", scenario]
    arguments += ["--round", round_name] if round_name else []
    arguments += ["--mode", mode, "--engine", engine]
    arguments += ["--model", checkpoint] if checkpoint and engine != "endpoint" else []
    arguments += ["--data", inputs["data"]] if "data" in inputs else []
    if checkpoint and engine == "endpoint":
        settings.append(f"data.tokenizer={checkpoint}")
    for setting in settings:
        arguments += ["--set", setting]
    made.paceline(*arguments, "--out", _next(place, cwd, again=is_yes(words, "rerun")))
    if not checkpoint:
        made.notes.append("No checkpoint is known: mlcr get,ml-model,llama2-70b --checkpoint=DIR.")
    if "data" not in inputs:
        made.notes.append("No dataset is known: mlcr get,dataset,openorca --path=FILE.")
    _say(words, made, ("quiet",), "paceline asks nothing in any case.")
    if "division" in words.flags:
        made.notes.append("--division: it counts when the submission is made.")
    if "find-performance" in words.variations:
        made.notes.append("_find-performance: this short run's samples/s is what to expect.")
    return made


def remembered(cwd: Path) -> dict[str, str]:
    """Checkpoint and dataset of earlier `get` commands, or of MLC's own variables."""
    found = {}
    for name, variable in (
        ("model", "LLAMA2_CHECKPOINT_PATH"),
        ("data", "MLC_DATASET_OPENORCA_PREPROCESSED_PATH"),
    ):
        path = cwd / ROOT / f"{name}.path"
        if path.is_file():
            found[name] = path.read_text(encoding="utf-8").strip()
        elif value := os.environ.get(variable):
            found[name] = value
    return found


def latest(place: Path, cwd: Path) -> Path | None:
    """The newest run at this place: the one with the highest number; None when there is none."""
    numbered = {}
    for path in (cwd / place).parent.glob(f"{place.name}*"):
        match = re.fullmatch(rf"{re.escape(place.name)}(?:-(\d+))?", path.name)
        if match and (path / "manifest.json").is_file():
            numbered[int(match[1] or 1)] = place.with_name(path.name)
    return numbered[max(numbered)] if numbered else None


def _next(place: Path, cwd: Path, *, again: bool) -> Path:
    newest = latest(place, cwd)
    if newest is None or not again:
        return place
    match = re.fullmatch(rf"{re.escape(place.name)}-(\d+)", newest.name)
    return place.with_name(f"{place.name}-{int(match[1]) + 1 if match else 2}")


def _is_there(place: Path, cwd: Path, words: Words, made: Translation, verb: Sequence[str]) -> bool:
    """Whether a run of before answers this command; its step is made then."""
    newest = latest(place, cwd)
    if newest is None or is_yes(words, "rerun"):
        return False
    if RunDir.open(cwd / newest).read_manifest()["status"] == "COMPLETE":
        made.notes.append(f"{newest} is there and whole: it is shown. --rerun makes another.")
        made.paceline("show", newest)
    else:
        made.notes.append(f"{newest} did not end: it is resumed with the settings it began with.")
        made.paceline(*verb, "--resume", newest)
    return True


def _variations(words: Words, made: Translation) -> tuple[str | None, str]:
    """(round, mode) of the variations and of --mode."""
    round_name, modes = None, []
    for name in words.variations:
        if match := re.fullmatch(r"r(\d+\.\d+)(-dev)?", name):
            round_name = f"v{match[1]}"
            if round_name not in rules.ROUNDS:
                known = ", ".join(f"_r{one[1:]}-dev" for one in rules.ROUNDS)
                raise InputError(f"mlcr: paceline has no rules of round {round_name}.", hint=known)
        elif name in _MODES:
            modes.append(name)
        elif name in _REFUSED_VARIATIONS:
            raise InputError(f"mlcr: _{name} cannot be followed: {_REFUSED_VARIATIONS[name]}.")
        elif name not in _PLAIN:
            known = ", ".join(f"_{one}" for one in (*_PLAIN, *_MODES))
            raise InputError(f"mlcr: there is no variation _{name}.", hint=f"{known}, _rX.Y-dev")
    if "short" in words.variations:
        made.notes.append("_short weakens MLC's checker; paceline's stays as strict as it is.")
    chosen = {_MODES[name] for name in modes}
    if "mode" in words.flags:
        chosen.add(words.flags["mode"])
    if len(chosen) > 1:
        raise InputError(f"mlcr: several modes are asked for: {', '.join(sorted(chosen))}.")
    mode = chosen.pop() if chosen else "all"
    if is_yes(words, "compliance"):
        mode = {"all": "submission"}.get(mode, "compliance")
    return round_name, mode


def _model(words: Words) -> str:
    model = words.flags.get("model")
    if model is None:
        raise InputError(
            "mlcr: --model is not given; MLC would take resnet50.", hint="--model=llama2-70b-99.9"
        )
    if model == "llama2-70b-99.99":
        raise InputError(
            "mlcr: llama2-70b-99.99 does not exist: the guide means 99.9.",
            hint="--model=llama2-70b-99.9, or --model=llama2-70b-99",
        )
    return rules.benchmark(model).name


def _engine(words: Words) -> tuple[str, str]:
    """(implementation, our engine for it)."""
    flags = words.flags
    asked = flags.get("implementation", "reference")
    implementation = _SAME.get(asked, asked)
    if implementation not in _FRAMEWORKS:
        known = ", ".join(_FRAMEWORKS)
        raise InputError(f"mlcr: there is no --implementation={asked} here.", hint=known)
    framework = flags.get("framework", flags.get("backend"))
    if framework is not None and framework not in _FRAMEWORKS[implementation]:
        known = ", ".join(_FRAMEWORKS[implementation])
        raise InputError(
            f"mlcr: --implementation={asked} does not go with --framework={framework}.",
            hint=f"--framework= one of {known}",
        )
    if implementation in ("network", "redhat") or "api_server" in flags:
        if not flags.get("api_server"):
            raise InputError(
                f"mlcr: --implementation={asked} asks a server, and none is named.",
                hint="--api_server=http://HOST:8000 (several: with commas)",
            )
        return implementation, "endpoint"
    if framework in ("vllm", "sglang", "trtllm"):
        return implementation, "managed"
    if implementation == "reference":
        return implementation, "reference"
    return implementation, "managed" if implementation == "amd" else "native"


def _category(words: Words) -> None:
    category = words.flags.get("category", "datacenter")
    if category not in ("datacenter", "network"):
        raise InputError(
            f"mlcr: --category={category}: llama2-70b is a datacenter benchmark.",
            hint="--category=datacenter",
        )


def _style(words: Words, mode: str) -> str:
    flags = words.flags
    style = flags.get("execution_mode", flags.get("run_style", "test"))
    if style not in ("test", "valid"):
        raise InputError(
            f"mlcr: --execution_mode={style} is neither a test nor a valid run.",
            hint="--execution_mode=test or --execution_mode=valid",
        )
    if style == "valid" and "test_query_count" in flags:
        raise InputError(
            "mlcr: --test_query_count does nothing in a valid run.", hint="--execution_mode=test"
        )
    if style == "valid" and "find-performance" in words.variations:
        raise InputError(
            f"mlcr: _find-performance is a short run, not a valid one ({mode}).",
            hint="--execution_mode=test",
        )
    return style


def _say(words: Words, made: Translation, names: tuple[str, ...], text: str) -> None:
    made.notes += [f"--{name}: {text}" for name in names if is_yes(words, name)]
