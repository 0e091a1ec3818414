"""Keys, their types and defaults, and how a recipe, --set and flags give them values.

Keys are dotted: `run.benchmark`, `engine.reference.batch_size`. The keys of an engine are the
fields of that engine's own config class. A later origin wins: default, recipe, --set, flag. A key
that does not exist, a value of the wrong type and an override for an engine that is not selected
are errors; nothing is dropped.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import itertools
import textwrap
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paceline.engines import ENGINES, config_class
from paceline.errors import RecipeError
from paceline.power import NONE

__all__ = ["AUTO", "MODES", "Key", "Setting", "engine_names", "known_keys", "read_settings"]

MODES = ("performance", "accuracy", "compliance", "all", "submission")
AUTO = "auto"

_KIND_NAMES = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    tuple: "a list of texts (or texts separated by commas)",
}


@dataclass(frozen=True, slots=True)
class Key:
    """One key a recipe may set: its type, default, whether "auto" is allowed, and its meaning."""

    kind: type
    default: Any
    doc: str
    auto: bool = False


@dataclass(frozen=True, slots=True)
class Setting:
    """A value and where it came from: "default", "recipe NAME", "--set" or a flag."""

    value: Any
    origin: str


_KEYS: dict[str, Key] = {
    "run.benchmark": Key(str, "smollm2-135m-99", "benchmark name, with its accuracy suffix"),
    "run.scenario": Key(str, "Offline", "Offline, Server or Interactive"),
    "run.round": Key(str, AUTO, "MLPerf round; auto: the round of the LoadGen wheel", auto=True),
    "run.mode": Key(
        str, "all", "performance, accuracy, compliance (TEST06), all (the first two) or submission"
    ),
    "run.num_samples": Key(
        int, AUTO, "use only so many samples of the dataset, evenly spaced", auto=True
    ),
    "run.stall_timeout_s": Key(
        float, 1800.0, "end the run when nothing was made for so many seconds"
    ),
    "run.probe_s": Key(
        float, 30.0, "seconds to measure before a performance run whose target_qps is auto; 0: none"
    ),
    "run.find_qps": Key(bool, False, "search the highest rate that stays VALID, then run at it"),
    "run.network": Key(bool, False, "run as the network division asks: the SUT is on other hosts"),
    "data.path": Key(str, AUTO, "dataset (.parquet, or the published pickle)", auto=True),
    "data.tokenizer": Key(
        str, AUTO, "tokenizer for scoring (tokenizer.json, its folder, GGUF)", auto=True
    ),
    "data.trust_pickle": Key(bool, False, "open a pickle whose checksum is not the published one"),
    "model.path": Key(str, AUTO, "checkpoint: Hugging Face directory or GGUF file", auto=True),
    "loadgen.target_qps": Key(
        float, AUTO, "samples/s: sizes an Offline run, is the load of the others", auto=True
    ),
    "loadgen.min_duration_ms": Key(int, AUTO, "shortest performance run", auto=True),
    "loadgen.min_query_count": Key(int, AUTO, "fewest samples of a performance run", auto=True),
    "find_qps.probe_s": Key(float, 60.0, "seconds of load of one probe"),
    "find_qps.probe_queries": Key(
        int, AUTO, "fewest queries of one probe; auto: enough to be VALID", auto=True
    ),
    "find_qps.precision": Key(float, 0.02, "stop when the best rate is known to this fraction"),
    "find_qps.margin": Key(float, 0.02, "run at so much less, and so much less after an INVALID"),
    "find_qps.attempts": Key(int, 4, "final performance tests before the search is given up"),
    "power.cap": Key(str, NONE, "warn when the sum of power nears this, as 10kW"),
    "power.lower_limits": Key(bool, False, "near the cap, lower the cards' power limits (root)"),
    "power.nodes": Key(str, NONE, "folder in which `paceline power` of other nodes writes"),
    "power.redfish": Key(str, NONE, "BMC that tells the node's power, as https://BMC"),
    "power.redfish_verify_tls": Key(bool, True, "check the BMC's certificate"),
    "engine.name": Key(str, "reference", f"one of {', '.join(ENGINES)}"),
}


def known_keys() -> dict[str, Key]:
    """Every key that exists, in the order of `explain`: the common ones, then each engine's."""
    keys = dict(_KEYS)
    for engine in ENGINES:
        cls = config_class(engine)
        docs = _field_docs(cls)
        for field in dataclasses.fields(cls):
            if not field.metadata.get("is_key", True):
                continue
            kind = type(field.default)
            keys[f"engine.{engine}.{field.name}"] = Key(kind, field.default, docs[field.name])
    return keys


def _field_docs(cls: type[Any]) -> dict[str, str]:
    """The text under each field of a config class: its documentation, kept in one place."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    docs: dict[str, str] = {}
    for field, text in itertools.pairwise(body.body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
            docs[ast.unparse(field.target)] = " ".join(ast.literal_eval(text.value).split())
    return docs


def read_settings(
    recipe: Path | None,
    overrides: Sequence[str] = (),
    *,
    flags: Mapping[str, Any] | None = None,
) -> dict[str, Setting]:
    """Every known key with its value and origin.

    `overrides` are "key=value" texts (TOML values; anything else is a string). `flags` are keys
    set by command line flags; None values are flags not given. Raises RecipeError.
    """
    keys = known_keys()
    settings = {name: Setting(key.default, "default") for name, key in keys.items()}
    if recipe is not None:
        for name, value in _flatten(_read_toml(recipe)).items():
            where = f"recipe {recipe.name}"
            settings[name] = Setting(_checked(name, value, keys, where=str(recipe)), where)
    explicit: list[tuple[str, str]] = []
    for override in overrides:
        name, value = _parse_override(override)
        settings[name] = Setting(_checked(name, value, keys, where="--set"), "--set")
        explicit.append((name, f"--set {name}"))
    for name, value in (flags or {}).items():
        if value is not None:
            settings[name] = Setting(_checked(name, value, keys, where="flag"), "flag")
    names = engine_names({name: setting.value for name, setting in settings.items()})
    _refuse_unused(explicit, names)
    return settings


def engine_names(values: Mapping[str, Any]) -> tuple[str, ...]:
    """The engine of a run, and the one that it runs copies of, if it does that."""
    name = str(values["engine.name"])
    copied = values.get(f"engine.{name}.engine")
    return (name,) if copied is None else (name, str(copied))


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError as error:
        raise RecipeError(
            f"There is no recipe {path}.", hint="ls recipes/, or run without one for the demo"
        ) from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"{path} cannot be read as TOML: {error}.") from error


def _flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in table.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _parse_override(text: str) -> tuple[str, Any]:
    name, equals, raw = text.partition("=")
    if not equals or not name.strip():
        raise RecipeError(f"--set {text}: not of the form key=value.", hint="--set run.mode=all")
    try:
        value = tomllib.loads(f"value = {raw.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        value = raw.strip()
    return name.strip(), value


def _checked(name: str, value: Any, keys: Mapping[str, Key], *, where: str) -> Any:
    """The value, if the key exists and its type fits. Raises RecipeError."""
    key = keys.get(name)
    if key is None:
        close = difflib.get_close_matches(name, list(keys), n=1, cutoff=0.5)
        raise RecipeError(
            f"{where}: there is no key '{name}'.",
            hint=f"did you mean '{close[0]}'?" if close else "paceline explain lists every key",
        )
    if key.auto and value == AUTO:
        return value
    if key.kind is tuple:
        value = _as_list(value)
    if key.kind is str and isinstance(value, bool):
        value = str(value).lower()  # a text whose choices are auto, true and false
    fits = isinstance(value, key.kind) or (key.kind is float and isinstance(value, int))
    if not fits or (isinstance(value, bool) and key.kind is not bool):
        raise RecipeError(
            f"{where}: {name} is {value!r}, but must be {_KIND_NAMES[key.kind]}"
            f"{' or auto' if key.auto else ''}."
        )
    return float(value) if key.kind is float else value


def _as_list(value: Any) -> Any:
    """Texts in a TOML list, or separated by commas; anything else is left to be refused."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return tuple(value)
    return value


def _refuse_unused(explicit: Sequence[tuple[str, str]], used: Sequence[str]) -> None:
    for name, shown in explicit:
        parts = name.split(".")
        if parts[0] == "engine" and len(parts) == 3 and parts[1] not in used:
            raise RecipeError(
                f"{shown} would do nothing: the engine of this run is '{' of '.join(used)}'.",
                hint=f"--engine {parts[1]}, or leave it out",
            )
