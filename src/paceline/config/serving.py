"""What `paceline serve` needs of a recipe: the engine and the model, no dataset, no LoadGen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paceline.config.resolve import engine_settings, resolve_model
from paceline.config.settings import AUTO, Setting, engine_names
from paceline.mlperf import rules

__all__ = ["EngineChoice", "resolve_engine"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineChoice:
    """An engine, its settings and its model, decided. The benchmark names EOS and vocabulary."""

    benchmark: rules.Benchmark
    engine: str
    engine_config: Any
    model_path: Path | None
    tokenizer_path: Path | None


def resolve_engine(settings: Mapping[str, Setting]) -> EngineChoice:
    """The engine that a recipe's run would use. Raises InputError."""
    value = {name: setting.value for name, setting in settings.items()}
    benchmark = rules.benchmark(value["run.benchmark"])
    engine = value["engine.name"]
    model = resolve_model(value["model.path"], engine_names(value)[-1], benchmark)
    tokenizer = value["data.tokenizer"]
    return EngineChoice(
        benchmark=benchmark,
        engine=engine,
        engine_config=engine_settings(engine, value),
        model_path=model,
        tokenizer_path=model if tokenizer == AUTO else Path(tokenizer).expanduser().resolve(),
    )
