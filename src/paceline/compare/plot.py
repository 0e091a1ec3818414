"""A comparison as one SVG picture: where answers part, and how layers agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

__all__ = ["picture"]

_WIDTH, _HEIGHT, _MARGIN = 420, 260, 48


def picture(compared: Mapping[str, Any]) -> str:
    """The SVG's text."""
    panels = [_parting(compared)]
    logits = compared.get("logits") or {}
    if logits.get("layers"):
        layers = logits["layers"]
        top1 = [layer["top1"] for layer in layers]
        errors = [layer["relative_error"] for layer in layers]
        panels.append(_curve("same first choice, by layer", top1, highest=1.0))
        panels.append(_curve("relative error of the output, by layer", errors))
    title = f"{compared['a']['precision']} (a) and {compared['b']['precision']} (b)"
    body = "".join(
        f'<g transform="translate({_WIDTH * place},30)">{panel}</g>'
        for place, panel in enumerate(panels)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH * len(panels)}" '
        f'height="{_HEIGHT + 30}" font-family="sans-serif" font-size="11">'
        f'<rect width="100%" height="100%" fill="white"/>'
        f'<text x="12" y="18" font-size="13">{escape(title)}</text>{body}</svg>\n'
    )


def _parting(compared: Mapping[str, Any]) -> str:
    """How many answers are still the same after so many tokens."""
    parted = [place for place in compared["first_differences"] if place is not None]
    total = len(compared["first_differences"])
    longest = max(parted, default=1)
    shares = [1 - sum(place < token for place in parted) / total for token in range(longest + 2)]
    return _curve("answers still the same, by token", shares, highest=1.0)


def _curve(title: str, values: Sequence[float], *, highest: float | None = None) -> str:
    top = highest or max(max(values), 1e-12)
    inner_width, inner_height = _WIDTH - 2 * _MARGIN, _HEIGHT - 2 * _MARGIN

    def at(index: int, value: float) -> str:
        x = _MARGIN + inner_width * index / max(len(values) - 1, 1)
        y = _HEIGHT - _MARGIN - inner_height * value / top
        return f"{x:.1f},{y:.1f}"

    points = " ".join(at(index, value) for index, value in enumerate(values))
    base, left = _HEIGHT - _MARGIN, _MARGIN
    ticks = "".join(
        f'<text x="{left - 6}" y="{base - inner_height * part + 4:.1f}" text-anchor="end">'
        f"{top * part:.3g}</text>"
        f'<line x1="{left}" x2="{_WIDTH - _MARGIN}" y1="{base - inner_height * part:.1f}" '
        f'y2="{base - inner_height * part:.1f}" stroke="#ddd"/>'
        for part in (0.0, 0.25, 0.5, 0.75, 1.0)
    )
    return (
        f'<text x="{left}" y="{_MARGIN - 14}">{escape(title)}</text>{ticks}'
        f'<polyline points="{points}" fill="none" stroke="#1f5fa8" stroke-width="2"/>'
        f'<text x="{left}" y="{base + 18}">0</text>'
        f'<text x="{_WIDTH - _MARGIN}" y="{base + 18}" text-anchor="end">{len(values) - 1}</text>'
    )
