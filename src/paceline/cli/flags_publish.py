"""The verbs from runs to a submission and the page that shows it, put on the command line."""

from __future__ import annotations

import typer

from paceline.cli import (
    flags_check,
    flags_mlcr,
    flags_push,
    flags_report,
    flags_score,
    flags_submit,
)

__all__ = ["add_verbs"]


def add_verbs(app: typer.Typer) -> None:
    """system, submit, check, score, push, report, site, mlcr."""
    app.command("system")(flags_submit.system)
    app.command("submit")(flags_submit.submit)
    app.command("check")(flags_check.check)
    app.command("score")(flags_score.score)
    app.command("push")(flags_push.push)
    app.command("report")(flags_report.report)
    app.command("site")(flags_report.site)
    # The flags of `mlcr` are MLC's; they are read by its own parser.
    app.command("mlcr", context_settings={"ignore_unknown_options": True})(flags_mlcr.mlcr)
