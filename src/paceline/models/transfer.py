"""One file over HTTP: taken up where it was left, checked, and only then given its name.

NAME.part grows; it becomes NAME when its size and hash are what the server promised. A broken
connection is tried again, and each time is counted and told. A token goes to the host it was
given for and to no other: redirects to a storage host are followed without it.
"""

from __future__ import annotations

import hashlib
import http.client
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from paceline.errors import EnvironmentProblem, InputError
from paceline.rundir import disk_problem

__all__ = ["RemoteFile", "download", "get_text"]

_PIECE_BYTES = 4 << 20
_TRIES = 5
_TIMEOUT_S = 60
_TO_ONE_HOST = ("authorization", "cf-access-client-id", "cf-access-client-secret")

_BROKEN = (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError)
_NO_SUCH_RANGE, _SERVER_TROUBLE = 416, 500

Report = Callable[[str, int, int | None], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteFile:
    """A file to fetch. `size` and `digest` (hex, md5 or sha256) are None where nobody says."""

    name: str
    url: str
    size: int | None = None
    algorithm: str = "sha256"
    digest: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


class _KeepSecrets(urllib.request.HTTPRedirectHandler):
    """Follows redirects; what was meant for one host is not shown to another."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any,
        newurl: str,
    ) -> urllib.request.Request | None:  # fmt: skip
        again = super().redirect_request(req, fp, code, msg, headers, newurl)
        if again is not None and _host(newurl) != _host(req.full_url):
            for name in list(again.headers):
                if name.lower() in _TO_ONE_HOST:
                    again.remove_header(name)
        return again


_opener = urllib.request.build_opener(_KeepSecrets)


def _host(url: str) -> str:
    return urllib.parse.urlsplit(url).netloc


def _open(url: str, headers: Mapping[str, str]) -> Any:
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise InputError(f"{url} is no http or https address.")
    request = urllib.request.Request(url, headers=dict(headers))  # noqa: S310 - checked above
    return _opener.open(request, timeout=_TIMEOUT_S)


def get_text(url: str, headers: Mapping[str, str]) -> str:
    """A small text.

    Raises
        InputError          the server refuses: no such thing, or not without a token.
        EnvironmentProblem  it cannot be reached.
    """
    try:
        with _open(url, headers) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        raise _refused(url, error) from error
    except (OSError, http.client.HTTPException) as error:
        raise EnvironmentProblem(f"{_host(url)} cannot be reached: {error}.") from error


def _refused(url: str, error: urllib.error.HTTPError) -> InputError:
    hints = {
        401: "give a token that may read it: export HF_TOKEN=...",
        403: "accept the model's licence on its page, and export HF_TOKEN=... of that account",
        404: "look at the name",
    }
    return InputError(f"{url}: the server says {error.code}.", hint=hints.get(error.code))


def download(file: RemoteFile, folder: Path, report: Report) -> int:
    """Fetch a file into the folder; returns how often it was tried again.

    Raises
        InputError          the server refuses it.
        EnvironmentProblem  it cannot be reached, the disk is full, or what came is not what was
                            promised.
    """
    target = folder / file.name
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    for attempt in range(_TRIES):
        try:
            _append(file, part, report)
            break
        except urllib.error.HTTPError as error:
            if error.code == _NO_SUCH_RANGE:
                part.unlink(missing_ok=True)  # what is there is no part of this file
            elif error.code < _SERVER_TROUBLE:
                raise _refused(file.url, error) from error
            last: Exception = error
        except _BROKEN as error:
            last = error
        report(f"{file.name}: again after {last}", _size(part), file.size)
        time.sleep(min(2.0**attempt, 30.0) * 0.25)
    else:
        raise EnvironmentProblem(
            f"{file.name} broke off {_TRIES} times, last with: {last}.",
            hint="the same command again goes on where it was left",
        )
    _check(file, part)
    part.replace(target)
    return attempt


def _append(file: RemoteFile, part: Path, report: Report) -> None:
    have = _size(part)
    if file.size is not None and have >= file.size:
        return
    headers = {**file.headers, "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with _open(file.url, headers) as answer:
        # A server that ignores the range sends the whole file.
        mode = "ab" if have and answer.status == 206 else "wb"
        have = have if mode == "ab" else 0
        length = answer.headers.get("Content-Length")
        total = file.size if length is None else have + int(length)
        try:
            with part.open(mode) as out:
                while piece := answer.read(_PIECE_BYTES):
                    out.write(piece)
                    have += len(piece)
                    report(file.name, have, total)
        except OSError as error:
            if isinstance(error, ConnectionError | TimeoutError):
                raise
            raise disk_problem(part, error) from error
    if total is not None and have < total:
        raise ConnectionError(f"{have} of {total} bytes came")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _check(file: RemoteFile, part: Path) -> None:
    """What came must be what was promised; what is not is thrown away."""
    size, problem = _size(part), None
    if file.size is not None and size != file.size:
        problem = f"{size} bytes, not {file.size}"
    elif file.digest is not None:
        with part.open("rb") as content:
            if hashlib.file_digest(content, file.algorithm).hexdigest() != file.digest:
                problem = f"another {file.algorithm} than promised"
    if problem is not None:
        part.unlink()
        raise EnvironmentProblem(
            f"{file.name} came with {problem}; it was thrown away.",
            hint="the same command again fetches it anew",
        )
