"""The flags of `paceline push`; what it does is in `push_verbs`.

A module of flags imports nothing heavy, as `paceline --help` loads it.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated

import typer

from paceline.cli.flags_shared import JsonOption

__all__ = ["push"]


def push(
    submission: Annotated[
        Path, typer.Argument(help="Folder that `paceline submit` made, or a tree.")
    ],
    repo_url: Annotated[
        str, typer.Option(help="Your fork of the results repository, or the repository.")
    ],
    branch: Annotated[str, typer.Option(help="Branch that holds the results.")],
    submitter: Annotated[
        str | None, typer.Option(help="Push this submitter's files; none: the only one's.")
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(
            help="Branch to push to; none: --branch in a fork, BRANCH-SUBMITTER elsewhere.",
            metavar="BRANCH",
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            help="What the pull request goes into; none: the fork's parent.",
            metavar="[OWNER/REPOSITORY:]BRANCH",
        ),
    ] = None,
    commit_message: Annotated[
        str | None, typer.Option(help="None: the submitter and the systems.")
    ] = None,
    api_url: Annotated[
        str | None, typer.Option(help="GitHub's API; none: GITHUB_API_URL, or that of the host.")
    ] = None,
    pull_request: Annotated[
        bool, typer.Option("--pull-request/--no-pull-request", help="Open a pull request.")
    ] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would change, and stop.")
    ] = False,
    rehearsal: Annotated[
        bool, typer.Option("--rehearsal", help="Push a rehearsal, even one that fails its check.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Push a checked submission to a results repository and open a pull request.

    The token is taken from GITHUB_TOKEN, GH_TOKEN or MLC_GITHUB_PAT, else from `gh`.
    """
    order = {
        "submission": submission,
        "repo_url": repo_url,
        "branch": branch,
        "submitter": submitter,
        "head": head,
        "base": base,
        "message": commit_message,
        "api_url": api_url,
        "pull_request": pull_request,
        "is_rehearsal": rehearsal,
    }
    verbs = importlib.import_module("paceline.cli.push_verbs")
    verbs.push(order, dry_run=dry_run, as_json=as_json)
