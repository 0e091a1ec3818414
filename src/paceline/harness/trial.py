"""A started engine measured in a process of its own: what ends it ends nothing else.

    run_trial(job, ...)     the facts that the process gave, or how it ended without

The process (`harness.trial_child`) has a time limit, after which it is killed with everything that
it started. Its output goes to `log.txt` in the trial's folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paceline.config import RunConfig
from paceline.errors import EngineError, PacelineError
from paceline.harness import process
from paceline.rundir import write_atomically

__all__ = ["Job", "Trial", "crowding", "run_trial"]

_SHOWN_AS = {"survey": "forecast", "speed": "trial"}
# What a machine does for itself is less.
_NOTABLE_PART = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What to measure: `kind` is survey (every test's time) or speed (tokens/s, engine full)."""

    config: RunConfig
    kind: str
    seconds: float
    limit_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """How a trial ended: ok with facts; else failed, out of memory, crashed or hung."""

    how: str
    facts: dict[str, Any] | None
    error: PacelineError | None

    def require(self) -> dict[str, Any]:
        """The facts. Raises PacelineError when there are none."""
        if self.error is not None:
            raise self.error
        assert self.facts is not None
        return self.facts


def run_trial(job: Job, folder: Path, *, observer: process.Observer) -> Trial:
    """Measure in a child process; `folder` is made, and holds job.json and log.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = {"config": job.config.as_json(), "kind": job.kind, "seconds": job.seconds}
    write_atomically(folder / "job.json", json.dumps(plain, indent=1) + "\n")
    log_path = folder / "log.txt"
    log_path.unlink(missing_ok=True)
    spawned = process.spawn(
        ("paceline.harness.trial_child", str(folder.resolve())), log_path=log_path, cwd=Path.cwd()
    )
    late = threading.Event()

    def end() -> None:
        late.set()
        _kill_group(spawned.child)

    timer = threading.Timer(job.limit_s, end)
    timer.start()
    facts: dict[str, Any] | None = None
    error: PacelineError | None = None
    try:
        with spawned.events() as events:
            facts = process.follow(events, _SHOWN_AS[job.kind], observer=observer)
    except PacelineError as told:
        error = told
    finally:
        timer.cancel()
        spawned.release()
        process.await_exit(spawned.child)
        _kill_group(spawned.child)
    return _ended(
        job, facts, error, is_late=late.is_set(), code=spawned.child.returncode, log=log_path
    )


def crowding(facts: Mapping[str, Any]) -> str:
    """A sentence's part on other programs that took part of the processor; empty if none did."""
    machine = facts.get("machine")
    if machine is None or machine["other_cores"] is None:
        return ""
    cores, others = machine["cores"], machine["other_cores"]
    if others < _NOTABLE_PART * cores:
        return ""
    return f"other programs took {others:.1f} of {cores} cores meanwhile"


def _ended(
    job: Job,
    facts: dict[str, Any] | None,
    error: PacelineError | None,
    *,
    is_late: bool,
    code: int,
    log: Path,
) -> Trial:
    if facts is not None:
        return Trial(how="ok", facts=facts, error=None)
    tail = process.tail(log)
    if is_late:
        error = EngineError(
            f"The engine took longer than {job.limit_s:g} s and was killed.\n{tail}",
            hint=f"see {log}",
        )
        return Trial(how="hung", facts=None, error=error)
    if error is None:
        how = f"signal {-code}" if code < 0 else f"exit {code}"
        error = EngineError(f"The engine's process died ({how}).\n{tail}", hint=f"see {log}")
        # The kernel's word for a machine without memory is SIGKILL.
        return Trial(
            how="out of memory" if code == -signal.SIGKILL else "crashed", facts=None, error=error
        )
    told = f"{error.message}".lower()
    is_memory = "out of memory" in told or "cannot allocate memory" in told
    return Trial(how="out of memory" if is_memory else "failed", facts=None, error=error)


def _kill_group(child: subprocess.Popen[bytes]) -> None:
    """The child leads a session: all that it left running goes with it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
