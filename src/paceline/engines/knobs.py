"""The settings of an engine that change its speed, with the values that are worth a try.

Each engine's settings class has a method `knobs(num_gpus)`; what it gives are choices in order,
so that a search may know that 512 lies between 256 and 1024.

A setting that may change the answers themselves, and not only when they come, is marked so where it
is declared, `field(default="auto", metadata=ANSWERS)`, whether a search is offered it or not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["ANSWERS", "Knob", "answer_settings", "divisors", "powers"]

ANSWERS = {"is_accuracy": True}


@dataclass(frozen=True, slots=True)
class Knob:
    """One setting, by its name in the engine's config."""

    name: str
    choices: tuple[Any, ...]

    @property
    def is_ordered(self) -> bool:
        """Whether the choices lie on a line."""
        return all(
            isinstance(one, int | float) and not isinstance(one, bool) for one in self.choices
        )


def answer_settings(engine_config: Any) -> frozenset[str]:
    """Names of the settings that may change the answers of an engine with these settings."""
    return frozenset(
        field.name
        for field in dataclasses.fields(engine_config)
        if field.metadata.get("is_accuracy", False)
    )


def powers(low: int, high: int) -> tuple[int, ...]:
    """`low` doubled until `high`, which is one of them."""
    found = [low]
    while found[-1] * 2 <= high:
        found.append(found[-1] * 2)
    return tuple(found)


def divisors(number: int) -> Sequence[int]:
    """What divides a number of GPUs into equal groups."""
    return [size for size in range(1, number + 1) if number % size == 0]
