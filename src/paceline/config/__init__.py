"""From a recipe, overrides and flags to one frozen run configuration, with every value's origin.

    settings = read_settings(recipe, overrides)   every known key with its value and its origin
    config = resolve(settings, wheel_round)       "auto" turned into values, checked, frozen

    settings.py   keys, their types and defaults; reading recipes and overrides
    resolve.py    RunConfig, and how "auto" becomes a value
    scenario.py   what the scenario decides: LoadGen's settings, the search for a rate
    serving.py    the same for a server: an engine and its model alone
    context.py    whether the samples fit the engine

All validation that needs no device happens here, before torch or LoadGen is imported.
"""

from paceline.config.context import context_limit, refuse_long_samples
from paceline.config.resolve import (
    RANDOM_WEIGHTS,
    RunConfig,
    demo_dataset,
    effective_values,
    embedded_model,
    resolve,
)
from paceline.config.scenario import FindQps, LoadGenSettings
from paceline.config.serving import EngineChoice, resolve_engine
from paceline.config.settings import AUTO, MODES, Key, Setting, known_keys, read_settings

__all__ = [
    "AUTO",
    "MODES",
    "RANDOM_WEIGHTS",
    "EngineChoice",
    "FindQps",
    "Key",
    "LoadGenSettings",
    "RunConfig",
    "Setting",
    "context_limit",
    "demo_dataset",
    "effective_values",
    "embedded_model",
    "known_keys",
    "read_settings",
    "refuse_long_samples",
    "resolve",
    "resolve_engine",
]
