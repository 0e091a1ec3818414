"""What a server is planned to be, and how its preset and the user's own flags become words.

    ServerPlan     one server, decided: model, port, sizes
    Preset         one kind of server; `server_presets.PRESETS` holds them
    merged(...)    flags with the user's, where the user's win

See `server_presets` for the kinds.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paceline.errors import InputError

__all__ = ["Flag", "Preset", "ServerPlan", "merged", "write_config"]

# A flag with its value, None for a switch.
Flag = tuple[str, str | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerPlan:
    """One server, decided. `quantization` is what the server does to the weights: fp8 or none."""

    model: Path
    model_name: str
    executable: str
    port: int
    tensor_parallel: int
    pipeline_parallel: int
    quantization: str
    kv_dtype: str
    max_num_seqs: int
    max_step_tokens: int
    max_model_len: int
    memory_fraction: float
    num_threads: int
    config_path: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """One kind of server.

    `vendor` is nvidia, amd or None for one that runs on a CPU; `kind` the endpoint engine's word
    for it. `head` gives the words before the flags. `config` is written to the plan's
    `config_path`. `no_reuse` is the flag that turns off the reuse of prompts, or names the file
    that does; None where no flag does. `context_flags` decide how long a request may be, empty
    where the checkpoint does. `aliases` are other spellings of the preset's flags.
    `budgets` holds (least memory of a server's GPUs in GiB, sequences, tokens a step), largest
    first.
    """

    vendor: str | None
    kind: str
    executable: str
    head: Callable[[ServerPlan], tuple[str, ...]]
    flags: Callable[[ServerPlan], list[Flag]]
    config: Callable[[ServerPlan], dict[str, Any]] | None = None
    no_reuse: str | None = None
    context_flags: tuple[str, ...] = ()
    health_path: str = "/health"
    environment: Mapping[str, str] = field(default_factory=dict)
    version_words: tuple[str, ...] | None = None
    version_pattern: str | None = None
    budgets: tuple[tuple[float, int, int], ...]
    memory_fraction: float = 0.0
    can_quantize: bool = True
    aliases: Mapping[str, str] = field(default_factory=dict)


_FLAG = re.compile(r"--?[A-Za-z]")
# Chosen by paceline, which must know where to find the server.
_OWN = frozenset({"host", "port"})


def merged(preset: Preset, flags: Sequence[Flag], extra: str) -> tuple[list[str], dict[str, str]]:
    """The flags' words with the user's after them, and which of the preset's gave way.

    A flag that the user gives too is left out, whatever its spelling: another alias, `_` for `-`,
    `--no-` before it. Raises InputError for an unbalanced quote and for host and port.
    """
    try:
        words = shlex.split(extra)
    except ValueError as error:
        raise InputError(f"engine.managed.extra_args cannot be split: {error}.") from error
    given: dict[str, str] = {}
    for word in words:
        if _FLAG.match(word):
            canonical = _canonical(word, preset)
            given[canonical] = word
        elif given:
            given[canonical] += f" {shlex.quote(word)}"
    for name in _OWN & given.keys():
        raise InputError(
            f"engine.managed.extra_args sets {given[name]}, which paceline chooses itself.",
            hint="for a server at an address of its own: --engine endpoint",
        )
    kept: list[str] = []
    overridden: dict[str, str] = {}
    for name, value in flags:
        shown = [name] if value is None else [name, value]
        if (canonical := _canonical(name, preset)) in given:
            overridden[shlex.join(shown)] = given[canonical]
        else:
            kept += shown
    return [*kept, *words], overridden


def _canonical(word: str, preset: Preset) -> str:
    name = word.partition("=")[0].lstrip("-").replace("_", "-").removeprefix("no-")
    return preset.aliases.get(name, name)


def write_config(preset: Preset, plan: ServerPlan) -> None:
    """The settings file that some servers want; JSON, which is YAML too."""
    if preset.config is not None:
        plan.config_path.parent.mkdir(parents=True, exist_ok=True)
        plan.config_path.write_text(json.dumps(preset.config(plan), indent=2) + "\n")
