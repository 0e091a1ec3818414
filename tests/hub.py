"""A git host on this machine: git over HTTP by git's own server program, and the part of GitHub's
REST API that a push uses. Faults are ordered by the test and come in their order."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "ghs_thisIsNoTokenOfAnybody0123456789"
IDENTITY = {
    "GIT_AUTHOR_NAME": "A Tester",
    "GIT_AUTHOR_EMAIL": "tester@example.org",
    "GIT_COMMITTER_NAME": "A Tester",
    "GIT_COMMITTER_EMAIL": "tester@example.org",
}


def git(*arguments: object, at: Path, send: str | None = None) -> str:
    return subprocess.run(
        ["git", "-C", str(at), *map(str, arguments)],
        input=send,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | IDENTITY,
    ).stdout.strip()


@dataclass
class Fault:
    """What happens instead of an answer: a status with headers, a wait, or a hang-up."""

    where: str
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    wait_s: float = 0.0
    hang_up: bool = False
    after: bool = False
    times: int = 1


@dataclass
class Hub:
    """The host: repositories as "owner/name", pull requests, faults, and what was asked."""

    root: Path
    port: int = 0
    parents: dict[str, str] = field(default_factory=dict)
    pulls: list[dict[str, Any]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    headers: list[str] = field(default_factory=list)

    @property
    def api_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.port}/git/{name}.git"

    def path(self, name: str) -> Path:
        return self.root / f"{name}.git"

    def create(self, name: str, files: dict[str, str], branch: str = "results") -> None:
        """A repository with one commit."""
        path = self.path(name)
        path.mkdir(parents=True)
        git("init", "--bare", "--quiet", f"--initial-branch={branch}", at=path)
        git("config", "http.receivepack", "true", at=path)
        git("config", "uploadpack.allowFilter", "true", at=path)
        self.put(name, branch, files)

    def put(self, name: str, branch: str, files: dict[str, str]) -> str:
        """A commit on a branch, which holds these files besides those that are there."""
        path = self.path(name)
        old = git("for-each-ref", "--format=%(objectname)", f"refs/heads/{branch}", at=path)
        index = {"GIT_INDEX_FILE": str(path / "test-index")}
        with _environment(index):
            git("read-tree", *([old] if old else ["--empty"]), at=path)
            for file, text in files.items():
                blob = git("hash-object", "-w", "--stdin", at=path, send=text)
                git("update-index", "--add", "--cacheinfo", f"100644,{blob},{file}", at=path)
            tree = git("write-tree", at=path)
        parent = ["-p", old] if old else []
        commit = git("commit-tree", tree, *parent, "-m", "a commit", at=path)
        git("update-ref", f"refs/heads/{branch}", commit, at=path)
        return commit

    def fork(self, parent: str, name: str) -> None:
        """A fork of a repository as it is."""
        git("clone", "--bare", "--quiet", self.path(parent), self.path(name), at=self.root)
        git("config", "http.receivepack", "true", at=self.path(name))
        git("config", "uploadpack.allowFilter", "true", at=self.path(name))
        self.parents[name] = parent

    def protect(self, name: str, branch: str) -> None:
        """Refuse pushes to a branch as GitHub does."""
        hook = self.path(name) / "hooks/update"
        hook.parent.mkdir(exist_ok=True)
        hook.write_text(
            f'#!/bin/sh\n[ "$1" = "refs/heads/{branch}" ] || exit 0\n'
            "echo 'error: GH006: Protected branch update failed' >&2\nexit 1\n"
        )
        hook.chmod(0o755)

    def files(self, name: str, branch: str) -> list[str]:
        return git("ls-tree", "-r", "--name-only", branch, at=self.path(name)).splitlines()

    def commit(self, name: str, branch: str) -> str:
        return git("rev-parse", f"refs/heads/{branch}", at=self.path(name))

    def fault(self, what: str) -> Fault | None:
        for fault in self.faults:
            if fault.times and re.search(fault.where, what):
                fault.times -= 1
                return fault
        return None


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    old = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in old.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def log_message(self, *arguments: object) -> None:
        """Stay quiet: the test reads `asked`."""

    def _serve(self) -> None:
        hub, url = self.hub, urlsplit(self.path)
        what = f"{self.command} {url.path}" + (f"?{url.query}" if url.query else "")
        hub.asked.append(what)
        hub.headers.append(self.headers.get("Authorization", ""))
        body = self._body()
        fault = hub.fault(what)
        if fault is not None and not fault.after and self._break(fault):
            return
        if url.path.startswith("/git/"):
            self._git(url.path.removeprefix("/git"), url.query, body)
            return
        status, answer = self._api(url.path.removeprefix("/api"), parse_qs(url.query), body)
        if fault is not None and fault.after and self._break(fault):
            return
        self._answer(status, json.dumps(answer).encode())

    def _break(self, fault: Fault) -> bool:
        if fault.wait_s:
            time.sleep(fault.wait_s)
        if fault.hang_up:
            self.close_connection = True
            self.connection.close()
            return True
        if fault.status:
            self._answer(fault.status, b'{"message": "as ordered"}', fault.headers)
            return True
        return bool(fault.wait_s)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | (headers or {})).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body)

    def _git(self, path: str, query: str, body: bytes) -> None:
        known = base64.b64encode(f"x-access-token:{TOKEN}".encode()).decode()
        if self.headers.get("Authorization") != f"Basic {known}":
            self._answer(401, b"", {"WWW-Authenticate": 'Basic realm="hub"'})
            return
        environment = os.environ | {
            "GIT_PROJECT_ROOT": str(self.hub.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "REQUEST_METHOD": self.command,
            "PATH_INFO": unquote(path),
            "QUERY_STRING": query,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
            "REMOTE_USER": "tester",
            "REMOTE_ADDR": "127.0.0.1",
        }
        made = subprocess.run(
            ["git", "http-backend"], input=body, capture_output=True, check=False, env=environment
        ).stdout
        head, _, rest = made.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n") if ": " in line)
        status = int(headers.pop("Status", "200").split()[0])
        self._answer(status, rest, headers)

    def _api(self, path: str, query: dict[str, list[str]], body: bytes) -> tuple[int, Any]:
        hub = self.hub
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return 401, {"message": "Bad credentials"}
        parts = unquote(path).split("/")
        name, rest = "/".join(parts[2:4]), "/".join(parts[4:])
        if not hub.path(name).is_dir():
            return 404, {"message": "Not Found"}
        asked = json.loads(body or b"{}")
        if not rest:
            parent = hub.parents.get(name)
            found: dict[str, Any] = {"full_name": name, "fork": parent is not None}
            return 200, found | ({"parent": {"full_name": parent}} if parent else {})
        if rest == "merge-upstream":
            return self._merge(name, asked["branch"])
        if rest == "git/refs":
            parent_path = hub.path(hub.parents[name])
            git("fetch", "--quiet", parent_path, asked["sha"], at=hub.path(name))
            git("update-ref", asked["ref"], asked["sha"], at=hub.path(name))
            return 201, {"ref": asked["ref"]}
        if rest.startswith("git/ref/heads/"):
            branch = rest.removeprefix("git/ref/heads/")
            try:
                return 200, {"object": {"sha": hub.commit(name, branch)}}
            except subprocess.CalledProcessError:
                return 404, {"message": "Not Found"}
        assert rest == "pulls", rest
        if self.command == "GET":
            wanted = (query["head"][0], query["base"][0])
            return 200, [
                p for p in hub.pulls if (p["head"], p["base"], p["into"]) == (*wanted, name)
            ]
        return self._pull(name, asked)

    def _merge(self, name: str, branch: str) -> tuple[int, Any]:
        hub = self.hub
        old, new = hub.commit(name, branch), hub.commit(hub.parents[name], branch)
        git(
            "fetch",
            "--quiet",
            hub.path(hub.parents[name]),
            f"refs/heads/{branch}",
            at=hub.path(name),
        )
        base = git("merge-base", old, new, at=hub.path(name))
        if base == new:
            return 200, {"merge_type": "none", "message": "up to date"}
        if base != old:
            return 409, {"message": "There are merge conflicts"}
        git("update-ref", f"refs/heads/{branch}", new, at=hub.path(name))
        return 200, {"merge_type": "fast-forward", "message": "fast-forwarded"}

    def _pull(self, name: str, asked: dict[str, Any]) -> tuple[int, Any]:
        hub = self.hub
        owner, _, branch = asked["head"].partition(":")
        of = next(n for n in [name, *hub.parents] if n.split("/")[0] == owner)
        if any(p["head"] == asked["head"] and p["base"] == asked["base"] for p in hub.pulls):
            error = {"message": f"A pull request already exists for {asked['head']}."}
            return 422, {"message": "Validation Failed", "errors": [error]}
        if hub.commit(of, branch) == hub.commit(name, asked["base"]):
            error = {"message": f"No commits between {asked['base']} and {asked['head']}"}
            return 422, {"message": "Validation Failed", "errors": [error]}
        number = len(hub.pulls) + 1
        address = f"https://hub.example/{name}/pull/{number}"
        hub.pulls.append({**asked, "into": name, "html_url": address})
        return 201, hub.pulls[-1]


@contextlib.contextmanager
def a_hub(root: Path) -> Iterator[Hub]:
    """A running host whose repositories lie below `root`."""
    hub = Hub(root)
    root.mkdir(parents=True, exist_ok=True)
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
