"""A job submitted, and followed until its run has a verdict.

A job is followed by two things that anybody could look at: what the scheduler says of it, and the
lines that the run writes. Following ends with the job; it never ends a job.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paceline.errors import EnvironmentProblem, RunDirError
from paceline.operate.launch_render import Job, render
from paceline.rundir import RunDir, make_folder, write_atomically

__all__ = [
    "Followed",
    "State",
    "cancel_command",
    "follow",
    "followed",
    "state_command",
    "submission",
    "submit",
    "tests_of",
    "write",
]

_RECORD = "job.json"
_QUERY_FAILURES = 30
_GONE = ("Invalid job id", "Unknown Job Id", "has finished")
_SLURM_ENDED = frozenset(
    (
        *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED"),
        *("NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"),
    )
)
_PBS_STATES = {
    "Q": "QUEUED",
    "H": "HELD",
    "W": "WAITING",
    "R": "RUNNING",
    "E": "ENDING",
    "F": "ENDED",
    "C": "ENDED",
}


@dataclass(frozen=True, slots=True)
class Followed:
    """A job that was submitted: its scheduler and name, where its run and its output lie."""

    scheduler: str
    job: str
    run_dir: Path
    output: Path
    script: Path


@dataclass(frozen=True, slots=True)
class State:
    """What a scheduler says of a job. `has_ended` when it will not run again by itself."""

    name: str
    detail: str
    has_ended: bool


def write(job: Job) -> None:
    """Write the batch file and the recipe's copy beside the run directory."""
    make_folder(job.errand.job_dir)
    if job.recipe is not None and job.errand.recipe is not None:
        write_atomically(job.recipe, job.errand.recipe.read_text())
    write_atomically(job.script, render(job))
    job.script.chmod(0o755)


def submit(job: Job) -> Followed:
    """Submit a job that was written. Raises EnvironmentProblem with the scheduler's words."""
    printed = _ask(job.submission)
    if printed.returncode != 0:
        raise EnvironmentProblem(
            f"{job.submission[0]} refused the job: {_said(printed)}",
            hint=f"change the flags, or {job.script} itself and submit that",
        )
    name = printed.stdout.strip().splitlines()[-1].partition(";")[0]
    made = Followed(
        scheduler=job.scheduler,
        job=name,
        run_dir=job.errand.run_dir,
        output=Path(job.output.format(name)),
        script=job.script,
    )
    record = {"scheduler": made.scheduler, "job": made.job}
    record |= {key: str(getattr(made, key)) for key in ("run_dir", "output", "script")}
    write_atomically(job.errand.job_dir / _RECORD, json.dumps(record, indent=1) + "\n")
    return made


def followed(path: Path) -> Followed:
    """The job that lies in a job's or a run's directory. Raises RunDirError when there is none."""
    for folder in (path, path.with_name(f"{path.name}.job")):
        if (folder / _RECORD).is_file():
            record: dict[str, Any] = json.loads((folder / _RECORD).read_text())
            paths = {key: Path(record[key]) for key in ("run_dir", "output", "script")}
            return Followed(record["scheduler"], record["job"], **paths)
    raise RunDirError(
        f"No job was submitted from {path}.", hint="the folder that --submit printed: RUN_DIR.job"
    )


def submission(job: Followed) -> list[str]:
    """The command that submits its script again."""
    submit = ["sbatch", "--parsable"] if job.scheduler == "slurm" else ["qsub"]
    return [*submit, str(job.script)]


def state_command(job: Followed) -> list[str]:
    """The command that says how the job does."""
    if job.scheduler == "slurm":
        return ["squeue", "--noheader", f"--jobs={job.job}", "--format=%T|%N|%r"]
    return ["qstat", "-x", "-f", job.job]


def cancel_command(job: Followed) -> str:
    return f"{'scancel' if job.scheduler == 'slurm' else 'qdel'} {job.job}"


def follow(job: Followed, show: Callable[[str], None], *, every_s: float) -> State:
    """Show the job's states and the run's lines until it ends; returns its last state.

    Raises EnvironmentProblem when the scheduler does not answer for a long time.
    """
    shown, failures = "", 0
    lines = _new_lines(job.output)
    while True:
        try:
            state = _slurm_state(job) if job.scheduler == "slurm" else _pbs_state(job)
        except EnvironmentProblem as error:
            failures += 1
            show(f"{error.message} (try {failures} of {_QUERY_FAILURES})")
            if failures == _QUERY_FAILURES:
                raise
            time.sleep(every_s)
            continue
        failures = 0
        text = " ".join(part for part in (state.name, state.detail, tests_of(job.run_dir)) if part)
        if text != shown:
            show(f"job {job.job}: {text}")
            shown = text
        for line in next(lines):
            show(line)
        if state.has_ended:
            return state
        time.sleep(every_s)


def tests_of(run_dir: Path) -> str:
    """The run's tests and how far each is; nothing before the run has begun."""
    with contextlib.suppress(RunDirError):
        tests = RunDir.open(run_dir).read_manifest()["tests"]
        return ", ".join(f"{name} {test['status']}" for name, test in tests.items())
    return ""


def _new_lines(path: Path) -> Iterator[list[str]]:
    """What was added to a file since the last time, in whole lines."""
    place, rest = 0, ""
    while True:
        with contextlib.suppress(OSError), path.open("rb") as file:
            file.seek(place)
            added = file.read()
            place += len(added)
            rest += added.decode(errors="replace")
        *whole, rest = rest.split("\n")
        yield whole


def _slurm_state(job: Followed) -> State:
    printed = _ask(state_command(job))
    if printed.returncode == 0 and printed.stdout.strip():
        name, nodes, reason = printed.stdout.strip().splitlines()[0].split("|")
        why = "" if reason in ("None", "(null)") else f"({reason})"
        return State(name, " ".join(filter(None, (nodes, why))), name in _SLURM_ENDED)
    if printed.returncode != 0 and not any(word in _said(printed) for word in _GONE):
        raise EnvironmentProblem(f"squeue does not answer: {_said(printed)}")
    shown = _ask(["scontrol", "show", "job", job.job, "--oneliner"])
    match = re.search(r"\bJobState=(\S+)", shown.stdout)
    if shown.returncode == 0 and match:
        status = re.search(r"\bExitCode=(\S+)", shown.stdout)
        return State(match[1], f"exit {status[1]}" if status else "", match[1] in _SLURM_ENDED)
    return State("ENDED", "", has_ended=True)


def _pbs_state(job: Followed) -> State:
    printed = _ask(state_command(job))
    if printed.returncode != 0:
        if any(word in _said(printed) for word in _GONE):
            return State("ENDED", "", has_ended=True)
        raise EnvironmentProblem(f"qstat does not answer: {_said(printed)}")
    match = re.search(r"^\s*job_state = (\S)", printed.stdout, re.MULTILINE)
    name = _PBS_STATES.get(match[1], match[1]) if match else "UNKNOWN"
    hosts = re.search(r"^\s*exec_host = (\S+)", printed.stdout, re.MULTILINE)
    return State(name, hosts[1] if hosts else "", name == "ENDED")


def _ask(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    except FileNotFoundError as error:
        raise EnvironmentProblem(
            f"There is no {command[0]} on this machine.", hint="run this on a login node"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise EnvironmentProblem(f"{command[0]} does not answer for 120 s.") from error


def _said(printed: subprocess.CompletedProcess[str]) -> str:
    return " ".join((printed.stderr.strip() or printed.stdout.strip()).split())
