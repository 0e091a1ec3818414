"""Pages as text: templates filled in, everything escaped, one file that asks nobody for anything.

A page of plots holds Plotly's own script once. Its content security policy names the SHA-256 of
each script it holds and allows no connection, so that a text of a log that got past the escaping
would still not run, and nothing of the page could be sent anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

import jinja2

from paceline.report.blocks import Section

__all__ = ["asset", "environment", "render_page", "script_data", "script_hash"]


@cache
def environment() -> jinja2.Environment:
    """The templates, with every value escaped and every unknown name an error."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("paceline.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def asset(name: str) -> str:
    """The text of a style sheet or a script that ships with paceline."""
    return (resources.files("paceline.report") / "templates" / name).read_text(encoding="utf-8")


@cache
def _plotly() -> str:
    return (resources.files("plotly") / "package_data" / "plotly.min.js").read_text("utf-8")


def script_data(value: object) -> str:
    """JSON that cannot end the script element that holds it."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def script_hash(text: str) -> str:
    """A script's source expression in a content security policy."""
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def render_page(
    title: str, lead: Sequence[Mapping[str, Any]], groups: Sequence[tuple[str, list[Section]]]
) -> str:
    """A page of plots.

    `lead` are the cards at the top, one a run: name, verdict, line. `groups` are (heading,
    sections), one group a run or one for a comparison. Names of sections are unique in a group.
    """
    figures = {
        f"g{place}-{figure.name}": {"data": figure.data, "layout": figure.layout}
        for place, (_, sections) in enumerate(groups)
        for section in sections
        for figure in section.figures
    }
    scripts = [_plotly() if figures else "", asset("report.js")]
    # An inline script's text reaches the browser with line ends made "\n".
    scripts = [text.replace("\r\n", "\n") for text in scripts if text]
    return (
        environment()
        .get_template("report.html")
        .render(
            title=title,
            lead=lead,
            groups=groups,
            style=asset("report.css"),
            scripts=scripts,
            hashes=" ".join(map(script_hash, scripts)),
            figures=script_data(figures),
        )
    )
