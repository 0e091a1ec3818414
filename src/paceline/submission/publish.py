"""`paceline push`: a checked submission into a results repository, and a pull request for it.

Order of work: check the tree; find token, author and repository; bring a stale fork up to date;
clone; make the commit and show what it changes; push; open the pull request. Everything up to the
push changes nothing that is not the fork's own. After a failure the same command goes on: what is
pushed already is not pushed again, and a pull request that is open is found.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from paceline.errors import InputError
from paceline.mlperf.tree_rules import DIVISIONS
from paceline.submission.check import CheckedTree, examine_tree
from paceline.submission.documents import REHEARSAL
from paceline.submission.publish_git import (
    Change,
    Git,
    ProtectedBranchError,
    StaleBranchError,
)
from paceline.submission.publish_github import GitHub, PullRequest, Repository
from paceline.submission.publish_names import full_name, host_of, pull_request_text
from paceline.submission.publish_token import find_token, require_safe

__all__ = ["PushOrder", "Pushed", "Ready", "prepare_push", "push"]

_REBUILDS = 5
_NAME = re.compile(r"[A-Za-z0-9._-]+/[A-Za-z0-9._-]+")
_BRANCH = re.compile(r"(?!.*(\.\.|//|@\{|\.lock$|/$|\.$))[A-Za-z0-9_][A-Za-z0-9._/+@=-]*")


@dataclass(frozen=True, kw_only=True, slots=True)
class PushOrder:
    """What was asked for.

    `head` None: `branch` itself in a fork, `<branch>-<submitter>` elsewhere. `base` None: the
    parent of a fork, else the repository itself. `within_s`: how long one call to the API may take.
    """

    submission: Path
    repo_url: str
    branch: str
    submitter: str | None = None
    head: str | None = None
    base: str | None = None
    message: str | None = None
    api_url: str | None = None
    pull_request: bool = True
    is_rehearsal: bool = False
    within_s: float = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Ready:
    """A checked submission: its tree, findings, submitter and files by their path in it."""

    tree: Path
    checked: CheckedTree
    submitter: str
    roots: tuple[str, ...]
    files: Mapping[str, Path]
    left_out: tuple[str, ...]


@dataclass(kw_only=True, slots=True)
class Pushed:
    """What came of it. `commit` None: there was nothing to push. `notes` tell what was unusual."""

    branch: str
    changes: list[Change] = field(default_factory=list)
    commit: str | None = None
    pull_request: PullRequest | None = None
    notes: list[str] = field(default_factory=list)


def prepare_push(order: PushOrder) -> Ready:
    """Check the tree and list its submitter's files. Raises InputError.

    A tree that fails is not refused here: `Ready.checked` says so, and the caller decides.
    """
    tree = order.submission / "tree" if (order.submission / "tree").is_dir() else order.submission
    checked = examine_tree(tree, submitter=order.submitter)
    found = sorted(
        {
            path.name
            for division in DIVISIONS.names
            if (tree / division).is_dir()
            for path in (tree / division).iterdir()
            if path.is_dir()
        }
    )
    name = order.submitter or (found[0] if len(found) == 1 else None)
    if name is None or name not in found:
        raise InputError(
            f"{tree} holds {len(found)} submitters: {', '.join(found) or 'none'}.",
            hint="--submitter NAME",
        )
    roots = tuple(f"{d}/{name}" for d in DIVISIONS.names if (tree / d / name).is_dir())
    everything = {
        path.relative_to(tree).as_posix(): path
        for path in sorted(tree.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }
    inside = tuple(f"{root}/" for root in roots)
    files = {name: path for name, path in everything.items() if name.startswith(inside)}
    if odd := [name for name in files if "\n" in name or not name.isprintable()]:
        raise InputError(f"{tree} holds a file whose name git cannot take: {odd[0]!r}.")
    if _is_marked(tree, roots) and not order.is_rehearsal:
        raise InputError(
            f"{tree} is a rehearsal: its documents say so.",
            hint="--rehearsal pushes it all the same, to a repository for rehearsals",
        )
    return Ready(
        tree=tree,
        checked=checked,
        submitter=name,
        roots=roots,
        files=files,
        left_out=tuple(name for name in everything if name not in files),
    )


def push(
    order: PushOrder,
    ready: Ready,
    *,
    show: Callable[[Sequence[Change]], bool],
    environment: Mapping[str, str] | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> Pushed:
    """Push what is ready and open the pull request. Raises PacelineError.

    `show` is given the changes before they go; False from it ends the push there.
    """
    return _Push(order, ready, dict(os.environ if environment is None else environment), pause).run(
        show
    )


class _Push:
    """One push: what was asked for, and what is found out on the way."""

    def __init__(
        self,
        order: PushOrder,
        ready: Ready,
        environment: Mapping[str, str],
        pause: Callable[[float], None],
    ) -> None:
        self._order, self._ready = order, ready
        self.outcome = Pushed(branch=order.branch)
        note = self.outcome.notes.append
        for name in (order.branch, order.head, (order.base or "").rpartition(":")[2] or None):
            if name is not None and not _BRANCH.fullmatch(name):
                raise InputError(f"{name!r} cannot be the name of a branch.")
        host = host_of(order.repo_url)
        token = find_token(host, environment)
        require_safe(order.repo_url, token)
        _scan_for(token, ready.files)
        self._name = full_name(order.repo_url)
        self._git = Git(order.repo_url, token, environment=environment, note=note, pause=pause)
        self._git.identity()
        self._api: GitHub | None = None
        if order.pull_request:
            self._api = _api(order, host, token, environment, note, pause)

    def run(self, show: Callable[[Sequence[Change]], bool]) -> Pushed:
        order, outcome = self._order, self.outcome
        repository = self._api.repository(self._name) if self._api is not None else None
        if self._api is not None and repository is not None:
            self._name = repository.name
        branches = self._branches(repository)
        outcome.branch = self._target(repository)
        with tempfile.TemporaryDirectory(prefix="paceline-push-") as folder:
            if not self._deliver(branches, Path(folder), show):
                return outcome
        if self._api is not None:
            self._open(repository)
        elif not order.pull_request:
            outcome.notes.append("No pull request was asked for.")
        return outcome

    def _branches(self, repository: Repository | None) -> dict[str, str]:
        """The remote's branches, its stale fork brought up to date; the one asked for is there."""
        order, api = self._order, self._api
        branches = self._git.branches()
        parent = repository.parent if repository is not None else None
        if api is not None and parent is not None:
            if order.branch in branches:
                self.outcome.notes.append(api.sync_fork(self._name, order.branch))
                branches = self._git.branches()
            elif (commit := api.branch_commit(parent, order.branch)) is not None:
                api.create_branch(self._name, order.branch, commit)
                self.outcome.notes.append(f"The fork had no {order.branch}: it has {parent}'s.")
                branches = self._git.branches()
        if order.branch not in branches:
            close = difflib.get_close_matches(order.branch, list(branches), n=1)
            guess = f"did you mean {close[0]}? " if close else ""
            known = ", ".join(sorted(branches)[:10]) or "none"
            raise InputError(
                f"{order.repo_url} has no branch {order.branch}.", hint=f"{guess}it has: {known}"
            )
        return branches

    def _target(self, repository: Repository | None) -> str:
        """The branch that is pushed to."""
        order = self._order
        if order.head is not None:
            return order.head
        is_fork = repository is not None and repository.parent is not None
        return order.branch if is_fork or not order.pull_request else self._topic()

    def _topic(self) -> str:
        return f"{self._order.branch}-{self._ready.submitter}"

    def _deliver(
        self,
        branches: Mapping[str, str],
        folder: Path,
        show: Callable[[Sequence[Change]], bool],
    ) -> bool:
        """Commit and push. False when the push was called off before anything went out."""
        outcome, ready = self.outcome, self._ready
        was_shown = False
        for attempt in range(1, _REBUILDS + 1):
            start = outcome.branch if outcome.branch in branches else self._order.branch
            checkout = self._git.clone(start, folder)
            commit, outcome.changes = self._git.commit(
                checkout, ready.files, ready.roots, self._message()
            )
            _require_own(outcome.changes, ready.roots)
            if not was_shown and not show(outcome.changes):
                return False
            was_shown = True
            if not outcome.changes:
                outcome.branch = start
                return True
            try:
                self._git.push(checkout, commit, outcome.branch)
            except StaleBranchError as error:
                if attempt == _REBUILDS:
                    raise
                outcome.notes.append(f"{error.message} The commit was made anew on top of it.")
                branches = self._git.branches()
                continue
            except ProtectedBranchError as error:
                if outcome.branch != self._order.branch or self._order.head is not None:
                    raise
                outcome.branch = self._topic()
                outcome.notes.append(f"{error.message} {outcome.branch} is pushed instead.")
                continue
            outcome.commit = commit
            return True
        raise AssertionError("the last attempt returns or raises")

    def _open(self, repository: Repository | None) -> None:
        assert self._api is not None
        base = self._base(repository)
        head = (self._name, self.outcome.branch)
        if base == head:
            self.outcome.notes.append(f"{head[1]} was pushed to itself: there is nothing to merge.")
            return
        self.outcome.pull_request = self._api.pull_request(
            base,
            head,
            title=self._message().splitlines()[0],
            body=pull_request_text(self._ready.checked),
        )
        if self.outcome.pull_request is None:
            self.outcome.notes.append(
                f"{base[0]} has all of it already: no pull request is needed."
            )

    def _base(self, repository: Repository | None) -> tuple[str, str]:
        """(repository, branch) that the pull request goes into."""
        owner, _, branch = (self._order.base or "").rpartition(":")
        parent = repository.parent if repository is not None else None
        name = owner or parent or self._name
        if not _NAME.fullmatch(name):
            raise InputError(f"--base {self._order.base}: not of the form OWNER/REPOSITORY:BRANCH.")
        return name, branch or self._order.branch

    def _message(self) -> str:
        systems = sorted({outcome.result.system for outcome in self._ready.checked.outcomes})
        text = self._order.message or f"Results of {self._ready.submitter} on {', '.join(systems)}"
        return f"REHEARSAL: {text}\n" if self._order.is_rehearsal else f"{text}\n"


def _api(
    order: PushOrder,
    host: str,
    token: str | None,
    environment: Mapping[str, str],
    note: Callable[[str], None],
    pause: Callable[[float], None],
) -> GitHub:
    if token is None:
        raise InputError(
            "A pull request needs a token for GitHub, and none was found.",
            hint="export GITHUB_TOKEN=..., or gh auth login, or --no-pull-request",
        )
    default = "https://api.github.com" if host == "github.com" else f"https://{host}/api/v3"
    url = order.api_url or environment.get("GITHUB_API_URL") or default
    require_safe(url, token)
    return GitHub(url, token, note=note, pause=pause, within_s=order.within_s)


def _scan_for(token: str | None, files: Mapping[str, Path]) -> None:
    """Refuse files that hold the very token of this push, whatever it looks like."""
    if token is None or len(token) < 8:
        return
    wanted = token.encode()
    for name, path in files.items():
        if wanted in path.read_bytes():
            raise InputError(f"{name} holds the token that this push uses.", hint="take it out")


def _require_own(changes: Sequence[Change], roots: Sequence[str]) -> None:
    inside = tuple(f"{root}/" for root in roots)
    others = [change.path for change in changes if not change.path.startswith(inside)]
    assert not others, others


def _is_marked(tree: Path, roots: Sequence[str]) -> bool:
    for root in roots:
        for path in sorted((tree / root / "systems").glob("*.json")):
            try:
                system = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
            if isinstance(system, dict) and REHEARSAL in str(system.get("sw_notes", "")):
                return True
    return False
