"""What a student contest asks for of each attempt: cert-N-mlperf.{tstamps,input,rslts,run}.

Times are the contest's, America/Chicago; a manifest has them in UTC.
"""

from __future__ import annotations

import datetime
import json
import zoneinfo
from collections.abc import Mapping
from typing import Any

from paceline.errors import MissingExtraError
from paceline.submission.recipe import recipe_text
from paceline.submission.tree import Submission

__all__ = ["certificates", "contest_time"]

_ZONE = "America/Chicago"
_FIGURES = (
    "result",
    "accuracy",
    "compliance",
    "tokens_per_second",
    "samples_per_second",
    "duration_s",
    *("rouge1", "rouge2", "rougeL", "tokens_per_sample"),
)


def certificates(submission: Submission, *, attempt: int, script: str) -> dict[str, str]:
    """The four files of an attempt, by name. Raises MissingExtraError without time zones."""
    return {
        f"cert-{attempt}-mlperf.tstamps": _times(submission),
        f"cert-{attempt}-mlperf.input": _inputs(submission),
        f"cert-{attempt}-mlperf.rslts": _figures(submission),
        f"cert-{attempt}-mlperf.run": script,
    }


def contest_time(moment: str) -> str:
    """A manifest's time, ISO 8601 in UTC, as the contest writes it."""
    try:
        zone = zoneinfo.ZoneInfo(_ZONE)
    except zoneinfo.ZoneInfoNotFoundError as error:
        raise MissingExtraError(
            f"This machine has no table of time zones, so {_ZONE} is unknown.",
            hint="pip install tzdata",
        ) from error
    local = datetime.datetime.fromisoformat(moment).astimezone(zone)
    return local.strftime(f"%Y-%m-%d %H:%M:%S %Z ({_ZONE})")


def _times(submission: Submission) -> str:
    lines = []
    for result in submission.results:
        for test in result.tests:
            what = f"{result.benchmark} {result.scenario} {test.name}"
            for word in ("started", "ended"):
                lines.append(f"{what} {word} {contest_time(test.facts[word])}")
    return "\n".join([*lines, ""])


def _inputs(submission: Submission) -> str:
    parts = []
    for result in submission.results:
        test = result.performance
        parts += [
            f"# {result.benchmark} {result.scenario}: recipe",
            recipe_text(test),
            f"# {result.benchmark} {result.scenario}: user.conf",
            (test.folder / "user.conf").read_text(),
        ]
    return "\n".join(parts)


def _figures(submission: Submission) -> str:
    rows: list[Mapping[str, Any]] = []
    for result in submission.results:
        found: dict[str, Any] = {"benchmark": result.benchmark, "scenario": result.scenario}
        for test in result.tests:
            found |= {k: test.verdict[k] for k in _FIGURES if test.verdict.get(k) is not None}
        rows.append(found)
    return json.dumps(rows, indent=2) + "\n"
