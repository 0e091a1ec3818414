"""Where a run stands among the published MLPerf results.

A contest's teams compete within their hardware category, so a place is one within it, and the
figure is tokens/s divided by the cards that made it.
"""

from __future__ import annotations

from dataclasses import dataclass

from paceline.mlperf.published import PublishedResult, load_published

__all__ = ["Standing", "standing"]

# Some figures were published as whole numbers: one that differs by less is the same.
_ROUNDING = 5e-5


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
