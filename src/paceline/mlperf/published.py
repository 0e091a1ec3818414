"""Published MLPerf results, as they ship with paceline.

load_published   the data file, checked: every result names its round, every round its source
best_of          the best closed result of a card, by tokens/s of one
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources

from paceline.mlperf.rule_kinds import Source

__all__ = ["Published", "PublishedResult", "best_of", "load_published"]

# Forms of a card that are slower than the one of the plain name.
_FORMS = ("NVL", "PCIe")


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedResult:
    """One published result. `submitter` is empty when it was not stated where it was read."""

    round: str
    division: str
    submitter: str
    system: str
    category: str
    accelerator: str
    accelerators: int
    tokens_per_second: float
    note: str = ""

    @property
    def per_accelerator(self) -> float:
        """Tokens/s of one card."""
        return self.tokens_per_second / self.accelerators


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """The data file: results, and by round where they were read."""

    results: tuple[PublishedResult, ...]
    sources: dict[str, Source]


@cache
def load_published() -> Published:
    """The results that ship with paceline."""
    file = resources.files("paceline.mlperf") / "data" / "published.toml"
    found = tomllib.loads(file.read_text(encoding="utf-8"))
    sources = {
        name: Source(entry["repository"], entry["commit"], entry["read"], name)
        for name, entry in found["sources"].items()
    }
    results = tuple(PublishedResult(**entry) for entry in found["results"])
    for result in results:
        assert result.round in sources, result
    return Published(results=results, sources=sources)


def best_of(card: str) -> PublishedResult | None:
    """The best closed result per card for a card as its driver names it; None without any.

    The longest published name within the card's counts: an H200 is no GH200, and an H100 PCIe no
    H100.
    """
    closed = [one for one in load_published().results if one.division == "closed"]
    names = {one.accelerator for one in closed if one.accelerator in card}
    names = {name for name in names if all((form in name) == (form in card) for form in _FORMS)}
    if not names:
        return None
    name = max(names, key=len)
    same = [one for one in closed if one.accelerator == name]
    return max(same, key=lambda one: one.per_accelerator)
