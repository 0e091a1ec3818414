"""What a page is made of: sections with paragraphs, tables and figures; numbers as text.

A figure is a Plotly figure as plain data, with the table of the same numbers for whoever cannot
see it, and a sentence that says what it shows. Colours are left to the page, which knows whether
it is read in the light, in the dark or on paper; a trace names one of its palette in
`meta` ("c0", "c1", ... , "bound").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "PALETTE_LEN",
    "Figure",
    "Pair",
    "Section",
    "Table",
    "lines_figure",
    "number",
    "plain_figure",
]

PALETTE_LEN = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table. Columns in `numeric` are set to the right; `marks` gives a row a word for its look:
    "own", "bad" or "good"."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: tuple[int, ...] = ()
    marks: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """A plot: title, what it shows in a sentence, Plotly's data and layout, its numbers."""

    name: str
    title: str
    summary: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    table: Table


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """Texts side by side, each with its heading; `head` stands above them."""

    head: str
    texts: tuple[tuple[str, str], ...]


@dataclass(kw_only=True, slots=True)
class Section:
    """A part of a page. `missing` are sentences on what cannot be shown, and why."""

    name: str
    title: str
    paragraphs: list[str] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def number(value: float | None, digits: int = 1) -> str:
    """A number with thousands separated; a dash when there is none."""
    return "-" if value is None else f"{value:,.{digits}f}"


def plain_figure(
    name: str,
    title: str,
    *,
    summary: str,
    axes: tuple[str, str],
    data: list[dict[str, Any]],
    table: Table,
) -> Figure:
    """A figure with two titled axes."""
    is_named = any(isinstance(x, str) for trace in data for x in trace["x"])
    for trace in data:
        trace["name"] = _plain(trace["name"])
        trace["x"] = [_plain(x) if isinstance(x, str) else x for x in trace["x"]]
    # Left to itself, Plotly takes "99 %" for a number and "10-11" for a date.
    layout = {
        "xaxis": {"title": {"text": axes[0]}} | ({"type": "category"} if is_named else {}),
        "yaxis": {"title": {"text": axes[1]}, "rangemode": "tozero"},
        "showlegend": len([trace for trace in data if trace.get("showlegend", True)]) > 1,
    }
    return Figure(name=name, title=title, summary=summary, data=data, layout=layout, table=table)


def lines_figure(
    name: str,
    title: str,
    *,
    summary: str,
    axes: tuple[str, str],
    series: Sequence[tuple[str, Sequence[float], Sequence[float]]],
    rows_max: int = 60,
) -> Figure:
    """Lines over a common axis; the table has at most `rows_max` points of each, evenly spaced."""
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": label,
            "x": [round(value, 4) for value in xs],
            "y": [round(value, 4) for value in ys],
            "meta": f"c{place % PALETTE_LEN}",
        }
        for place, (label, xs, ys) in enumerate(series)
    ]
    rows: list[tuple[str, ...]] = []
    for label, xs, ys in series:
        count = len(xs)
        chosen: Sequence[int] = range(count)
        if count > rows_max:
            chosen = sorted({round(i * (count - 1) / (rows_max - 1)) for i in range(rows_max)})
        rows += [(label, number(xs[i], 1), number(ys[i], 2)) for i in chosen]
    table = Table(
        caption=title, head=("series", axes[0], axes[1]), rows=tuple(rows), numeric=(1, 2)
    )
    return plain_figure(name, title, summary=summary, axes=axes, data=data, table=table)


def _plain(text: str) -> str:
    """Text that Plotly, which knows a few HTML elements, shows as it is."""
    return text.replace("&", "&amp;").replace("<", "&lt;")
