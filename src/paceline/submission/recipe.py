"""A run as it can be repeated: a recipe with every setting, and the commands that use it.

A manifest has the config that a run was decided to. `recipe_text` writes it back as a recipe in
which nothing is left to a default, and `command` the line that runs it. What differs between
machines, the places of the model, the dataset and the tokenizer, stands in shell variables, each
with the SHA-256 that it must have.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paceline.submission.matching import Result, Test

__all__ = ["command", "inputs_text", "recipe_name", "recipe_text"]

_LOADGEN = ("target_qps", "min_duration_ms", "min_query_count")


def recipe_name(result: Result) -> str:
    """The recipe's file name in a tree."""
    return f"{result.benchmark}-{result.scenario}.toml"


def recipe_text(test: Test) -> str:
    """TOML with every key of the run, but for the places of its inputs."""
    config = test.config
    values = {
        f"run.{name}": config[name]
        for name in ("benchmark", "scenario", "round", "num_samples", "stall_timeout_s")
    }
    if config.get("network"):
        values["run.network"] = True
    values |= {f"loadgen.{name}": config["loadgen"][name] for name in _LOADGEN}
    engine = config["engine"]
    values["engine.name"] = engine
    values |= {
        f"engine.{engine}.{name}": value
        for name, value in config["engine_config"].items()
        if _variable(value, test) is None
    }
    head = (
        "# Every setting of the run. Model, dataset and tokenizer are given on the command line.\n"
    )
    return head + "".join(f"{name} = {_toml(value)}\n" for name, value in values.items())


def command(test: Test, recipe: str) -> str:
    """The shell line that repeats the test; $MODEL, $DATASET and $TOKENIZER are its inputs."""
    config = test.config
    words = ["paceline", "run", recipe, "--mode", test.name]
    if config["model_path"] is not None:
        words += ["--model", '"$MODEL"']
    words += ["--data", '"$DATASET"']
    if config["trust_pickle"]:
        words.append("--trust-pickle")
    if config["tokenizer_path"] not in (None, config["model_path"]):
        words += ["--set", 'data.tokenizer="$TOKENIZER"']
    for name, value in config["engine_config"].items():
        if variable := _variable(value, test):
            words += ["--set", f'engine.{config["engine"]}.{name}="${variable}"']
    return " ".join([*words, "--out", f'"$OUT/{test.name}"'])


def inputs_text(test: Test) -> list[tuple[str, str, str]]:
    """(variable, what it is, SHA-256 or what says it) of each input of the run."""
    config, manifest = test.config, test.manifest
    rows = [("DATASET", Path(config["data_path"]).name, str(manifest["dataset"]["sha256"]))]
    model = manifest.get("model")
    if model is not None:
        rows += [
            ("MODEL", f"{Path(model['path']).name}/{name}", sha256)
            for name, sha256 in model["files"].items()
        ]
    if config["tokenizer_path"] not in (None, config["model_path"]):
        name = Path(config["tokenizer_path"]).name
        rows.append(("TOKENIZER", name, "the tokenizer of the dataset"))
    return rows


def _variable(value: Any, test: Test) -> str | None:
    """The shell variable that stands for a setting which is one of the run's inputs."""
    if not isinstance(value, str) or not value:
        return None
    place = str((Path(test.manifest["cwd"]) / value).resolve())
    config: Mapping[str, Any] = test.config
    for variable, name in (("DATASET", "data_path"), ("MODEL", "model_path")):
        if config[name] == place:
            return variable
    return None


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value) if isinstance(value, str) else repr(value)
