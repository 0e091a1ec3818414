"""What a doctor is asked about: a machine, and the run that a recipe would make of it.

A recipe names files that need not be there yet. They have findings of their own, so the rest of
the recipe is resolved without them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paceline.config import AUTO, RANDOM_WEIGHTS, Setting, demo_dataset, resolve
from paceline.config.resolve import RunConfig
from paceline.mlperf import rules

__all__ = ["Asked", "asked"]

_FILES = ("model.path", "data.path", "data.tokenizer")


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A run as its recipe has it. `config` is decided but for its files.

    `model`, `data` and `tokenizer` are what the recipe says, "auto" included; `recipe` is the
    word to type for it.
    """

    config: RunConfig
    model: str
    data: str
    tokenizer: str
    trust_pickle: bool
    is_round_given: bool
    recipe: str

    @property
    def benchmark(self) -> rules.Benchmark:
        return rules.benchmark(self.config.benchmark)

    @property
    def settings(self) -> Any:
        """The engine's own settings."""
        return self.config.engine_config

    @property
    def needs_model(self) -> bool:
        """Whether a checkpoint is read on this machine."""
        return self.config.engine not in ("endpoint", "fake")

    @property
    def has_random_weights(self) -> bool:
        return self.model.startswith(RANDOM_WEIGHTS)

    @property
    def model_folder(self) -> Path | None:
        """A folder with the checkpoint, when one is named and is there."""
        if self.model == AUTO or self.has_random_weights:
            return None
        path = Path(self.model).expanduser()
        return path if path.is_dir() else None


def asked(
    settings: Mapping[str, Setting], *, recipe: Path | None, wheel_round: str | None
) -> Asked:
    """What `settings` ask for. Raises InputError for what no file could mend."""
    values = {name: settings[name].value for name in _FILES}
    stand_ins = {
        name: dataclasses.replace(settings[name], value=str(demo_dataset()))
        for name, value in values.items()
        if not (name == "model.path" and str(value).startswith(RANDOM_WEIGHTS))
    }
    config = resolve({**settings, **stand_ins}, wheel_round)
    if config.model_engine != config.engine:  # a node is looked at for what is copied there
        inner = config.engine_config.inner
        config = dataclasses.replace(config, engine=config.model_engine, engine_config=inner)
    return Asked(
        config=config,
        model=str(values["model.path"]),
        data=str(values["data.path"]),
        tokenizer=str(values["data.tokenizer"]),
        trust_pickle=bool(settings["data.trust_pickle"].value),
        is_round_given=settings["run.round"].value != AUTO,
        recipe="" if recipe is None else str(recipe),
    )
