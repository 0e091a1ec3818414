"""What `paceline power` does."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import typer

from paceline import power as meters
from paceline.errors import EnvironmentProblem
from paceline.power import Board, Reading, Sampler
from paceline.rundir import disk_problem, make_folder

__all__ = ["power"]

_SHOW_EVERY_S = 5.0


def power(
    out: Path | None,
    *,
    name: str | None,
    seconds: float | None,
    redfish: str | None,
    verify_tls: bool,
    as_json: bool,
) -> None:
    """`paceline power`."""
    found, unread = meters.open_meters(os.environ, redfish=redfish, verify_tls=verify_tls)
    if not found:
        raise EnvironmentProblem(
            f"Nothing here tells watts: {'; '.join(unread)}.",
            hint="--redfish https://BMC, or run it as root for the processors' counters",
        )
    host = name or meters.host_name()
    board = Board()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with _Sink(out, host, board, stop) as sink, Sampler(found, sink.take) as sampler:
        if not as_json:
            typer.echo(f"{host}: {', '.join(one.name for one in found)}", err=True)
            for reason in unread:
                typer.echo(f"not read: {reason}", err=True)
        _wait(stop, board, seconds, show=not as_json)
    if sink.problem is not None:
        raise sink.problem
    facts = {
        "host": host,
        "file": None if sink.path is None else str(sink.path),
        "readings": sink.num_readings,
        "total_w": board.total_w(time.time()),
        "devices": [dict(facts) for _, facts in sorted(board.fresh(time.time()).items())],
        "unread": unread,
        "missed_readings": dict(sampler.missed),
    }
    typer.echo(json.dumps(facts, indent=1) if as_json else f"{sink.num_readings} readings")


def _wait(stop: threading.Event, board: Board, seconds: float | None, *, show: bool) -> None:
    end_s = None if seconds is None else time.monotonic() + seconds
    shown_s = time.monotonic() - _SHOW_EVERY_S + 1.5
    while not stop.is_set() and (end_s is None or time.monotonic() < end_s):
        stop.wait(0.2 if end_s is None else min(0.2, max(0.0, end_s - time.monotonic())))
        if show and time.monotonic() - shown_s >= _SHOW_EVERY_S:
            shown_s = time.monotonic()
            typer.echo(_line(board))


def _line(board: Board) -> str:
    now_s = time.time()
    fresh, total_w = board.fresh(now_s), board.total_w(now_s)
    each = "  ".join(f"{device} {facts['power_w']:,.0f} W" for (_, device), facts in fresh.items())
    clock = time.strftime("%H:%M:%S")
    return f"{clock}  {'no reading' if total_w is None else f'{total_w:,.0f} W'}  {each}".rstrip()


class _Sink:
    """Takes readings: the board, and the node's file where one is asked for."""

    def __init__(self, out: Path | None, host: str, board: Board, stop: threading.Event) -> None:
        self._host = host
        self._board = board
        self._stop = stop
        self._file: IO[str] | None = None
        self.path = None if out is None else out / meters.file_name(host)
        self.num_readings = 0
        self.problem: EnvironmentProblem | None = None

    def __enter__(self) -> _Sink:
        if self.path is not None:
            make_folder(self.path.parent)
            try:
                self._file = self.path.open("a", buffering=1)
            except OSError as error:
                raise disk_problem(self.path, error) from error
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def take(self, unix_s: float, readings: Sequence[Reading]) -> None:
        for reading in readings:
            row = {"unix_s": round(unix_s, 3), "host": self._host, **reading.as_json()}
            self._board.put(self._host, unix_s, row)
            self._write(row)
            self.num_readings += 1

    def _write(self, row: Mapping[str, Any]) -> None:
        if self._file is None or self.path is None or self.problem is not None:
            return
        try:
            self._file.write(json.dumps(row) + "\n")
        except OSError as error:
            self.problem = disk_problem(self.path, error)
            self._stop.set()
