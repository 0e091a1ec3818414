"""Whether a run's samples fit its engine, as far as that is known before anything is loaded.

context_limit(settings, model)          what an engine of these settings holds of one sample
refuse_long_samples(config, lens)       one clear error for a run with a sample that is longer
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paceline.config.resolve import RunConfig
from paceline.engines.context_limit import ContextLimit, refuse_samples
from paceline.mlperf import rules
from paceline.mlperf.gguf_keys import read_gguf_keys

__all__ = ["context_limit", "refuse_long_samples"]

_GGUF_KEY = "llama.context_length"


def context_limit(settings: Any, model: Path | None) -> ContextLimit | None:
    """The limit of an engine's own settings on a model; None where nothing is known of it."""
    limit_of = getattr(settings, "context_limit", None)
    if limit_of is None:
        return None
    found: ContextLimit | None = limit_of(None if model is None else _stored_len(model))
    return found


def refuse_long_samples(config: RunConfig, prompt_lens: Sequence[int]) -> None:
    """Raise InputError when a sample of the run is longer than its engine can hold."""
    limit = context_limit(config.engine_config, config.model_path)
    if limit is not None:
        refuse_samples(limit, prompt_lens, rules.benchmark(config.benchmark).max_new_tokens)


def _stored_len(model: Path) -> int | None:
    """A checkpoint's positions; None where it does not say, or what is damaged: the engine will."""
    try:
        if model.is_file():
            found = read_gguf_keys(model, (_GGUF_KEY,)).get(_GGUF_KEY)
        else:
            found = json.loads((model / "config.json").read_text())["max_position_embeddings"]
        return None if found is None else int(found)
    except (OSError, ValueError, KeyError, TypeError):
        return None
