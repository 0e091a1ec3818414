"""The process of a trial: `python -m paceline.harness.trial_child FOLDER FD FD`.

FOLDER holds job.json; events go to the parent as those of `harness.child` do, and it ends when
the second descriptor closes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import resource
import select
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paceline import engines
from paceline.config import RunConfig
from paceline.harness import loadgen, preflight
from paceline.harness.neighbours import Neighbours
from paceline.harness.process import error_event
from paceline.harness.samples import read_samples
from paceline.harness.survey import Survey, survey

__all__ = ["main"]

_TELL_EVERY_S = 1.0


class _Child:
    def __init__(self, folder: Path, event_fd: int, control_fd: int) -> None:
        self._folder = folder
        self._events = os.fdopen(event_fd, "w", buffering=1)
        self._lock = threading.Lock()
        self._control_fd = control_fd

    def send(self, **event: Any) -> None:
        with self._lock:
            self._events.write(json.dumps(event) + "\n")
            self._events.flush()

    def execute(self) -> None:
        threading.Thread(target=self._watch, name="watch", daemon=True).start()
        job = json.loads((self._folder / "job.json").read_text())
        config, seconds = RunConfig.from_json(job["config"]), float(job["seconds"])
        is_survey = job["kind"] == "survey"
        self._report("reading the dataset", None)
        samples = read_samples(config)
        drawn = loadgen.rehearse(config, self._scratch()) if is_survey else []
        context = preflight.context_of(
            config, samples.prompts, log_dir=self._folder, report=self._report, streaming=True
        )
        engine = engines.load(config.engine)(config.engine_config, context)
        facts: dict[str, Any] = {"samples_note": samples.note}

        def note_full() -> None:
            # The parent looks at the cards meanwhile.
            self.send(event="full")
            facts["full"] = engine.describe()

        start_s = time.perf_counter()
        try:
            engine.start()
            facts["load_s"] = round(time.perf_counter() - start_s, 3)
            neighbours = Neighbours()
            with self._counting(seconds):
                if is_survey:
                    found = survey(
                        config, engine, samples, drawn=drawn, seconds=seconds, full=note_full
                    )
                    facts |= {"survey": _described(found)}
                else:
                    speed = preflight.measure(config, engine, samples, seconds=seconds)
                    facts |= {"speed": dataclasses.asdict(speed)}
            facts["engine"] = engine.describe()
            # An engine on cards or on other machines hardly minds.
            if facts["engine"].get("device") == "cpu":
                facts["machine"] = {
                    "cores": neighbours.num_cores,
                    "other_cores": neighbours.cores(),
                }
        finally:
            engine.close()
        facts["peak_rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self.send(event="finished", resumed=0, torn_lines=0, **facts)

    def _scratch(self) -> Path:
        path = self._folder / "rehearsal"
        path.mkdir(exist_ok=True)
        return path

    def _report(self, what: str, fraction: float | None) -> None:
        self.send(event="loading", what=what, fraction=fraction)

    @contextlib.contextmanager
    def _counting(self, seconds: float) -> Iterator[None]:
        """Tell each second how much of the time is over."""
        what, begun_s, is_over = f"measuring for {seconds:g} s", time.monotonic(), threading.Event()

        def count() -> None:
            passed_s = 0.0
            while not is_over.wait(_TELL_EVERY_S) and passed_s < seconds:
                passed_s = time.monotonic() - begun_s
                self._report(what, min(1.0, passed_s / seconds))

        self._report(what, 0.0)
        counter = threading.Thread(target=count, name="count", daemon=True)
        counter.start()
        try:
            yield
        finally:
            is_over.set()
            counter.join()

    def _watch(self) -> None:
        select.select([self._control_fd], [], [])
        os._exit(3)


def _described(found: Survey) -> dict[str, Any]:
    """A survey as plain values."""
    return {
        "tests": dict(found.tests),
        "held": found.held and dataclasses.asdict(found.held),
        "held_unix_s": found.held_unix_s,
        "pace": dataclasses.asdict(found.pace),
        "slices": [dataclasses.asdict(one) for one in found.slices],
        "sizing": found.sizing,
        "target_qps": found.config.loadgen.target_qps,
        "seconds": round(found.seconds, 1),
    }


def main(arguments: list[str]) -> int:
    """Entry of the child process."""
    folder, event_fd, control_fd = arguments
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s"
    )
    child = _Child(Path(folder), int(event_fd), int(control_fd))
    try:
        child.execute()
    except Exception as error:
        traceback.print_exc()
        with contextlib.suppress(OSError):
            child.send(**error_event(error))
        sys.stderr.flush()
        os._exit(error_event(error)["exit_code"])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
