"""One server's process: how it is started, whether it is ready, what it said last.

It runs under `server_launch`, in a process group of its own, which ends it when this process ends,
however it ends. Its output goes to a file.
"""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from paceline.errors import EngineError

__all__ = [
    "Listener",
    "ServerCommand",
    "ServerProcess",
    "free_ports",
    "is_secret",
    "without_secrets",
]

log = logging.getLogger(__name__)

_HOST = "127.0.0.1"
_HEALTH_TIMEOUT_S = 5.0
_LINE_LEN = 300
_SECRET = re.compile(r"key|token|secret|passw|credential", re.IGNORECASE)
# Flags that count or name tokens, and hold no secret.
_NO_SECRET = re.compile(r"tokens|tokenizer|key-?file|token-id", re.IGNORECASE)


def _ignore(account: str) -> None:
    del account


@dataclass(frozen=True, kw_only=True, slots=True)
class Listener:
    """Who hears of servers, from any thread.

    `report` hears how far the start is, `note` of each server that ended or is started again,
    `on_lost` that the last one has no start left, with an account of it.
    """

    report: Callable[[str, float | None], None]
    note: Callable[[str], None] = log.warning
    on_lost: Callable[[str], None] = _ignore


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerCommand:
    """How one server is started and known to be ready.

    `environment` is what is set beside what this process has, `cwd` the folder that it runs in,
    None for this process's. `health_path` answers 200 when the server is ready. `version_argv`
    prints the version; where there is none, `version_pattern` is looked for in the log.
    """

    name: str
    argv: tuple[str, ...]
    port: int
    health_path: str = "/health"
    environment: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None
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
        is_hidden = word.startswith("-") and is_secret(name)
        shown.append("***" if hides else f"{name}=***" if is_hidden and equals else word)
        hides = is_hidden and not equals
    return shown


def is_secret(name: str) -> bool:
    """Whether a flag or variable of this name would hold one."""
    return bool(_SECRET.search(name)) and not _NO_SECRET.search(name)


class ServerProcess:
    """One started server: its launcher, and the pipe that keeps it alive."""

    def __init__(self, command: ServerCommand, log_path: Path, grace_s: float) -> None:
        self.command = command
        self.log_path = log_path
        self.started_s = time.monotonic()
        self.ready_s: float | None = None
        launcher = Path(__file__).with_name("server_launch.py")
        pipe_read, self._pipe = os.pipe()
        try:
            # Servers that are started again, or for another test, have the same names: their
            # logs follow on.
            with log_path.open("ab") as output:
                self._log_start = output.tell()
                self.process = subprocess.Popen(
                    [
                        *(sys.executable, "-I", "-S", str(launcher), str(pipe_read), str(grace_s)),
                        *command.argv,
                    ],
                    env={**os.environ, **command.environment},
                    cwd=command.cwd,
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
