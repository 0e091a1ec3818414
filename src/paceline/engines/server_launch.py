"""Keeps one server for as long as its owner lives: `python server_launch.py FD GRACE_S COMMAND...`.

A program of its own between paceline and a server, run by path with the standard library alone,
so that it starts in milliseconds. FD is the read end of a pipe whose write end only the owner
holds; whatever ends the owner, `kill -9` included, closes it. Then, or on SIGTERM, the server's
process group gets SIGTERM, and after GRACE_S seconds every process that came of it gets SIGKILL.

Linux hands a process whose parent has gone to this one (it is a "subreaper"), so that a worker
which left the group, or whose parent crashed, is found as well. Should this program itself be
killed, the kernel kills the server (its "parent death signal").

The exit code is the server's; 128 + N for one that signal N ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

__all__ = ["main"]

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_KILL_WITHIN_S = 10.0
_CANNOT_START = 127


def main(arguments: list[str]) -> int:
    """Run the command until it ends, or until the owner is gone."""
    owner, grace_s, command = int(arguments[0]), float(arguments[1]), arguments[2:]
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_write)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, _note)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),
        )
    except OSError as error:
        sys.stderr.write(f"{command[0]} cannot be started: {error}\n")
        return _CANNOT_START
    while server.poll() is None and not _must_stop(owner, wake_read):
        pass
    if server.poll() is None:
        _stop(server, grace_s)
    _kill_descendants()
    code = server.wait()
    return code if code >= 0 else 128 - code


def _note(number: int, frame: object) -> None:
    """A signal only wakes the loop, through its descriptor."""


def _must_stop(owner: int, wake: int) -> bool:
    """Wait for something to happen; True if it was the owner's end or a signal to stop."""
    readable, _, _ = select.select([owner, wake], [], [])
    if wake in readable:
        numbers = set(os.read(wake, 512))
        if numbers & {signal.SIGTERM, signal.SIGINT}:
            return True
    return owner in readable


def _stop(server: subprocess.Popen[bytes], grace_s: float) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.wait(grace_s)


def _kill_descendants() -> None:
    """Kill and reap whatever is left below this process, until nothing is."""
    deadline_s = time.monotonic() + _KILL_WITHIN_S
    while (left := _descendants()) and time.monotonic() < deadline_s:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def _descendants() -> list[int]:
    """Processes below this one that still run."""
    children: dict[int, list[tuple[int, str]]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                # "pid (name) state parent ...", where the name may hold anything.
                state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
                children.setdefault(int(parent), []).append((int(folder.name), state))
    found: list[int] = []
    parents = [os.getpid()]
    while parents:
        for pid, state in children.get(parents.pop(), []):
            parents.append(pid)
            if state != "Z":
                found.append(pid)
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
