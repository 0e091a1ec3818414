"""Published MLPerf results, and where a run stands among them.

    load_published   the data file, checked: every result names its round, every round its source
    standing         the place of a figure per accelerator among closed results of its category

A contest's teams compete within their hardware category, so a place is one within it, and the
figure is tokens/s divided by the cards that made it.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources

from paceline.mlperf.rules import Source
from paceline.report.hardware import CATEGORIES

__all__ = ["Published", "PublishedResult", "Standing", "load_published", "standing"]

# Some figures were published as whole numbers: one that differs by less is the same.
_ROUNDING = 5e-5


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """A place among `others`, the closed results of the category, best card first.

    `place` is 1 plus the number of results with a higher figure per accelerator; figures that
    differ by no more than rounding share a place.
    """

    category: str
    per_accelerator: float
    place: int
    others: tuple[PublishedResult, ...]


@cache
def load_published() -> Published:
    """The results that ship with paceline."""
    file = resources.files("paceline.report") / "data" / "published.toml"
    found = tomllib.loads(file.read_text(encoding="utf-8"))
    sources = {
        name: Source(entry["repository"], entry["commit"], entry["read"], name)
        for name, entry in found["sources"].items()
    }
    results = tuple(PublishedResult(**entry) for entry in found["results"])
    for result in results:
        assert result.round in sources, result
        assert result.category in CATEGORIES, result
    return Published(results=results, sources=sources)


def standing(category: str, tokens_per_second: float, num_accelerators: int) -> Standing | None:
    """Where an Offline figure stands; None when nothing is published in its category."""
    if num_accelerators < 1:
        return None
    others = sorted(
        (
            result
            for result in load_published().results
            if result.category == category and result.division == "closed"
        ),
        key=lambda result: -result.per_accelerator,
    )
    if not others:
        return None
    own = tokens_per_second / num_accelerators
    return Standing(
        category=category,
        per_accelerator=own,
        place=1 + sum(result.per_accelerator > own * (1 + _ROUNDING) for result in others),
        others=tuple(others),
    )
