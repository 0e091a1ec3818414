"""Git for `paceline push`: a shallow clone without files, a commit of one submitter, a push.

Nothing is checked out. The clone is bare and one commit deep; the new tree is the remote's, with
the submitter's directories replaced by the given files, byte for byte: no filter, hook, attribute
or ignore file has a say, and no other file can change. What git says when it fails is sorted into
what can be tried again and what cannot.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from paceline.errors import EnvironmentProblem, InputError
from paceline.submission.publish_token import git_header, redacted

__all__ = ["Change", "Checkout", "Git", "ProtectedBranchError", "StaleBranchError"]

_WITHIN_S = 900
_TRIES = 5
_AGAIN = re.compile(
    r"could not resolve host|timed out|timeout|connection (refused|reset)|recv failure|early eof"
    r"|rpc failed|unexpected disconnect|hung up|empty reply|operation too slow|error: (5\d\d|429)"
    r"|http (5\d\d|429)",
    re.IGNORECASE,
)
_STALE = re.compile(r"fetch first|non-fast-forward|cannot lock ref|failed to update ref|stale info")
_PROTECTED = re.compile(
    r"GH006|GH013|protected branch|hook declined|rule violations", re.IGNORECASE
)
_UNKNOWN = re.compile(r"could not read Username|Authentication failed|error: 401|Permission denied")
_FORBIDDEN = re.compile(r"error: 403|denied to|not allowed to push|write access")
_ABSENT = re.compile(r"not found|does not appear to be a git repository|does not exist")
# Left in place they would print headers, the token among them, or send git elsewhere.
_DROPPED = ("GIT_TRACE", "GIT_CURL_VERBOSE", "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
_NO_OBJECT = "0" * 40


class StaleBranchError(EnvironmentProblem):
    """Somebody pushed in between: the commit has to be made anew."""


class ProtectedBranchError(EnvironmentProblem):
    """The branch takes no push: it is protected, or a hook refused."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """A file of a push: "added", "changed" or "deleted", and its bytes; 0 when deleted."""

    status: str
    path: str
    num_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkout:
    """A bare clone of one branch and the commit that it is at."""

    path: Path
    commit: str


class Git:
    """Git commands on one remote. `note` is told what was tried again."""

    def __init__(
        self,
        url: str,
        token: str | None,
        *,
        environment: Mapping[str, str],
        note: Callable[[str], None],
        pause: Callable[[float], None],
    ) -> None:
        self.url = url
        self._token = token
        self._note = note
        self._pause = pause
        self._environment = _environment(url, token, environment)

    def identity(self) -> None:
        """Whether commits would have an author. Raises InputError."""
        for key, variable in (("user.name", "GIT_AUTHOR_NAME"), ("user.email", "GIT_AUTHOR_EMAIL")):
            if not self._environment.get(variable):
                found = self._run(["config", "--get", key], check=False)
                if not found.stdout.strip():
                    raise InputError(
                        f"Git does not know who you are: {key} is not set.",
                        hint=f'git config --global {key} "..."',
                    )

    def branches(self) -> dict[str, str]:
        """Branch -> commit of the remote."""
        listed = self._remote(["ls-remote", "--heads", self.url]).stdout
        pairs = (line.split("\trefs/heads/", 1) for line in listed.splitlines())
        return {pair[1]: pair[0] for pair in pairs if len(pair) == 2}

    def clone(self, branch: str, into: Path) -> Checkout:
        """A bare clone of the branch's newest commit, without the contents of its files."""
        target = Path(tempfile.mkdtemp(dir=into)) / "clone.git"

        def clean() -> None:
            shutil.rmtree(target, ignore_errors=True)

        self._remote(
            [
                *("clone", "--quiet", "--bare", "--depth=1", "--single-branch", "--no-tags"),
                *("--filter=blob:none", f"--branch={branch}", self.url, str(target)),
            ],
            before=clean,
        )
        commit = self._run(["rev-parse", f"refs/heads/{branch}"], at=target).stdout.strip()
        return Checkout(path=target, commit=commit)

    def commit(
        self,
        checkout: Checkout,
        files: Mapping[str, Path],
        roots: Sequence[str],
        message: str,
    ) -> tuple[str, list[Change]]:
        """A commit whose `roots` hold exactly `files`; and what it changes, in order of path."""
        at = checkout.path
        old = self._run(
            ["ls-tree", "-r", "-z", "--name-only", checkout.commit, "--", *roots], at=at
        ).stdout
        names = list(files)
        listed = "".join(f"{files[name].resolve()}\n" for name in names)
        hashes = self._run(
            ["hash-object", "-w", "--no-filters", "--stdin-paths"], at=at, send=listed
        ).stdout.split()
        lines = [f"0 {_NO_OBJECT}\t{name}" for name in old.split("\0") if name]
        lines += [
            f"{_mode(files[name])} {digest}\t{name}"
            for name, digest in zip(names, hashes, strict=True)
        ]
        self._run(["read-tree", checkout.commit], at=at)
        index = ["update-index", "-z", "--index-info"]
        self._run(index, at=at, send="".join(f"{line}\0" for line in lines))
        tree = self._run(["write-tree", "--missing-ok"], at=at).stdout.strip()
        changes = self._changes(checkout, tree, files)
        made = self._run(
            ["commit-tree", tree, "-p", checkout.commit, "-F", "-"], at=at, send=message
        ).stdout
        return made.strip(), changes

    def push(self, checkout: Checkout, commit: str, branch: str) -> None:
        """Push. Raises StaleBranchError, ProtectedBranchError, InputError, EnvironmentProblem."""
        self._remote(
            ["push", "--quiet", self.url, f"{commit}:refs/heads/{branch}"], at=checkout.path
        )

    def _changes(self, checkout: Checkout, tree: str, files: Mapping[str, Path]) -> list[Change]:
        raw = self._run(
            ["diff-tree", "-r", "-z", "--raw", "--no-renames", checkout.commit, tree],
            at=checkout.path,
        ).stdout.split("\0")
        words = {"A": "added", "D": "deleted"}
        changes = []
        for facts, path in zip(raw[::2], raw[1::2], strict=False):
            status = words.get(facts.split()[-1][:1], "changed")
            size = files[path].stat().st_size if path in files else 0
            changes.append(Change(status=status, path=path, num_bytes=size))
        return sorted(changes, key=lambda change: change.path)

    def _remote(
        self,
        arguments: Sequence[str],
        *,
        at: Path | None = None,
        before: Callable[[], None] = lambda: None,
    ) -> subprocess.CompletedProcess[str]:
        """A command that talks to the remote, again after failures of the network."""
        for attempt in range(1, _TRIES + 1):
            before()
            finished = self._run(arguments, at=at, check=False)
            if finished.returncode == 0:
                return finished
            said = redacted(finished.stderr, self._token)
            if attempt == _TRIES or not _AGAIN.search(said):
                raise _failure(said, self.url, arguments[0])
            self._note(f"git {arguments[0]} failed, try {attempt} of {_TRIES}: {_last(said)}")
            self._pause(2.0 ** (attempt - 1))
        raise AssertionError("the last try returns or raises")

    def _run(
        self,
        arguments: Sequence[str],
        *,
        at: Path | None = None,
        send: str | None = None,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        where = [] if at is None else [f"--git-dir={at}"]
        command = ["git", *where, *arguments]
        try:
            finished = subprocess.run(
                command,
                input=send if send is not None else "",
                capture_output=True,
                text=True,
                errors="surrogateescape",
                check=False,
                env=self._environment,
                timeout=_WITHIN_S,
            )
        except FileNotFoundError as error:
            raise EnvironmentProblem("git is not installed.", hint="install git") from error
        except subprocess.TimeoutExpired as error:
            raise EnvironmentProblem(f"git {arguments[0]} took more than {_WITHIN_S} s.") from error
        if check and finished.returncode != 0:
            said = redacted(finished.stderr, self._token)
            raise EnvironmentProblem(f"git {arguments[0]} failed: {_last(said)}")
        return finished


def _environment(url: str, token: str | None, given: Mapping[str, str]) -> dict[str, str]:
    """The environment of git: no prompt, no hook; the token for this host and no other."""
    kept = {name: value for name, value in given.items() if not name.startswith(_DROPPED)}
    settings = [("core.hooksPath", os.devnull), ("http.lowSpeedLimit", "100")]
    settings += [("http.lowSpeedTime", "60"), ("gc.auto", "0")]
    parts = urlsplit(url)
    if token is not None and parts.scheme in ("http", "https"):
        origin = f"{parts.scheme}://{parts.netloc}/"
        # A helper must not store the token, and it must not follow a redirect.
        settings += [("credential.helper", ""), ("http.followRedirects", "false")]
        settings.append((f"http.{origin}.extraHeader", git_header(token)))
    # Settings that the user gave in the environment stay; the later ones win.
    before = given.get("GIT_CONFIG_COUNT", "0")
    start = int(before) if before.isdecimal() else 0
    for place, (key, value) in enumerate(settings, start):
        kept |= {f"GIT_CONFIG_KEY_{place}": key, f"GIT_CONFIG_VALUE_{place}": value}
    kept["GIT_CONFIG_COUNT"] = str(start + len(settings))
    return kept | {"GIT_TERMINAL_PROMPT": "0", "GIT_ASKPASS": "true", "LC_ALL": "C"}


def _failure(said: str, url: str, verb: str) -> Exception:
    """What git's words mean, as an error with the way out."""
    last = _last(said)
    if _STALE.search(said):
        return StaleBranchError(f"{url}: somebody pushed in between: {last}")
    if _PROTECTED.search(said):
        return ProtectedBranchError(
            f"{url}: the branch takes no push: {last}", hint="--head BRANCH"
        )
    if _FORBIDDEN.search(said):
        return InputError(
            f"{url}: you may not do this ({verb}): {last}",
            hint="a token with write access to the repository's contents, or your own fork",
        )
    if _UNKNOWN.search(said):
        return InputError(
            f"{url}: the server does not know you ({verb}): {last}",
            hint="export GITHUB_TOKEN=..., or gh auth login",
        )
    if _ABSENT.search(said):
        return InputError(
            f"{url}: there is no such repository, or you may not see it.",
            hint="--repo-url, and a token that may read it",
        )
    return EnvironmentProblem(
        f"git {verb} to {url} failed: {last}",
        hint="the same command again: what was pushed is not pushed twice",
    )


def _last(said: str) -> str:
    """The line of git's output that says what was wrong."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    telling = [line for line in lines if re.search(r"fatal|error|rejected|remote:", line)]
    return " / ".join((telling or lines)[-5:])[:600] or "no message"


def _mode(path: Path) -> str:
    return "100755" if path.stat().st_mode & 0o100 else "100644"
