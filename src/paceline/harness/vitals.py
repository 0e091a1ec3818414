"""What is watched beside a run's tests: power, the cap on it, and a sign of life.

All of it happens in the parent, which is idle while a test's process works. Beside each test's
logs lies `power.jsonl`, a line a reading:

    t_s        seconds since the test began, as in timeline.jsonl; negative while it was loading
    unix_s     when that was by the clock, which other nodes share
    host, device, scope, source, power_w; clock_mhz, temperature_c, limit_w, throttles where known

`.live.json`, there while the run works, has what it is doing and the newest readings: what
`paceline watch` looks at, from any node that sees the directory.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from paceline import power
from paceline.errors import EnvironmentProblem
from paceline.harness.process import Observer
from paceline.power import Board, CapWatch, Limits, NodeFiles, PowerSettings, Reading, Sampler
from paceline.rundir import LIVE_NAME, RunDir, disk_problem

__all__ = ["Vitals"]

_LOOK_EVERY_S = 1.0
# The driver's figure is a mean over a second, and a limit takes about as long to hold.
_LOWER_EVERY_S = 5.0
_AIM = 0.93


class Vitals:
    """Meters, cap and sign of life of one run; an Observer, which passes events on.

    Opening it opens the meters: a cap that nothing here could watch, a BMC that does not answer or
    limits that may not be lowered are errors before the run's directory exists.
    """

    def __init__(self, settings: PowerSettings, *, observer: Observer) -> None:
        self._settings = settings
        self._observer = observer
        self._host = power.host_name()
        self._board = Board()
        self._stack = contextlib.ExitStack()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._sampler: Sampler | None = None
        self._limits: Limits | None = None
        self._nodes: NodeFiles | None = None
        self._cap = None if settings.cap_w is None else CapWatch(settings.cap_w)
        self._log: _PowerLog | None = None
        self._logs: dict[str, _PowerLog] = {}
        self._live: dict[str, Any] = {}
        self._live_path: Path | None = None
        self._lowered_s = 0.0
        self._said_silent: set[str] = set()
        self._problems: list[str] = []

    def __enter__(self) -> Self:
        settings = self._settings
        meters, self._unread = power.open_meters(
            os.environ, redfish=settings.redfish, verify_tls=settings.redfish_verify_tls
        )
        if self._cap is not None and not meters and settings.nodes is None:
            raise EnvironmentProblem(
                f"The power cap cannot be watched: nothing here tells watts "
                f"({'; '.join(self._unread)}).",
                hint="--set power.redfish=https://BMC, `paceline power` on the nodes with "
                "--power-nodes DIR, or leave --power-cap out",
            )
        if settings.lower_limits:
            self._limits = Limits()
        self._nodes = power.open_nodes(settings, self._host)
        self._sampler = self._stack.enter_context(Sampler(meters, self._take))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end_tests()
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        for one in self._logs.values():
            one.close()
        if self._live_path is not None:
            self._live_path.unlink(missing_ok=True)

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Take note of an event of a test, and pass it on."""
        kind = event["event"]
        if kind == "stage":
            self._live |= {"stage": event["what"], "fraction": None}
        elif kind == "loading":
            self._live |= {"stage": event["what"], "fraction": event["fraction"]}
        elif kind == "started":
            self._live |= {"stage": "running", "fraction": None}
            if self._log is not None:
                self._log.begin(event["monotonic_s"])
        elif kind == "finished" and self._sampler is not None:
            self._sampler.read_now()
        self._observer(event)

    def watch(self, directory: RunDir) -> None:
        """Begin to show signs of life in the run's directory."""
        self._live_path = directory.path / LIVE_NAME
        self._thread = threading.Thread(target=self._look, name="vitals", daemon=True)
        self._thread.start()

    def begin_test(self, test: str, folder: Path) -> None:
        """Readings from now on belong to that test."""
        self._live |= {"test": test, "stage": "starting", "fraction": None}
        self._logs[test] = self._log = _PowerLog(folder / "power.jsonl")
        # A test that is ready within a second has a reading before its start all the same.
        if self._sampler is not None:
            self._sampler.read_now()

    def end_test(self, test: str, facts: Mapping[str, Any]) -> dict[str, Any]:
        """What the test drew, for the manifest."""
        ended, self._log = self._logs[test], None
        ended.close()
        if ended.problem is not None:
            self._problems.append(ended.problem)
        start_s, end_s = facts["window_s"]
        figures = power.summarise(ended.rows, start_s, end_s)
        if figures is None:
            said = "no reading fell into the test" if ended.rows else "; ".join(self._unread)
            return {"known": False, "reason": said}
        joules, fresh = figures["energy_joules"], not facts["resumed"]
        rate = facts["tokens"] / joules if joules > 0 and fresh else None
        return {
            "known": True,
            **figures,
            "tokens_per_joule": None if rate is None else round(rate, 6),
            "unread": self._unread,
        }

    def end_tests(self) -> None:
        """No test follows: stop reading, put limits back."""
        if self._limits is not None and not self._limits.is_closed:
            self._limits.close()
            if not self._limits.is_restored:
                self._say(f"power: the cards' limits are NOT back: {self._limits.problem}")
        self._stack.close()

    def facts(self) -> dict[str, Any]:
        """The whole run's, for the manifest."""
        return {
            "unread": self._unread,
            "missed_readings": {} if self._sampler is None else dict(self._sampler.missed),
            "bad_lines_of_nodes": 0 if self._nodes is None else self._nodes.num_bad_lines,
            "silent_nodes": sorted(self._said_silent),
            "problems": self._problems,
            "cap": None if self._cap is None else self._cap.facts(),
            "limits": None if self._limits is None else self._limits.facts(),
        }

    def notes(self) -> list[str]:
        """What a reader of the verdict should know, a sentence each."""
        notes = [f"power: {problem}" for problem in self._problems]
        cap = self._cap
        if cap is not None and (cap.near_s or cap.above_s):
            notes.append(
                f"power: {cap.above_s:.0f} s above the cap of {cap.cap_w:,.0f} W and "
                f"{cap.near_s:.0f} s within 5 % of it; at most {cap.peak_w:,.0f} W."
            )
        if cap is not None and cap.unknown_s:
            notes.append(f"power: the sum was unknown for {cap.unknown_s:.0f} s.")
        if self._said_silent:
            names = ", ".join(sorted(self._said_silent))
            notes.append(f"power: {names} fell silent: the sum lacks them from then on.")
        limits = self._limits
        if limits is not None and limits.num_lowered:
            notes.append(
                f"power: the cards' limits were lowered {limits.num_lowered} times, to "
                f"{limits.lowest_w:,.0f} W at the least, and are "
                f"{'back' if limits.is_restored else 'NOT back'}."
            )
        return notes

    def _take(self, unix_s: float, readings: Sequence[Reading]) -> None:
        for reading in readings:
            self._put({"host": self._host, **reading.as_json(), "unix_s": round(unix_s, 3)})

    def _put(self, row: Mapping[str, Any]) -> None:
        self._board.put(row["host"], row["unix_s"], row)
        current = self._log
        if current is not None:
            current.add(row)

    def _look(self) -> None:
        while not self._stop.wait(_LOOK_EVERY_S):
            for row in self._nodes.poll() if self._nodes is not None else ():
                self._put(row)
            total_w = self._board.total_w(time.time())
            self._look_at_cap(total_w)
            self._show_life(total_w)

    def _look_at_cap(self, total_w: float | None) -> None:
        if self._cap is None:
            return
        now_s = time.monotonic()
        if said := self._cap.look(now_s, total_w):
            self._say(said)
        for host in self._board.silent(time.time()):
            if host not in self._said_silent:
                self._said_silent.add(host)
                self._say(f"power: {host} is silent: the sum lacks it")
        is_near = total_w is not None and total_w >= power.NEAR * self._cap.cap_w
        if self._limits is not None and is_near and now_s - self._lowered_s > _LOWER_EVERY_S:
            self._lowered_s = now_s
            self._lower(self._limits, self._cap.cap_w, total_w or 0.0)

    def _lower(self, limits: Limits, cap_w: float, total_w: float) -> None:
        """Give this host's cards their share of what is too much."""
        fresh = self._board.fresh(time.time())
        own = [
            float(facts["power_w"])
            for (host, _), facts in fresh.items()
            if host == self._host and facts.get("source") == "nvml"
        ]
        had_problem = limits.problem is not None
        if own and limits.lower(max(own) * _AIM * cap_w / total_w):
            self._say(f"power: the cards' limits are lowered to {limits.now_w:,.0f} W")
        elif limits.problem is not None and not had_problem:
            self._problems.append(f"limits could not be lowered: {limits.problem}")
            self._say(f"power: limits cannot be lowered: {limits.problem}")

    def _show_life(self, total_w: float | None) -> None:
        if self._live_path is None:
            return
        now_s = time.time()
        readings = [
            {"host": host, **facts} for (host, _), facts in sorted(self._board.fresh(now_s).items())
        ]
        facts = {
            **self._live,
            "unix_s": round(now_s, 3),
            "host": self._host,
            "pid": os.getpid(),
            "power": {"total_w": total_w, "readings": readings, "unread": self._unread},
            "cap": None if self._cap is None else self._cap.facts(),
        }
        temporary = self._live_path.with_name(f"{LIVE_NAME}.tmp")
        # A disk that takes no more ends the test, in its own process; a view of it need not.
        with contextlib.suppress(OSError):
            temporary.write_text(json.dumps(facts))
            temporary.replace(self._live_path)

    def _say(self, text: str) -> None:
        self._observer({"event": "note", "text": text})


class _PowerLog:
    """power.jsonl of one test. Readings before its start are kept until the start is known."""

    def __init__(self, path: Path) -> None:
        self.rows: list[dict[str, Any]] = []
        self.problem: str | None = None
        self._path = path
        self._file: IO[str] | None = None
        self._lock = threading.Lock()
        self._start_unix_s: float | None = None
        self._early: list[Mapping[str, Any]] = []

    def begin(self, monotonic_s: float) -> None:
        """The test began at that time of the monotonic clock; the first call counts."""
        with self._lock:
            if self._start_unix_s is None:
                self._start_unix_s = time.time() - (time.monotonic() - monotonic_s)
                for row in self._early:
                    self._write(row)
                self._early = []

    def add(self, row: Mapping[str, Any]) -> None:
        with self._lock:
            if self._start_unix_s is None:
                self._early.append(row)
            else:
                self._write(row)

    def close(self) -> None:
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None

    def _write(self, row: Mapping[str, Any]) -> None:
        assert self._start_unix_s is not None
        timed = {"t_s": round(row["unix_s"] - self._start_unix_s, 3), **row}
        self.rows.append(timed)
        if self.problem is not None:
            return
        try:
            if self._file is None:
                self._file = self._path.open("w", buffering=1)
            self._file.write(json.dumps(timed) + "\n")
        except OSError as error:
            self.problem = disk_problem(self._path, error).message
