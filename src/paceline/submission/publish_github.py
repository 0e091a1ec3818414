"""The part of GitHub's REST API that a push needs, with every way it fails.

    repository      is it a fork, and of what
    branch_commit   where a branch of some repository is
    sync_fork       bring a fork's branch up to its parent's
    create_branch   a branch at a commit
    pull_request    the open one of a branch, or a new one

The standard library speaks HTTP here: five calls of JSON need no other package, and its redirects
are turned off, so that the token goes to the host that was named and nowhere else. A call that
failed on the way is tried again; one that may have worked although no answer came is looked for
before it is repeated.
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from paceline.errors import EnvironmentProblem
from paceline.submission.publish_token import redacted

__all__ = ["ApiAnswerError", "GitHub", "PullRequest", "Repository"]

_WITHIN_S = 30.0
_TRIES = 5
_WAIT_MAX_S = 120.0
_ANSWER_BYTES_MAX = 1 << 22


class ApiAnswerError(EnvironmentProblem):
    """An answer that is no success: `status`, GitHub's message, and the seconds after which
    another try is worth it, None when none is."""

    def __init__(
        self, status: int, said: str, what: str, *, hint: str | None, wait_s: float | None
    ) -> None:
        super().__init__(f"GitHub answered {status} to {what}: {said}.", hint=hint)
        self.status = status
        self.said = said
        self.wait_s = wait_s


@dataclass(frozen=True, kw_only=True, slots=True)
class Repository:
    """A repository; `parent` is the full name of what it was forked from, None of no fork."""

    name: str
    parent: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class PullRequest:
    """An open pull request's address, and whether it was there before."""

    address: str
    was_open: bool


class GitHub:
    """Calls to one API with one token. `note` is told what was tried again."""

    def __init__(
        self,
        api_url: str,
        token: str,
        *,
        note: Callable[[str], None],
        pause: Callable[[float], None],
        within_s: float = _WITHIN_S,
    ) -> None:
        self._api_url = api_url.rstrip("/")
        self._token = token
        self._note = note
        self._pause = pause
        self._within_s = within_s
        self._opener = _opener()

    def repository(self, name: str) -> Repository:
        """What the API says of "owner/name"."""
        found = self._call("GET", f"/repos/{_path(name)}")
        parent = found.get("parent") if found.get("fork") else None
        full = parent.get("full_name") if isinstance(parent, dict) else None
        return Repository(name=str(found.get("full_name", name)), parent=full)

    def branch_commit(self, name: str, branch: str) -> str | None:
        """The commit of a branch; None when there is no such branch."""
        try:
            found = self._call("GET", f"/repos/{_path(name)}/git/ref/heads/{quote(branch)}")
        except ApiAnswerError as error:
            if error.status in (404, 409):
                return None
            raise
        return str(found["object"]["sha"])

    def sync_fork(self, name: str, branch: str) -> str:
        """Merge the parent's branch into the fork's; returns what came of it, in a sentence."""
        try:
            found = self._call("POST", f"/repos/{_path(name)}/merge-upstream", {"branch": branch})
        except ApiAnswerError as error:
            if error.status == 409:
                return (
                    f"The fork's {branch} has commits that its parent has not, and they conflict: "
                    "it was left as it is."
                )
            if error.status in (404, 422):
                return f"The fork's {branch} was not brought up to date: {error.said}"
            raise
        if found.get("merge_type") == "none":
            return f"The fork's {branch} is up to date."
        return f"The fork's {branch} was behind its parent and was brought up to date."

    def create_branch(self, name: str, branch: str, commit: str) -> None:
        """A branch at a commit that the repository, or what it was forked from, has."""
        body = {"ref": f"refs/heads/{branch}", "sha": commit}
        self._call("POST", f"/repos/{_path(name)}/git/refs", body)

    def pull_request(
        self, base: tuple[str, str], head: tuple[str, str], *, title: str, body: str
    ) -> PullRequest | None:
        """The pull request of `head` into `base`, each (repository, branch).

        None when the two branches hold the same.
        """
        if address := self._open_one(base, head):
            return PullRequest(address=address, was_open=True)
        asked = {
            "title": title,
            "body": body,
            "head": f"{_owner(head)}:{head[1]}",
            "base": base[1],
            "maintainer_can_modify": True,
        }
        path = f"/repos/{_path(base[0])}/pulls"
        for attempt in range(1, _TRIES + 1):
            try:
                found = self._call("POST", path, asked, tries=1)
                return PullRequest(address=str(found["html_url"]), was_open=False)
            except ApiAnswerError as error:
                if error.status == 422 and "no commits between" in error.said.lower():
                    return None
                if error.status == 422 and (address := self._open_one(base, head)):
                    return PullRequest(address=address, was_open=True)
                problem: EnvironmentProblem = error
                wait_s = error.wait_s
            except EnvironmentProblem as error:
                problem, wait_s = error, 2.0 ** (attempt - 1)
            if wait_s is None or attempt == _TRIES:
                raise problem
            self._note(f"{problem.message} Try {attempt} of {_TRIES}, again in {wait_s:.0f} s.")
            self._pause(wait_s)
            if address := self._open_one(base, head):  # it was opened; the answer was lost
                return PullRequest(address=address, was_open=False)
        raise AssertionError("the last try returns or raises")

    def _open_one(self, base: tuple[str, str], head: tuple[str, str]) -> str | None:
        asked = {"state": "open", "head": f"{_owner(head)}:{head[1]}", "base": base[1]}
        query = urlencode(asked)
        found = self._call("GET", f"/repos/{_path(base[0])}/pulls?{query}")
        listed = found.get("items", [])
        return str(listed[0]["html_url"]) if listed else None

    def _call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, tries: int = _TRIES
    ) -> dict[str, Any]:
        """One call; a list comes back under "items". Raises ApiAnswerError, EnvironmentProblem."""
        what = f"{method} {path.partition('?')[0]}"
        for attempt in range(1, tries + 1):
            try:
                return self._once(method, path, body)
            except urllib.error.HTTPError as error:
                wait_s = _wait_s(error, attempt)
                problem: EnvironmentProblem = self._problem(error, what, wait_s)
            except (OSError, http.client.HTTPException, ValueError) as error:
                said = redacted(str(error) or type(error).__name__, self._token)
                wait_s = 2.0 ** (attempt - 1)
                problem = EnvironmentProblem(
                    f"{self._api_url} cannot be reached ({what}): {said}.",
                    hint="the same command again: it goes on where it stopped",
                )
            if wait_s is None or attempt == tries:
                raise problem
            self._note(f"{problem.message} Try {attempt} of {tries}, again in {wait_s:.0f} s.")
            self._pause(wait_s)
        raise AssertionError("the last try returns or raises")

    def _once(self, method: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        # https, or http to this machine only: `require_safe` has seen the address.
        request = urllib.request.Request(  # noqa: S310
            f"{self._api_url}{path}",
            data=None if body is None else json.dumps(body).encode(),
            method=method,
            headers={
                "Accept": "application/vnd.github+json",
                "Authorization": f"Bearer {self._token}",
                "Content-Type": "application/json",
                "User-Agent": "paceline",
                "X-GitHub-Api-Version": "2022-11-28",
            },
        )
        with self._opener.open(request, timeout=self._within_s) as answer:
            value = json.loads(answer.read(_ANSWER_BYTES_MAX) or b"{}")
        return value if isinstance(value, dict) else {"items": value}

    def _problem(
        self, error: urllib.error.HTTPError, what: str, wait_s: float | None
    ) -> ApiAnswerError:
        said = redacted(_message(error), self._token)
        hints = {
            401: "the token is wrong or has expired: export GITHUB_TOKEN=..., or gh auth login",
            403: "the token needs write access to contents and pull requests of the repository",
            404: "the repository or branch is not there, or the token may not see it",
            409: "wait until the repository is ready, then the same command again",
            422: "GitHub did not take what was asked: see its message",
            429: "too many calls: wait some minutes, then the same command again",
        }
        hint = hints.get(error.code, "the same command again")
        if error.code in (301, 302, 307, 308):
            hint = (
                f"the repository has moved: use its new address ({error.headers.get('location')})"
            )
        return ApiAnswerError(error.code, said.rstrip("."), what, hint=hint, wait_s=wait_s)


def _wait_s(error: urllib.error.HTTPError, attempt: int) -> float | None:
    """Seconds until another try is worth it; None when none is."""
    headers = error.headers
    limited = error.code == 429 or (
        error.code == 403
        and ("retry-after" in headers or headers.get("x-ratelimit-remaining") == "0")
    )
    if not limited:
        return 2.0 ** (attempt - 1) if error.code >= 500 else None
    try:
        if "retry-after" in headers:
            return min(_WAIT_MAX_S, max(1.0, float(headers["retry-after"])))
        if "x-ratelimit-reset" in headers:
            left_s = float(headers["x-ratelimit-reset"]) - time.time()
            return max(1.0, left_s) if left_s <= _WAIT_MAX_S else None
    except ValueError:
        pass
    return min(_WAIT_MAX_S, 10.0 * 2.0 ** (attempt - 1))


def _opener() -> urllib.request.OpenerDirector:
    """Speaks HTTP through the environment's proxies and follows no redirect."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
    ):
        opener.add_handler(handler)
    return opener


def _message(error: urllib.error.HTTPError) -> str:
    """GitHub's words, its list of errors with them."""
    try:
        found = json.loads(error.read(_ANSWER_BYTES_MAX) or b"{}")
    except (OSError, ValueError, http.client.HTTPException):
        return str(error.reason)
    if not isinstance(found, dict):
        return str(error.reason)
    listed = found.get("errors")
    details = [
        str(one.get("message") or one.get("code") if isinstance(one, dict) else one)
        for one in (listed if isinstance(listed, list) else [])
    ]
    return "; ".join([str(found.get("message", error.reason)), *details])[:600]


def _owner(branch: tuple[str, str]) -> str:
    return branch[0].partition("/")[0]


def _path(name: str) -> str:
    return quote(name, safe="/")
