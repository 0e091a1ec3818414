"""What a meter reads, and which readings add up to what a host draws.

A card's own sensor, the counters of the processors, and a reading of the whole node (BMC) overlap:
the node's has the others in it. So a host's sum is the node's reading where there is one, and the
cards, processors and memory where there is none. "platform" (RAPL's psys) is recorded and not
summed: what it covers differs from board to board.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

__all__ = ["CARD", "CPU", "MEMORY", "NODE", "PLATFORM", "Meter", "Reading", "summed_scopes"]

CARD, CPU, MEMORY, NODE, PLATFORM = "card", "cpu", "memory", "node", "platform"
_PARTS = frozenset({CARD, CPU, MEMORY})


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """Watts of one device at a moment, and what else its sensor says; None where it does not.

    `limit_w` is the power limit in force, `throttles` why the clocks are lowered.
    """

    device: str
    scope: str
    source: str
    power_w: float
    clock_mhz: int | None = None
    temperature_c: float | None = None
    limit_w: float | None = None
    throttles: tuple[str, ...] | None = None

    def as_json(self) -> Mapping[str, Any]:
        """Plain values of what is known."""
        facts = asdict(self) | {"power_w": round(self.power_w, 3)}
        return {name: value for name, value in facts.items() if value is not None}


class Meter(Protocol):
    """A source of readings. `every_s` is how often it is worth asking."""

    name: str
    every_s: float

    def read(self) -> list[Reading] | None:
        """What it says; empty when it did not answer, None when it is too early to ask again."""

    def close(self) -> None: ...


def summed_scopes(scopes: Iterable[str]) -> frozenset[str]:
    """The scopes that add up to a host's power, of those that it has."""
    found = set(scopes)
    return frozenset({NODE}) if NODE in found else _PARTS & found
