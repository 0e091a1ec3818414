"""What `paceline check` and `paceline bench check` do."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import typer

from paceline.cli.annotations import annotation_lines
from paceline.errors import EnvironmentProblem
from paceline.submission.check import CheckedTree, TreeFinding, examine_tree
from paceline.submission.check.bench import bench_check as run_bench
from paceline.submission.check.official import Comparison, compare_with_official
from paceline.submission.check.summary_csv import summary_csv

__all__ = ["bench_check", "check"]


def check(
    tree: Path,
    *,
    round_name: str | None,
    submitter: str | None,
    csv: Path | None,
    official: Path | None,
    annotate: bool,
    as_json: bool,
) -> None:
    """Print the findings that are not a plain PASS; exit 1 when one is FAIL."""
    checked = examine_tree(tree, round_name=round_name, submitter=submitter)
    if csv is not None:
        _write(csv, summary_csv(checked))
    compared = []
    if official is not None:
        compared = compare_with_official(
            checked, official, round_name=round_name, submitter=submitter
        )
    if as_json:
        typer.echo(json.dumps([finding.as_json() for finding in checked.findings], indent=1))
    else:
        _print_findings(checked)
    if annotate:
        for command in annotation_lines(tree, checked.findings):
            typer.echo(command, err=as_json)
    for comparison in compared:
        _print_comparison(comparison, to_stderr=as_json)
    raise typer.Exit(0 if checked.passed else 1)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise EnvironmentProblem(f"{path}: cannot be written ({error.strerror}).") from error


def _print_findings(checked: CheckedTree) -> None:
    telling = [finding for finding in checked.findings if finding.verdict != "PASS"]
    order = {"NOTE": 0, "WARN": 1, "FAIL": 2}
    for finding in sorted(telling, key=lambda found: order[found.verdict]):
        typer.echo(f"{finding.verdict} {finding.path or '.'}")
        typer.echo(f"     {finding.detail}  [{finding.rule}]")
        if finding.mend:
            typer.echo(f"     -> {finding.mend}")
    typer.echo(_counted(checked.findings))
    taken = sum(not checked.failures_of(outcome.result) for outcome in checked.outcomes)
    typer.echo(f"{taken} of {len(checked.outcomes)} results pass: {_word(checked)}")


def _word(checked: CheckedTree) -> str:
    return "PASS" if checked.passed else "FAIL"


def _counted(findings: Sequence[TreeFinding]) -> str:
    counts = Counter(finding.verdict for finding in findings)
    return (
        f"{len(findings)} checks: {counts['PASS']} passed, {counts['NOTE']} notes, "
        f"{counts['WARN']} warnings, {counts['FAIL']} failed"
    )


def _print_comparison(comparison: Comparison, *, to_stderr: bool) -> None:
    head = f"official checker, {comparison.round_name}: "
    if comparison.stopped is not None:
        typer.echo(f"{head}stopped without a verdict: {comparison.stopped}", err=to_stderr)
        return
    typer.echo(
        f"{head}exit {comparison.exit_code}; agrees with ours on {comparison.num_agreed} results, "
        f"disagrees on {len(comparison.disagreements)}",
        err=to_stderr,
    )
    for found in comparison.disagreements:
        typer.echo(f"  {found.path}: official {found.official}, ours {found.ours}", err=to_stderr)
        for reason in found.reasons:
            typer.echo(f"    {reason}", err=to_stderr)


def bench_check(directories: int, *, as_json: bool) -> None:
    """Print how long a check of so many scenario directories takes."""
    measured = run_bench(directories)
    if as_json:
        typer.echo(json.dumps(measured))
    else:
        typer.echo(
            f"{measured['directories']:.0f} scenario directories in {measured['seconds']:.1f} s, "
            f"{measured['ms_per_directory']:.1f} ms each"
        )
