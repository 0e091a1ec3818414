"""Servers that a run owns: started together, waited for, watched, and ended with it.

    group = ServerGroup(commands, log_dir=..., report=...)
    urls = group.start()      every server answers its health check, or EngineError
    group.failures()          servers that have died since
    group.close()             every process of every server has ended; safe to call twice
    group.describe()          command lines, versions, logs, exits, for the manifest

Each server runs under `server_launch`, in a process group of its own, which ends it when this
process ends, however it ends. Its output goes to a file of its own in `log_dir`. This module
knows no vendor: what is started is a ServerCommand, which `server_presets` makes.
"""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import re
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paceline.errors import EngineError

__all__ = ["ServerCommand", "ServerGroup", "free_ports", "without_secrets"]

log = logging.getLogger(__name__)

_HOST = "127.0.0.1"
_POLL_S = 0.2
_HEALTH_TIMEOUT_S = 5.0
_VERSION_TIMEOUT_S = 120.0
_REPORT_EVERY_S = 5.0
_LINES_SHOWN = 20
_LINE_LEN = 300
_SECRET = re.compile(r"key|token|secret|passw|credential", re.IGNORECASE)
# Flags that count or name tokens, and hold no secret.
_NO_SECRET = re.compile(r"tokens|tokenizer|key-?file|token-id", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerCommand:
    """How one server is started and known to be ready.

    `environment` is what is set beside what this process has. `health_path` answers 200 when the
    server is ready. `version_argv` prints the version; where there is none, `version_pattern` is
    looked for in the log.
    """

    name: str
    argv: tuple[str, ...]
    port: int
    health_path: str = "/health"
    environment: Mapping[str, str] = field(default_factory=dict)
    version_argv: tuple[str, ...] | None = None
    version_pattern: str | None = None

    @property
    def url(self) -> str:
        return f"http://{_HOST}:{self.port}"


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on. They are held together, so that all differ."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind((_HOST, 0))
        return [one.getsockname()[1] for one in sockets]


def without_secrets(argv: Sequence[str]) -> list[str]:
    """A command line with the value of every flag that looks like a secret left out."""
    shown: list[str] = []
    hides = False
    for word in argv:
        name, equals, _ = word.partition("=")
        is_secret = word.startswith("-") and _is_secret(name)
        shown.append("***" if hides else f"{name}=***" if is_secret and equals else word)
        hides = is_secret and not equals
    return shown


def _is_secret(name: str) -> bool:
    return bool(_SECRET.search(name)) and not _NO_SECRET.search(name)


class _Server:
    """One started server: its launcher, and the pipe that keeps it alive."""

    def __init__(self, command: ServerCommand, log_path: Path, grace_s: float) -> None:
        self.command = command
        self.log_path = log_path
        self.ready_s: float | None = None
        launcher = Path(__file__).with_name("server_launch.py")
        pipe_read, self._pipe = os.pipe()
        try:
            # A run's later test starts servers of the same names: their logs follow on.
            with log_path.open("ab") as output:
                self._log_start = output.tell()
                self.process = subprocess.Popen(
                    [
                        *(sys.executable, "-I", "-S", str(launcher), str(pipe_read), str(grace_s)),
                        *command.argv,
                    ],
                    env={**os.environ, **command.environment},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    pass_fds=(pipe_read,),
                    start_new_session=True,  # Ctrl-C is this process's, which ends it in order
                )
        except OSError as error:
            os.close(self._pipe)
            raise EngineError(f"{command.name} cannot be started: {error}.") from error
        finally:
            os.close(pipe_read)

    def is_healthy(self) -> bool:
        connection = http.client.HTTPConnection(_HOST, self.command.port, timeout=_HEALTH_TIMEOUT_S)
        try:
            connection.request("GET", self.command.health_path)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def last_lines(self, count: int) -> list[str]:
        """The end of the log, without what would garble a terminal."""
        with contextlib.suppress(OSError), self.log_path.open("rb") as file:
            file.seek(max(self._log_start, self.log_path.stat().st_size - 64 * 1024))
            text = file.read().decode(errors="replace").replace("\r", "\n")
            lines = ["".join(c for c in line if c.isprintable()) for line in text.splitlines()]
            return [line[:_LINE_LEN] for line in lines if line.strip()][-count:]
        return []

    def let_go(self) -> None:
        """Tell the launcher to end the server."""
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1


class ServerGroup:
    """Servers that live and end together. Not to be shared between threads."""

    def __init__(
        self,
        commands: Sequence[ServerCommand],
        *,
        log_dir: Path,
        report: Callable[[str, float | None], None],
        start_timeout_s: float = 1800.0,
        stop_timeout_s: float = 20.0,
    ) -> None:
        self._commands = commands
        self._log_dir = log_dir
        self._report = report
        self._start_timeout_s = start_timeout_s
        self._stop_timeout_s = stop_timeout_s
        self._servers: list[_Server] = []
        self._versions: dict[str, str] = {}
        self._exits: dict[str, int] = {}
        self._told = (-1, 0.0)
        self._closing = threading.Event()
        self._watcher: threading.Thread | None = None

    def start(self) -> tuple[str, ...]:
        """Start all servers at once and wait until each answers; their URLs.

        Raises EngineError with the last lines of the first one's log that died or stayed silent;
        all have ended then.
        """
        try:
            self._log_dir.mkdir(parents=True, exist_ok=True)
            start_s = time.monotonic()
            for command in self._commands:
                path = self._log_dir / f"{command.name}.log"
                self._servers.append(_Server(command, path, self._stop_timeout_s))
            threading.Thread(target=self._probe_versions, name="versions", daemon=True).start()
            self._await_ready(start_s)
        except BaseException:
            self.close()
            raise
        self._watcher = threading.Thread(target=self._watch, name="watch-servers", daemon=True)
        self._watcher.start()
        return tuple(server.command.url for server in self._servers)

    def failures(self) -> dict[str, str]:
        """What each server that died left behind, by name."""
        return {
            server.command.name: self._account(server)
            for server in self._servers
            if server.command.name in self._exits
        }

    def close(self) -> None:
        """End every server, all at once, and wait for it."""
        self._closing.set()
        if self._watcher is not None:
            self._watcher.join()
            self._watcher = None
        for server in self._servers:
            server.let_go()
        # The launcher waits as long for SIGTERM to work, then kills.
        deadline_s = time.monotonic() + self._stop_timeout_s + 15.0
        for server in self._servers:
            try:
                server.process.wait(max(0.1, deadline_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.error("%s did not end; its launcher is killed", server.command.name)
                server.process.kill()
                server.process.wait()

    def describe(self) -> list[dict[str, Any]]:
        """What was started, for the manifest; no secret is in it."""
        return [self._describe(server) for server in self._servers]

    def _describe(self, server: _Server) -> dict[str, Any]:
        command = server.command
        return {
            "name": command.name,
            "command": shlex.join(without_secrets(command.argv)),
            "environment": {
                name: "***" if _is_secret(name) else value
                for name, value in command.environment.items()
            },
            "url": command.url,
            "version": self._version(server),
            "log": str(server.log_path.name),
            "ready_after_s": server.ready_s and round(server.ready_s, 1),
            "exit_code": self._exits.get(command.name),
        }

    def _version(self, server: _Server) -> str | None:
        command = server.command
        if command.version_argv is not None:
            return self._versions.get(shlex.join(command.version_argv))
        if command.version_pattern is not None:
            with contextlib.suppress(OSError):
                found = re.findall(
                    command.version_pattern, server.log_path.read_text(errors="replace")
                )
                return str(found[-1]) if found else None
        return None

    def _probe_versions(self) -> None:
        for argv in {command.version_argv for command in self._commands} - {None}:
            assert argv is not None
            try:
                done = subprocess.run(
                    argv,
                    capture_output=True,
                    text=True,
                    timeout=_VERSION_TIMEOUT_S,
                    stdin=subprocess.DEVNULL,
                    check=False,
                )
                text = (done.stdout.strip() or done.stderr.strip()).splitlines()
                self._versions[shlex.join(argv)] = text[-1] if text else "unknown"
            except (OSError, subprocess.SubprocessError) as error:
                self._versions[shlex.join(argv)] = f"unknown: {type(error).__name__}"

    def _await_ready(self, start_s: float) -> None:
        """Poll each server from a thread of its own: one that hangs must not hide the others."""
        threads = [
            threading.Thread(target=self._poll, args=(server, start_s), daemon=True)
            for server in self._servers
        ]
        for thread in threads:
            thread.start()
        while any(server.ready_s is None for server in self._servers):
            for server in self._servers:
                code = server.process.poll()
                if code is not None:
                    self._exits[server.command.name] = code
                    raise EngineError(self._account(server), hint=f"see {server.log_path}")
            waited_s = time.monotonic() - start_s
            waiting = [server for server in self._servers if server.ready_s is None]
            if waiting and waited_s > self._start_timeout_s:
                raise EngineError(
                    f"{waiting[0].command.name} was not ready after {waited_s:.0f} s.\n"
                    f"{_indented(waiting[0].last_lines(_LINES_SHOWN))}",
                    hint=f"see {waiting[0].log_path}; "
                    "--set engine.managed.start_timeout_s=N to wait longer",
                )
            self._report_waiting(waiting, waited_s)
            time.sleep(_POLL_S)

    def _report_waiting(self, waiting: Sequence[_Server], waited_s: float) -> None:
        if not waiting:
            return
        num_ready = len(self._servers) - len(waiting)
        # A log of a batch job stays readable: a line when one is ready, and every few seconds.
        if num_ready == self._told[0] and waited_s - self._told[1] < _REPORT_EVERY_S:
            return
        self._told = (num_ready, waited_s)
        said = waiting[0].last_lines(1)
        tail = f": {said[0][:100]}" if said else ""
        self._report(
            f"{num_ready} of {len(self._servers)} servers ready after {waited_s:.0f} s; "
            f"{waiting[0].command.name}{tail}",
            num_ready / len(self._servers),
        )

    def _poll(self, server: _Server, start_s: float) -> None:
        while server.process.poll() is None and not self._closing.is_set():
            if server.is_healthy():
                server.ready_s = time.monotonic() - start_s
                return
            self._closing.wait(_POLL_S)

    def _watch(self) -> None:
        """Note servers that die while they should live."""
        while not self._closing.wait(_POLL_S):
            for server in self._servers:
                code = server.process.poll()
                if code is not None and server.command.name not in self._exits:
                    self._exits[server.command.name] = code
                    log.error("%s", self._account(server))

    def _account(self, server: _Server) -> str:
        code = self._exits[server.command.name]
        how = f"signal {code - 128}" if code > 128 else f"exit {code}"
        when = "before it was ready" if server.ready_s is None else "while it served"
        return (
            f"{server.command.name} ended ({how}) {when}. Its last lines:\n"
            f"{_indented(server.last_lines(_LINES_SHOWN))}"
        )


def _indented(lines: Sequence[str]) -> str:
    return "\n".join(f"    {line}" for line in lines) if lines else "    (nothing)"
