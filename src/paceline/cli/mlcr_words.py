"""The words of an `mlcr` command: tags, variations, flags; and what a translation is made of.

`mlcr run-mlperf,inference,_full,_r5.1-dev --model=llama2-70b-99 --docker` has the tags
{run-mlperf, inference}, the variations {full, r5.1-dev} and two flags. Dashes and underscores in
a flag's name are the same. A flag that is not in the command's table is refused with the nearest
name, as is one that is there and has no meaning here, with the reason; none is ignored.
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from paceline.errors import InputError

__all__ = ["Step", "Translation", "Words", "is_yes", "read_words", "refuse_unknown"]

_YES, _NO = ("yes", "true", "on", "1"), ("no", "false", "off", "0")
_OLD = "cm_"


@dataclass(frozen=True, kw_only=True, slots=True)
class Words:
    """A command taken apart. A flag without a value has the value "yes"."""

    tags: frozenset[str]
    variations: tuple[str, ...]
    flags: Mapping[str, str]
    environment: Mapping[str, str]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One thing to do: "paceline" and its arguments, or "move", "copy", "remember" and two."""

    kind: str
    arguments: tuple[str, ...]

    @property
    def text(self) -> str:
        """The step as one could type it."""
        first, *rest = self.arguments
        if self.kind == "paceline":
            return shlex.join(["paceline", *self.arguments])
        if self.kind == "remember":
            return f"# {first} of later commands: {' '.join(rest)}"
        return shlex.join(["mv" if self.kind == "move" else "cp", *self.arguments])


@dataclass(kw_only=True, slots=True)
class Translation:
    """What a command becomes: steps in order, and notes on what was put right."""

    steps: list[Step] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def paceline(self, *arguments: str | Path) -> None:
        """Add a command of ours."""
        self.steps.append(Step(kind="paceline", arguments=tuple(map(str, arguments))))

    def add(self, kind: str, *arguments: str | Path) -> None:
        """Add a step of another kind."""
        self.steps.append(Step(kind=kind, arguments=tuple(map(str, arguments))))


def read_words(arguments: list[str]) -> Words:
    """Take a command apart. Raises InputError for a word that is no part of one."""
    tags: list[str] = []
    flags: dict[str, str] = {}
    environment: dict[str, str] = {}
    notes: list[str] = []
    for argument in arguments:
        if not argument.startswith("-"):
            if tags:
                raise InputError(
                    f"mlcr: {argument!r} stands alone.",
                    hint="values belong to a flag: --flag=value",
                )
            tags = argument.split(",")
            continue
        name, equals, value = argument.lstrip("-").partition("=")
        if not equals:
            value = "yes"
        if name == "tags":
            tags += value.split(",")
        elif name.startswith("env."):
            _once(environment, _renamed(name.removeprefix("env."), notes), value)
        elif name.startswith("adr."):
            raise InputError(
                f"mlcr: --{name} addresses a dependency of an MLC script; paceline has none.",
                hint="leave it out",
            )
        else:
            _once(flags, name.replace("-", "_"), value)
    return Words(
        tags=frozenset(tag for tag in tags if tag and not tag.startswith("_")),
        variations=tuple(tag[1:] for tag in tags if tag.startswith("_")),
        flags=flags,
        environment=environment,
        notes=tuple(notes),
    )


def _once(values: dict[str, str], name: str, value: str) -> None:
    if values.get(name, value) != value:
        raise InputError(f"mlcr: --{name} is given twice: {values[name]} and {value}.")
    values[name] = value


def _renamed(name: str, notes: list[str]) -> str:
    """A variable's name of today: CM_ was the prefix of MLC's predecessor, and does nothing."""
    if not name.lower().startswith(_OLD):
        return name
    better = f"MLC_{name[len(_OLD) :]}"
    notes.append(f"--env.{name}: CM_ is the old prefix, which MLC ignores; read as {better}.")
    return better


def refuse_unknown(
    words: Words,
    *,
    known: Mapping[str, str],
    refused: Mapping[str, str],
    variables: Mapping[str, str],
) -> None:
    """Raise InputError for a flag or variable that the command has not, or has no use for."""
    for name in words.flags:
        if name in refused:
            raise InputError(f"mlcr: --{name} cannot be followed: {refused[name]}")
        if name not in known:
            raise InputError(f"mlcr: there is no flag --{name}.", hint=_nearest(name, known, "--"))
    for name in words.environment:
        if name in refused:
            raise InputError(f"mlcr: --env.{name} cannot be followed: {refused[name]}")
        if name not in variables:
            hint = _nearest(name, variables, "--env.")
            raise InputError(f"mlcr: --env.{name} has no meaning here.", hint=hint)


def _nearest(name: str, known: Mapping[str, str], prefix: str) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    if close:
        return f"did you mean {prefix}{close[0]}?"
    return f"known: {', '.join(prefix + one for one in sorted(known))}" if known else "leave it out"


def is_yes(words: Words, name: str, *, default: bool = False) -> bool:
    """Whether a yes/no flag says yes. Raises InputError for another word."""
    value = words.flags.get(name)
    if value is None:
        return default
    if value.lower() in _YES:
        return True
    if value.lower() in _NO:
        return False
    raise InputError(f"mlcr: --{name}={value} is neither yes nor no.")
