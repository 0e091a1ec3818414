"""The official checker beside ours, result by result.

It is run from a checkout of mlcommons/inference that the user gives, as a program of its own,
on the same tree; its log says which results it takes. A tree on which it stops with a traceback
has no verdict of its own: that is said, with the exception.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from paceline.errors import EnvironmentProblem, InputError
from paceline.submission.check.findings import shown
from paceline.submission.check.tree import NEWEST, CheckedTree

__all__ = ["Comparison", "Disagreement", "compare_with_official"]

_TIMEOUT_S = 1800
_LOG_CHARS_MAX = 50_000_000
_TAKEN = re.compile(r"(?m) Results (\S.*)/performance/run_1/mlperf_log_detail\.txt \S+$")
_REFUSED = re.compile(r"(?m) NoResults (\S.*)/performance/run_1/mlperf_log_detail\.txt$")
_EXCEPTION = re.compile(r"(?m)^([A-Za-z_][\w.]*(?:Error|Exception|Interrupt)\b.*)$")


@dataclass(frozen=True, kw_only=True, slots=True)
class Disagreement:
    """A result that one checker takes and the other does not; `reasons` are the refuser's."""

    path: str
    official: str
    ours: str
    reasons: tuple[str, ...]

    def as_json(self) -> dict[str, object]:
        """For --json."""
        return {
            "path": self.path,
            "official": self.official,
            "ours": self.ours,
            "reasons": list(self.reasons),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """What the official checker said of a tree for one round, beside ours."""

    round_name: str
    exit_code: int
    stopped: str | None
    num_agreed: int
    disagreements: tuple[Disagreement, ...]


def compare_with_official(
    checked: CheckedTree, checkout: Path, *, round_name: str | None, submitter: str | None
) -> list[Comparison]:
    """Run the official checker for each round in the tree, and compare.

    Raises
        InputError          `checkout` has no submission checker.
        EnvironmentProblem  no Python here has PyYAML, or the checker does not end.
    """
    tools = checkout / "tools" / "submission"
    if not (tools / "submission_checker" / "main.py").is_file():
        raise InputError(
            f"{checkout}: no tools/submission/submission_checker/main.py in it.",
            hint="--official DIR: a checkout of github.com/mlcommons/inference",
        )
    found = {outcome.facts.round_name or NEWEST for outcome in checked.outcomes}
    rounds = [round_name] if round_name else sorted(found) or [NEWEST]
    return [_compare(checked, tools, name, submitter) for name in rounds]


def _python() -> str:
    """This Python when it has PyYAML, which the official checker needs, else the system's."""
    return sys.executable if importlib.util.find_spec("yaml") else "python3"


def _compare(
    checked: CheckedTree, tools: Path, round_name: str, submitter: str | None
) -> Comparison:
    with tempfile.TemporaryDirectory(prefix="paceline-official-") as folder:
        command = [_python(), "-B", "-m", "submission_checker.main"]
        command += ["--input", str(checked.tree.resolve()), "--version", round_name]
        command += ["--csv", str(Path(folder) / "summary.csv")]
        command += ["--submitter", submitter] if submitter else []
        try:
            ended = subprocess.run(
                command,
                cwd=tools,
                capture_output=True,
                timeout=_TIMEOUT_S,
                check=False,
                stdin=subprocess.DEVNULL,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise EnvironmentProblem(f"The official checker cannot be run: {error}") from error
    log = (ended.stdout + ended.stderr).decode("utf-8", "replace")[-_LOG_CHARS_MAX:]
    if "No module named 'yaml'" in log:
        raise EnvironmentProblem(
            "The official checker needs PyYAML, which no Python here has.",
            hint="pip install pyyaml",
        )
    exceptions = _EXCEPTION.findall(log) if "Traceback (most recent call last)" in log else []
    summed_up = "SUMMARY: submission" in log
    stopped = None if summed_up else shown(exceptions[-1] if exceptions else log[-300:])
    return _judge(checked, log, round_name, (ended.returncode, stopped))


def _judge(
    checked: CheckedTree, log: str, round_name: str, ended: tuple[int, str | None]
) -> Comparison:
    root = f"{checked.tree.resolve()}/"
    taken = {path.removeprefix(root) for path in _TAKEN.findall(log)}
    refused = {path.removeprefix(root) for path in _REFUSED.findall(log)}
    agreed, differing = 0, []
    for outcome in checked.outcomes:
        path = outcome.result.path
        if (outcome.facts.round_name or NEWEST) != round_name or ended[1] is not None:
            continue
        ours = checked.failures_of(outcome.result)
        official = "OK" if path in taken else "refused" if path in refused else "not seen"
        if (official == "OK") == (not ours):
            agreed += 1
            continue
        reasons = [f"{finding.rule}: {finding.detail}" for finding in ours] or _errors(log, path)
        differing.append(
            Disagreement(
                path=shown(path),
                official=official,
                ours="FAIL" if ours else "PASS",
                reasons=tuple(reasons[:10]),
            )
        )
    return Comparison(
        round_name=round_name,
        exit_code=ended[0],
        stopped=ended[1],
        num_agreed=agreed,
        disagreements=tuple(differing),
    )


def _errors(log: str, path: str) -> list[str]:
    """The lines of the official log that complain of a result."""
    lines = [line for line in log.splitlines() if path in line and "NoResults" not in line]
    return [
        shown(line.partition("] ")[2] or line)
        for line in lines
        if "ERROR" in line or "WARNING" in line
    ]
