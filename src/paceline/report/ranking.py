"""Places of results: by throughput and by card, within what they compete in; published ones too.

Teams compete within their hardware category. The score of a result is its tokens/s in percent of
the best of its category, division, benchmark and scenario; only results that pass are placed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from paceline.report.results import ShownResult
from paceline.report.standing import standing

__all__ = ["Place", "Ranked", "places", "ranked_groups"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a result stands. Places count from 1; equal figures share one.

    `of_published` is its place by card among closed published Offline results of the category,
    and how many those are; None where there are none, or where the comparison says nothing.
    """

    score: float
    by_throughput: int
    by_accelerator: int | None
    of: int
    of_published: tuple[int, int] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranked:
    """One ranking: what is competed in, and its results with their places, best first."""

    group: tuple[str, str, str, str]
    rows: tuple[tuple[ShownResult, Place], ...]


def ranked_groups(results: Sequence[ShownResult]) -> list[Ranked]:
    """A ranking for each category, division, benchmark and scenario with a passing result."""
    groups: dict[tuple[str, str, str, str], list[ShownResult]] = {}
    for result in results:
        if result.passed:
            groups.setdefault(result.group, []).append(result)
    ranked = []
    for group, members in sorted(groups.items()):
        members.sort(key=lambda result: (-result.tokens_per_second, result.location))
        best = members[0].tokens_per_second
        totals = [result.tokens_per_second for result in members]
        cards = sorted((r.per_accelerator for r in members if r.per_accelerator), reverse=True)
        rows = tuple((result, _place(result, totals, cards, best)) for result in members)
        ranked.append(Ranked(group=group, rows=rows))
    return ranked


def places(groups: Sequence[Ranked]) -> dict[str, Place]:
    """The place of each ranked result, by its location."""
    return {result.location: place for group in groups for result, place in group.rows}


def _place(
    result: ShownResult, totals: Sequence[float], cards: Sequence[float], best: float
) -> Place:
    own = result.per_accelerator
    found = None
    if result.scenario == "Offline" and result.num_accelerators:
        found = standing(result.category, result.tokens_per_second, result.num_accelerators)
    return Place(
        score=100 * result.tokens_per_second / best if best > 0 else 0.0,
        by_throughput=totals.index(result.tokens_per_second) + 1,
        by_accelerator=None if own is None else cards.index(own) + 1,
        of=len(totals),
        of_published=None if found is None else (found.place, len(found.others)),
    )
