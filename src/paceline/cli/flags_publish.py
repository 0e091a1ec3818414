"""The verbs from a submission to the page that shows it, put on the command line together."""

from __future__ import annotations

import typer

from paceline.cli import flags_mlcr, flags_push, flags_report, flags_score

__all__ = ["add_verbs"]


def add_verbs(app: typer.Typer) -> None:
    """score, push, report, site, mlcr."""
    app.command("score")(flags_score.score)
    app.command("push")(flags_push.push)
    app.command("report")(flags_report.report)
    app.command("site")(flags_report.site)
    # The flags of `mlcr` are MLC's; they are read by its own parser.
    app.command("mlcr", context_settings={"ignore_unknown_options": True})(flags_mlcr.mlcr)
