"""Servers that a run owns: started together, waited for, watched, and ended with it.

    group = ServerGroup(commands, log_dir=..., listener=...)
    urls = group.start()      every server answers its health check, or EngineError
    group.failures()          servers that have died since
    group.rest()              nobody watches them; what follows is another test
    group.renew()             every server answers its health check again, or is started again
    group.close()             every process of every server has ended; safe to call twice
    group.describe()          command lines, versions, logs, exits, for the manifest

A server that dies while it serves is started again at the same address, a stated number of times
in each test; when the last one is lost, the owner is told at once. This module knows no vendor:
what is started is a ServerCommand, which `server_presets` makes; `server_process` runs it.
"""

from __future__ import annotations

import contextlib
import logging
import re
import shlex
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paceline.engines.server_process import (
    Listener,
    ServerCommand,
    ServerProcess,
    is_secret,
    without_secrets,
)
from paceline.errors import EngineError

__all__ = ["ServerGroup"]

log = logging.getLogger(__name__)

_POLL_S = 0.2
_VERSION_TIMEOUT_S = 120.0
_REPORT_EVERY_S = 5.0
_LINES_SHOWN = 20
# A server that dies of what it finds at its start should not do so ten times a second.
_RESTART_AFTER_S = 1.0
# A server that serves nobody answers its health check at once; one that is busy for a moment is
# asked again.
_HEALTH_TRIES, _HEALTH_AGAIN_S = 3, 1.0


class ServerGroup:
    """Servers that live and end together. Not to be shared between threads."""

    def __init__(
        self,
        commands: Sequence[ServerCommand],
        *,
        log_dir: Path,
        listener: Listener,
        start_timeout_s: float = 1800.0,
        stop_timeout_s: float = 20.0,
        restarts: int = 0,
    ) -> None:
        """`restarts` is for each server, in each test."""
        self._commands = commands
        self._log_dir = log_dir
        self._listener = listener
        self._start_timeout_s = start_timeout_s
        self._stop_timeout_s = stop_timeout_s
        self._servers: list[ServerProcess] = []
        self._versions: dict[str, str] = {}
        self._restarts = restarts
        self._exits: dict[str, int] = {}
        self._accounts: dict[str, list[str]] = {}
        # When a dead server is started again; one that is in neither has ended for good.
        self._due_s: dict[str, float] = {}
        self._gone: set[str] = set()
        self._told = (-1, 0.0)
        self._closing = threading.Event()
        self._resting = threading.Event()
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
                self._servers.append(ServerProcess(command, path, self._stop_timeout_s))
            threading.Thread(target=self._probe_versions, name="versions", daemon=True).start()
            self._await_ready(start_s)
        except BaseException:
            self.close()
            raise
        self._begin_watch()
        return tuple(server.command.url for server in self._servers)

    def rest(self) -> None:
        """Stop watching; a server that ends from now on is found by `renew`."""
        self._resting.set()
        if self._watcher is not None:
            self._watcher.join()
            self._watcher = None

    def renew(self) -> list[str]:
        """Make the servers fit for another test, after `rest`; their failures count anew.

        One that has ended, or does not answer its health check, is started again at its address;
        returned is why, a sentence each. Raises EngineError as `start` does.
        """
        for account in (self._exits, self._accounts, self._due_s, self._gone):
            account.clear()
        self._told = (-1, 0.0)
        told: list[str] = []
        try:
            start_s = time.monotonic()
            for index, server in enumerate(self._servers):
                if (why := self._why_unfit(server)) is not None:
                    self._listener.note(f"{why}; it is started again")
                    told.append(f"{why}; it was started again.")
                    self._end([server])
                    again = ServerProcess(server.command, server.log_path, self._stop_timeout_s)
                    self._servers[index] = again
            self._await_ready(start_s)
        except BaseException:
            self.close()
            raise
        self._begin_watch()
        return told

    def _why_unfit(self, server: ServerProcess) -> str | None:
        name = server.command.name
        for left in reversed(range(_HEALTH_TRIES)):
            if (code := server.process.poll()) is not None:
                return f"{name} had ended ({_how(code)})"
            # One that is only just starting again is waited for.
            if server.ready_s is None or server.is_healthy():
                return None
            if left:
                time.sleep(_HEALTH_AGAIN_S)
        return f"{name} did not answer its health check, {_HEALTH_TRIES} times"

    def _begin_watch(self) -> None:
        self._resting.clear()
        self._watcher = threading.Thread(target=self._watch, name="watch-servers", daemon=True)
        self._watcher.start()

    def failures(self) -> dict[str, str]:
        """What each server that died left behind, each time, by name."""
        return {name: "\n".join(accounts) for name, accounts in dict(self._accounts).items()}

    def close(self) -> None:
        """End every server, all at once, and wait for it."""
        self._closing.set()
        self.rest()
        self._end(self._servers)

    def _end(self, servers: Sequence[ServerProcess]) -> None:
        for server in servers:
            server.let_go()
        # The launcher waits as long for SIGTERM to work, then kills.
        deadline_s = time.monotonic() + self._stop_timeout_s + 15.0
        for server in servers:
            try:
                server.process.wait(max(0.1, deadline_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.error("%s did not end; its launcher is killed", server.command.name)
                server.process.kill()
                server.process.wait()

    def describe(self) -> list[dict[str, Any]]:
        """What was started, for the manifest; no secret is in it."""
        return [self._describe(server) for server in self._servers]

    def _describe(self, server: ServerProcess) -> dict[str, Any]:
        command = server.command
        return {
            "name": command.name,
            "command": shlex.join(without_secrets(command.argv)),
            "environment": {
                name: "***" if is_secret(name) else value
                for name, value in command.environment.items()
            },
            "url": command.url,
            "version": self._version(server),
            "log": str(server.log_path.name),
            "ready_after_s": server.ready_s and round(server.ready_s, 1),
            "exit_code": self._exits.get(command.name),
            "ended": len(self._accounts.get(command.name, ())),
            "is_lost": command.name in self._gone,
        }

    def _version(self, server: ServerProcess) -> str | None:
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
            if server.ready_s is None
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

    def _report_waiting(self, waiting: Sequence[ServerProcess], waited_s: float) -> None:
        if not waiting:
            return
        num_ready = len(self._servers) - len(waiting)
        # A log of a batch job stays readable: a line when one is ready, and every few seconds.
        if num_ready == self._told[0] and waited_s - self._told[1] < _REPORT_EVERY_S:
            return
        self._told = (num_ready, waited_s)
        said = waiting[0].last_lines(1)
        tail = f": {said[0][:100]}" if said else ""
        self._listener.report(
            f"{num_ready} of {len(self._servers)} servers ready after {waited_s:.0f} s; "
            f"{waiting[0].command.name}{tail}",
            num_ready / len(self._servers),
        )

    def _poll(self, server: ServerProcess, start_s: float) -> None:
        while server.process.poll() is None and not self._closing.is_set():
            if server.is_healthy():
                server.ready_s = time.monotonic() - start_s
                return
            self._closing.wait(_POLL_S)

    def _watch(self) -> None:
        """Note servers that die while they should live, and start them again."""
        while not self._resting.wait(_POLL_S):
            for index, server in enumerate(self._servers):
                name = server.command.name
                if name in self._gone:
                    continue
                if name in self._due_s:
                    if time.monotonic() >= self._due_s[name]:
                        self._start_again(index)
                    continue
                if (code := server.process.poll()) is not None:
                    self._on_end(server, code)
                elif (
                    server.ready_s is None
                    and time.monotonic() - server.started_s > self._start_timeout_s
                ):
                    server.let_go()

    def _on_end(self, server: ServerProcess, code: int) -> None:
        name = server.command.name
        self._exits[name] = code
        account = self._account(server)
        self._accounts.setdefault(name, []).append(account)
        self._listener.note(f"{account.partition(' Its last lines')[0]} See {server.log_path}")
        server.let_go()
        ended = len(self._accounts[name])
        if ended <= self._restarts:
            self._due_s[name] = time.monotonic() + _RESTART_AFTER_S * 2 ** (ended - 1)
        else:
            self._lose(name)

    def _start_again(self, index: int) -> None:
        command, log_path = self._servers[index].command, self._servers[index].log_path
        del self._due_s[command.name]
        try:
            server = ServerProcess(command, log_path, self._stop_timeout_s)
        except EngineError as error:
            self._accounts[command.name].append(error.message)
            self._listener.note(error.message)
            self._lose(command.name)
            return
        self._servers[index] = server
        self._listener.note(f"{command.name} is started again")
        threading.Thread(target=self._poll, args=(server, server.started_s), daemon=True).start()

    def _lose(self, name: str) -> None:
        self._gone.add(name)
        if len(self._gone) == len(self._servers):
            self._listener.on_lost("\n".join(self.failures().values()))

    def _account(self, server: ServerProcess) -> str:
        how = _how(self._exits[server.command.name])
        when = "before it was ready" if server.ready_s is None else "while it served"
        return (
            f"{server.command.name} ended ({how}) {when}. Its last lines:\n"
            f"{_indented(server.last_lines(_LINES_SHOWN))}"
        )


def _how(code: int) -> str:
    return f"signal {code - 128}" if code > 128 else f"exit {code}"


def _indented(lines: Sequence[str]) -> str:
    return "\n".join(f"    {line}" for line in lines) if lines else "    (nothing)"
