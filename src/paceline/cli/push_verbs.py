"""What `paceline push` does: check, show what would change, push, print the pull request."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import typer

from paceline.submission.publish import Pushed, PushOrder, Ready, prepare_push
from paceline.submission.publish import push as push_ready
from paceline.submission.publish_git import Change

__all__ = ["push"]

_SHOWN = 40
_MARKS = {"added": "+", "changed": "~", "deleted": "-"}


def push(order: Mapping[str, Any], *, dry_run: bool, as_json: bool) -> None:
    """`paceline push`. Exits 1 when the tree does not pass its check."""
    asked = PushOrder(**order)
    ready = prepare_push(asked)
    failed = [finding for finding in ready.checked.findings if not finding.passed]
    typer.echo(_checked_text(ready, len(failed)), err=as_json)
    for finding in failed[:_SHOWN]:
        typer.echo(f"FAIL {finding.path}\n     {finding.rule}: {finding.detail}", err=True)
        typer.echo(f"     {finding.mend}", err=True)
    if failed and not asked.is_rehearsal:
        typer.echo(f"Nothing is pushed: {ready.tree} does not pass its check.", err=True)
        raise typer.Exit(1)

    def show(changes: Sequence[Change]) -> bool:
        typer.echo(_changes_text(changes), err=as_json)
        return not dry_run

    outcome = push_ready(asked, ready, show=show)
    for text in outcome.notes:
        typer.echo(f"note: {text}", err=as_json)
    if as_json:
        typer.echo(json.dumps(_facts(outcome, dry_run), indent=2))
        return
    typer.echo(_outcome_text(outcome, asked.repo_url, dry_run=dry_run))


def _checked_text(ready: Ready, num_failed: int) -> str:
    total = sum(path.stat().st_size for path in ready.files.values())
    lines = [
        f"check: {len(ready.checked.findings)} checks, {num_failed} failed",
        f"{ready.submitter}: {len(ready.files)} files, {total:,} bytes in {' '.join(ready.roots)}",
    ]
    secrets = [f for f in ready.checked.findings if f.rule == "no-secrets"]
    found = f"{len(secrets)} found" if secrets else "none found"
    lines.append(f"keys and tokens: {found} in {len(ready.files)} files")
    if ready.left_out:
        lines.append(f"left out, not the submitter's: {', '.join(ready.left_out[:5])}")
    return "\n".join(lines)


def _changes_text(changes: Sequence[Change]) -> str:
    if not changes:
        return "The branch holds these very files already."
    counts = Counter(change.status for change in changes)
    total = sum(change.num_bytes for change in changes)
    lines = [
        f"{_MARKS[change.status]} {change.path}"
        + (f"  {change.num_bytes:,} bytes" if change.status != "deleted" else "")
        for change in changes[:_SHOWN]
    ]
    if len(changes) > _SHOWN:
        lines.append(f"... and {len(changes) - _SHOWN} more")
    said = ", ".join(f"{counts[status]} {status}" for status in _MARKS)
    return "\n".join([*lines, f"{said}; {total:,} bytes"])


def _outcome_text(outcome: Pushed, url: str, *, dry_run: bool) -> str:
    if dry_run:
        return "Nothing was pushed: --dry-run."
    lines = [
        f"pushed: {outcome.commit[:12]} to {outcome.branch} of {url}"
        if outcome.commit is not None
        else "nothing to push"
    ]
    request = outcome.pull_request
    if request is not None:
        lines.append(
            f"pull request{' (open already)' if request.was_open else ''}: {request.address}"
        )
    return "\n".join(lines)


def _facts(outcome: Pushed, dry_run: bool) -> dict[str, Any]:
    request = outcome.pull_request
    return {
        "dry_run": dry_run,
        "branch": outcome.branch,
        "commit": outcome.commit if not dry_run else None,
        "changes": [dataclasses.asdict(change) for change in outcome.changes],
        "pull_request": None if request is None else dataclasses.asdict(request),
        "notes": outcome.notes,
    }
