"""The process that runs one LoadGen test: `python -m paceline.harness.child RUN_DIR MODE FD FD`.

LoadGen's test blocks until every sample is answered and cannot be called off, so what may go
wrong is watched from a second thread, which ends the process: an engine that failed, an engine
that made nothing for too long, a parent that is gone or wants to stop. Finished accuracy samples
are in the journal by then, whatever happens here.

Events go to the parent as JSON lines on the first descriptor:

    {"event": "loading", "what": text, "fraction": number or null}
    {"event": "started", "monotonic_s"}: a LoadGen test begins; a search makes several
    {"event": "probing", "number", "target_qps": number, or null where samples come at once}
    {"event": "probe", "text": one line on what a rate came to}
    {"event": "note", "text": one line that is to stay}
    {"event": "progress", "issued", "answered", "resumed", "tokens", "made", "elapsed_s"}
    {"event": "error", "kind", "message", "hint", "exit_code"}
    {"event": "finished", "engine": description, "resumed", "torn_lines", "tokens", "elapsed_s",
     "window_s": LoadGen's timed window, first query to last answer, in seconds since the start}

What a search finishes with is of all its LoadGen tests, counted from the start of the first, and so
are the rows of timeline.jsonl; its progress is of the present one.

The second descriptor is the parent's: when it closes, this process ends.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import select
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paceline import engines
from paceline.config import RunConfig
from paceline.errors import EngineError, InterruptedRun, PacelineError
from paceline.harness import find_qps, loadgen, preflight, probes
from paceline.harness.network import network_name
from paceline.harness.offline import OfflineSut
from paceline.harness.process import error_event
from paceline.harness.samples import Samples, read_samples
from paceline.harness.server import ServerSut
from paceline.harness.sut import Counts, EngineSut
from paceline.harness.timeline import Timeline
from paceline.mlperf import rules
from paceline.rundir import Journal, RunDir, write_atomically

__all__ = ["Child", "main"]

log = logging.getLogger(__name__)

_REPORT_EVERY_S = 0.25
_NAMED_IN_FLIGHT = 10


class Child:
    """One LoadGen test in this process."""

    def __init__(self, run: RunDir, mode: str, *, event_fd: int, control_fd: int) -> None:
        self._run = run
        self._mode = mode
        self._events = os.fdopen(event_fd, "w", buffering=1)
        self._event_lock = threading.Lock()
        self._control_fd = control_fd
        self._config = RunConfig.from_json(run.read_manifest()["config"])
        self._folder = run.test_dir(mode)
        self._journal: Journal | None = None
        self._engine: engines.Engine | None = None
        self._sut: EngineSut | None = None
        self._started_s: float | None = None
        # Of a search, when its first LoadGen test and its first query began.
        self._first_started_s: float | None = None
        self._first_issue_s: float | None = None
        self._timeline = Timeline(self._folder / "timeline.jsonl")
        self._over = threading.Event()

    def execute(self) -> None:
        """Run the test; raises PacelineError when it cannot be run to its end."""
        threading.Thread(target=self._watch, name="watch", daemon=True).start()
        samples = self._read_samples()
        facts = self._find_qps(samples) if self._mode == "find_qps" else self._test(samples)
        assert self._engine is not None
        assert self._sut is not None
        assert self._started_s is not None
        assert self._first_started_s is not None
        ended_s, start_s, sut = time.monotonic(), self._first_started_s, self._sut
        self._engine.drain()
        facts["engine"] = self._engine.describe()
        self._over.set()
        self._timeline.end(sut.last_activity_s - start_s, self._timeline_row)
        self._engine.close()
        if self._journal is not None:
            self._journal.close()
        if sut.error is not None:
            raise sut.error
        self._send_progress(ended_s - self._started_s)
        issued_s, answered_s = sut.window_s
        window_s = (self._first_issue_s or issued_s, answered_s)
        counts = sut.past + sut.counts
        self.send(
            event="finished",
            **facts,
            resumed=counts.resumed,
            torn_lines=self._journal.torn_lines if self._journal else 0,
            tokens=counts.tokens,
            elapsed_s=round(ended_s - start_s, 6),
            window_s=[round(moment_s - start_s, 6) for moment_s in window_s],
        )

    def _test(self, samples: Samples) -> dict[str, Any]:
        name = self._network_name if self._config.network else None
        session = loadgen.Session(self._config, self._folder, self._mode)
        self._start_engine(samples.prompts)
        facts = {}
        if self._mode == "performance" and self._config.loadgen.probe_s > 0:
            facts = self._size(session, samples)
        engine: object = self._engine
        if isinstance(engine, engines.CountingEngine):
            engine.begin_counting()
        session.run(self._folder, self._make_sut(samples), network_name=name)
        return facts

    def _size(self, session: loadgen.Session, samples: Samples) -> dict[str, Any]:
        """Measure the engine that is loaded, and make the test as long as its speed needs."""
        assert self._engine is not None
        seconds = self._config.loadgen.probe_s
        self._report(f"preflight: measuring for {seconds:g} s", None)
        found = preflight.measure(self._config, self._engine, samples, seconds=seconds)
        self._config, words = preflight.size(self._config, found)
        self.send(event="note", text=f"{self._mode}: preflight: {words}")
        target_qps = self._config.loadgen.target_qps
        assert target_qps is not None
        session.size(target_qps)
        conf = loadgen.user_conf(self._config, self._mode)
        write_atomically(self._folder / "user.conf", conf)
        return {"probe": dataclasses.asdict(found), "target_qps": target_qps, "sizing": words}

    def _find_qps(self, samples: Samples) -> dict[str, Any]:
        """Search with one engine, loaded once, and one LoadGen, its settings read once."""
        assert self._config.find_qps is not None
        session = loadgen.Session(self._config, self._folder, self._mode)
        self._start_engine(samples.prompts)

        def test(number: int, load: loadgen.Load) -> probes.Outcome:
            self.send(event="probing", number=number, target_qps=load.target_qps)
            sut = self._begin(self._new_sut(samples, is_offline=load.target_qps is None))
            return find_qps.run_test(
                session, self._config, folder=self._folder, number=number, load=load, sut=sut
            )

        def report(probe: probes.Probe) -> None:
            self.send(event="probe", text=probes.probe_text(probe))

        found_qps = find_qps.find(self._config.find_qps, self._folder, test=test, report=report)
        if self._sut is None:  # killed after the last probe: nothing was left to try
            self._begin(self._new_sut(samples, is_offline=True))
        return {
            "found_qps": found_qps,
            "num_probes": len(probes.read_probes(self._folder)),
        }

    def send(self, **event: Any) -> None:
        with self._event_lock:
            self._events.write(json.dumps(event) + "\n")
            self._events.flush()

    def send_error(self, error: BaseException) -> int:
        """Tell the parent what ended the test; returns the exit code for it."""
        told = error_event(error)
        self.send(**told)
        return int(told["exit_code"])

    def _read_samples(self) -> Samples:
        self.send(event="loading", what="reading the dataset", fraction=None)
        samples = read_samples(self._config)
        if samples.note:
            self.send(event="note", text=f"{self._mode}: {samples.note}")
        return samples

    def _make_sut(self, samples: Samples) -> EngineSut:
        sut = self._new_sut(samples, is_offline=self._config.scenario == "Offline")
        if self._mode == "accuracy":
            self._journal = Journal(self._folder / "journal.jsonl")
            sut.keep_order(self._journal, self._journal.read())
        return self._begin(sut)

    def _start_engine(self, prompts: Sequence[engines.TokenIds]) -> None:
        """Load the model."""
        config = self._config
        context = preflight.context_of(
            config,
            prompts,
            log_dir=self._run.path / "log",
            report=self._report,
            streaming=config.scenario != "Offline",
            kept=engines.kept_path(config.engine, self._run.path / "log"),
        )
        self._engine = engines.load(config.engine)(config.engine_config, context)
        self._engine.start()

    def _new_sut(self, samples: Samples, *, is_offline: bool) -> EngineSut:
        assert self._engine is not None
        if is_offline:
            return OfflineSut(self._engine, samples, respond=loadgen.complete)
        limits = rules.benchmark(self._config.benchmark).latency[self._config.scenario]
        return ServerSut(
            self._engine,
            samples,
            percentile=limits.percentile,
            respond=loadgen.complete,
            respond_first=loadgen.complete_first_tokens,
        )

    def _begin(self, sut: EngineSut) -> EngineSut:
        """From now on `sut` is what is watched."""
        before, self._started_s = self._sut, time.monotonic()
        sut.last_activity_s = self._started_s
        if before is not None:
            self._first_issue_s = self._first_issue_s or before.window_s[0]
            sut.past = before.past + before.counts
        self._first_started_s = self._first_started_s or self._started_s
        self._sut = sut
        self.send(event="started", monotonic_s=self._started_s)
        return sut

    def _report(self, what: str, fraction: float | None) -> None:
        self.send(event="loading", what=what, fraction=fraction)

    def _network_name(self) -> str:
        """What LoadGen calls a SUT on other hosts: asked of every one of them, now."""
        assert self._sut is not None
        try:
            return network_name(self._engine)
        except PacelineError as error:
            self._sut.fail(error)
            return ""

    def _watch(self) -> None:
        """Report progress; end the process when the test cannot go on."""
        while not self._over.wait(0.0):
            gone, _, _ = select.select([self._control_fd], [], [], _REPORT_EVERY_S)
            if gone:
                self._end(InterruptedRun("The run was stopped."))
            sut, started_s, first_s = self._sut, self._started_s, self._first_started_s
            if sut is None or started_s is None or first_s is None:
                continue
            if sut.error is not None:
                self._end(sut.error)
            now_s = time.monotonic()
            self._send_progress(now_s - started_s)
            try:
                self._timeline.tick(now_s - first_s, self._timeline_row)
            except PacelineError as error:
                self._end(error)
            self._check_stall(sut)

    def _check_stall(self, sut: EngineSut) -> None:
        silent_s = time.monotonic() - sut.last_activity_s
        if silent_s > self._config.stall_timeout_s and (stuck := sut.in_flight()):
            named = ", ".join(str(index) for index in stuck[:_NAMED_IN_FLIGHT])
            more = f" and {len(stuck) - _NAMED_IN_FLIGHT} more" if stuck[_NAMED_IN_FLIGHT:] else ""
            self._end(
                EngineError(
                    f"The engine made nothing for {silent_s:.0f} s. In flight: {len(stuck)} "
                    f"samples, {named}{more}.",
                    hint=f"see {self._run.log_path(self._mode)}; "
                    f"paceline run --resume {self._run.path} goes on from the finished samples",
                )
            )

    def _progress(self, elapsed_s: float, counts: Counts) -> dict[str, Any]:
        assert self._sut is not None
        return {
            "issued": counts.issued,
            "answered": counts.answered,
            "resumed": counts.resumed,
            "tokens": counts.tokens,
            "made": counts.made,
            "elapsed_s": round(elapsed_s, 3),
            **self._sut.latency_figures(),
        }

    def _timeline_row(self, elapsed_s: float) -> dict[str, Any]:
        """Progress, when that was by the clock, and how the engine is if it can say so."""
        engine: object = self._engine
        state = engine.state() if isinstance(engine, engines.ObservableEngine) else None
        known = {} if state is None else state.as_json()
        assert self._sut is not None
        progress = self._progress(elapsed_s, self._sut.past + self._sut.counts)
        return {**progress, "unix_s": round(time.time(), 3), **known}

    def _send_progress(self, elapsed_s: float) -> None:
        assert self._sut is not None
        self.send(event="progress", **self._progress(elapsed_s, Counts() + self._sut.counts))

    def _end(self, error: PacelineError) -> None:
        """Leave now. LoadGen's test cannot be called off, so the process goes instead."""
        try:
            code = self.send_error(error)
        except OSError:  # the parent is gone: nobody to tell
            code = error.exit_code
        os._exit(code)


def main(arguments: list[str]) -> int:
    """Entry of the child process."""
    run_dir, mode, event_fd, control_fd = arguments
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s"
    )
    run = RunDir.open(Path(run_dir))
    child = Child(run, mode, event_fd=int(event_fd), control_fd=int(control_fd))
    try:
        child.execute()
    except Exception as error:
        traceback.print_exc()
        code = child.send_error(error)
        sys.stderr.flush()
        os._exit(code)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
