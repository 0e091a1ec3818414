"""A child process that measures or runs a LoadGen test: started, followed, waited for.

The child works in the folder of the run's first start, so that paths in a recipe mean the same
when the run is resumed from elsewhere. It ends when the descriptor it was given closes.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paceline import errors
from paceline.errors import EngineError, PacelineError
from paceline.rundir import RunDir, disk_problem

__all__ = [
    "Observer",
    "Spawned",
    "await_exit",
    "error_event",
    "follow",
    "run_child",
    "spawn",
    "tail",
]

Observer = Callable[[Mapping[str, Any]], None]

_LOG_LINES_SHOWN = 20
# OpenMP threads that wait by spinning make a CPU run twenty times slower as soon as anything
# else wants a core; waiting quietly costs nothing that could be measured.
_QUIET_THREADS = {"OMP_WAIT_POLICY": "PASSIVE"}
_STOP_WITHIN_S = 15.0


@dataclass(frozen=True, slots=True)
class Spawned:
    """A child, the descriptor that its events come from, and the one whose closing ends it."""

    child: subprocess.Popen[bytes]
    events_read: int
    control_write: int

    def events(self) -> Any:
        """The child's events, a line each; to be closed."""
        return os.fdopen(self.events_read, encoding="utf-8")

    def release(self) -> None:
        """Have the child end."""
        os.close(self.control_write)


def run_child(directory: RunDir, test: str, *, cwd: str, observer: Observer) -> dict[str, Any]:
    """Run a test's process in `cwd` to its end; returns the facts it gave. Raises PacelineError."""
    log_path = directory.log_path(test)
    module = ("paceline.harness.child", str(directory.path.resolve()), test)
    spawned = spawn(module, log_path=log_path, cwd=Path(cwd))
    try:
        with spawned.events() as events:
            facts = follow(events, test, observer=observer)
    finally:
        spawned.release()
        await_exit(spawned.child)
    if facts is None:
        raise EngineError(
            f"The {test} test's process died (exit {spawned.child.returncode}).\n{tail(log_path)}",
            hint=f"see {log_path}; paceline run --resume {directory.path}",
        )
    return facts


def spawn(module: Sequence[str], *, log_path: Path, cwd: Path) -> Spawned:
    """Start `python -m MODULE ARGUMENTS FD FD`; its output goes on in `log_path`."""
    events_read, events_write = os.pipe()
    control_read, control_write = os.pipe()
    command = [sys.executable, "-m", *module, str(events_write), str(control_read)]
    try:
        with log_path.open("ab") as log:
            child = subprocess.Popen(
                command,
                cwd=cwd,
                env=_QUIET_THREADS | os.environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(events_write, control_read),
                start_new_session=True,  # Ctrl-C is the parent's; it stops the child in order
            )
    except OSError as error:
        os.close(control_write)
        os.close(events_read)
        raise disk_problem(log_path, error) from error
    finally:
        os.close(events_write)
        os.close(control_read)
    return Spawned(child, events_read, control_write)


def error_event(error: BaseException) -> dict[str, Any]:
    """What a child tells its parent of the error that ends it."""
    known = isinstance(error, PacelineError)
    return {
        "event": "error",
        "kind": type(error).__name__,
        "message": error.message if isinstance(error, PacelineError) else f"{error!r}",
        "hint": error.hint if isinstance(error, PacelineError) else None,
        "known": known,
        "exit_code": error.exit_code if isinstance(error, PacelineError) else 70,
    }


def follow(events: Any, test: str, *, observer: Observer) -> dict[str, Any] | None:
    """Pass events on until the child is done; its facts, or None when it died without a word."""
    facts: dict[str, Any] | None = None
    for line in events:
        event = json.loads(line)
        if event["event"] == "error":
            raise _as_error(event)
        if event["event"] == "finished":
            facts = {name: value for name, value in event.items() if name != "event"}
        observer({"test": test, **event})
    return facts


def _as_error(event: Mapping[str, Any]) -> PacelineError:
    if not event["known"]:
        return EngineError(
            f"paceline failed: {event['message']}", hint="this is a bug: please report the log"
        )
    kind: type[PacelineError] = getattr(errors, event["kind"])
    return kind(event["message"], hint=event["hint"])


def await_exit(child: subprocess.Popen[bytes]) -> None:
    """Wait for a child that was told to stop; end it when it does not."""
    try:
        child.wait(_STOP_WITHIN_S)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        child.kill()
        child.wait()


def tail(path: Path) -> str:
    with contextlib.suppress(OSError):
        lines = path.read_text(errors="replace").splitlines()[-_LOG_LINES_SHOWN:]
        return "\n".join(f"    {line}" for line in lines)
    return ""
