"""A submission tree as files: what lies where, and with which bytes.

`tree_files` makes every file in memory (a few megabytes: the one large log is truncated), so that
nothing is on disk before all of it is known to be right, and the same runs give the same bytes.
Where files lie is in `mlperf.tree_rules`; their texts are in `documents` and `measurements`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from paceline.errors import InputError, RunDirError
from paceline.mlperf import rules
from paceline.mlperf.tree_rules import (
    ACCURACY_LOG_BYTES_MAX,
    DIVISIONS,
    LAYOUTS,
    PERFORMANCE_FILES,
    TRUNCATED_BYTES,
    TreeLayout,
)
from paceline.rundir import write_atomically
from paceline.submission.matching import Result, Test
from paceline.submission.measurements import measurements

__all__ = ["Submission", "check_division", "check_name", "tree_files", "truncated", "write_files"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,79}")
_CONTAINER_ID = re.compile(r"[0-9a-f]{12}|[0-9a-f]{64}")
_ACCURACY_LOG = "mlperf_log_accuracy.json"
_CUT = b"\n\n...\n\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """All that a tree is made of.

    `benchmarks` are the names under which each result is written: its own, and for one of 99.9 %
    that is to count for 99 % as well, both. `system` is systems/<system_id>.json.
    """

    round: rules.Round
    division: str
    submitter: str
    system_id: str
    system: Mapping[str, str | int]
    results: tuple[Result, ...]
    also_99: bool
    is_rehearsal: bool

    @property
    def layout(self) -> TreeLayout:
        """Where this round wants the files."""
        return LAYOUTS[self.round.layout]

    def benchmarks(self, result: Result) -> tuple[str, ...]:
        """The names under which a result is submitted."""
        lower = result.benchmark.removesuffix(".9")
        if self.also_99 and lower != result.benchmark:
            return result.benchmark, lower
        return (result.benchmark,)


def check_name(name: str, what: str) -> str:
    """The name, when a folder of a submission may have it. Raises InputError."""
    if not _NAME.fullmatch(name):
        raise InputError(
            f"{what} {name!r} cannot be the name of a folder in a submission.",
            hint="letters, digits, '.', '_', '+' and '-', the first a letter or digit: "
            f"{re.sub(r'[^A-Za-z0-9._+-]+', '_', name).strip('._+-')[:80] or 'Team_Name'}",
        )
    if _CONTAINER_ID.fullmatch(name):
        raise InputError(
            f"{what} {name!r} looks like the id of a container, which says nothing to a reader.",
            hint="a name for the hardware, as 8xH200_2xXeon8558",
        )
    return name


def check_division(name: str) -> str:
    """The division's name. Raises InputError."""
    if name not in DIVISIONS.names:
        raise InputError(
            f"There is no division {name!r}.", hint=f"one of {', '.join(sorted(DIVISIONS.names))}"
        )
    return name


def tree_files(
    submission: Submission, documents: Mapping[str, str], source: Mapping[str, bytes]
) -> dict[str, bytes]:
    """Path within the tree -> content.

    `documents` has the texts below the submitter's folder, and the README of each result under
    its benchmark and scenario ("llama2-70b-99.9/Offline"). `source` is the code. Raises
    RunDirError when a run's log is not what its manifest says.
    """
    top = f"{submission.division}/{submission.submitter}"
    layout = submission.layout
    files: dict[str, bytes] = {}
    place = layout.place(layout.system_file, system=submission.system_id)
    files[f"{top}/{place}"] = _json(submission.system)
    for result in submission.results:
        readme = documents[f"{result.benchmark}/{result.scenario}"]
        for benchmark in submission.benchmarks(result):
            found = _result_files(submission, result, benchmark, readme=readme)
            files |= {f"{top}/{name}": content for name, content in found.items()}
    for name, text in documents.items():
        if name.startswith("documentation/"):
            files[f"{top}/{name}"] = text.encode()
    for name, content in source.items():
        files[f"{top}/{layout.source_dir}/{name}"] = content
    return dict(sorted(files.items()))


def truncated(log: bytes) -> bytes:
    """An accuracy log as it is submitted: its two ends, unless it is small already.

    Source: truncate_accuracy_log.py; see `tree_rules.TRUNCATED_BYTES`.
    """
    if len(log) < ACCURACY_LOG_BYTES_MAX.value:
        return log
    return log[: TRUNCATED_BYTES.value] + _CUT + log[-TRUNCATED_BYTES.value :]


def write_files(files: Mapping[str, bytes], root: Path) -> None:
    """Write a tree below `root`. Raises EnvironmentProblem when the disk will not take it."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)


def _result_files(
    submission: Submission, result: Result, benchmark: str, *, readme: str
) -> dict[str, bytes]:
    layout = submission.layout

    def place(template: str) -> str:
        return layout.place(
            template, system=submission.system_id, benchmark=benchmark, scenario=result.scenario
        )

    files: dict[str, bytes] = {}
    performance, accuracy = result.performance.folder, result.accuracy.folder
    for name in (*PERFORMANCE_FILES.required, *PERFORMANCE_FILES.optional):
        files[f"{place(layout.performance_dir)}/{name}"] = _read(performance / name)
    for name in PERFORMANCE_FILES.required:
        files[f"{place(layout.accuracy_dir)}/{name}"] = _read(accuracy / name)
    log = _read(accuracy / _ACCURACY_LOG)
    files[f"{place(layout.accuracy_dir)}/{_ACCURACY_LOG}"] = truncated(log)
    files[f"{place(layout.accuracy_dir)}/accuracy.txt"] = _accuracy_text(result.accuracy, log)
    measured = place(layout.measurements_dir)
    files[f"{measured}/user.conf"] = _read(performance / "user.conf")
    files[f"{measured}/README.md"] = readme.encode()
    files[f"{measured}/{place(layout.measurements_file)}"] = _json(measurements(result))
    if result.compliance is not None:
        audited, folder = place(layout.compliance_dir), result.compliance.folder
        files[f"{audited}/verify_accuracy.txt"] = _read(folder / "verify_accuracy.txt")
        files[f"{audited}/accuracy/{_ACCURACY_LOG}"] = _read(folder / _ACCURACY_LOG)
    return files


def _accuracy_text(test: Test, log: bytes) -> bytes:
    """accuracy.txt with the hash of the whole log, which is all that is left of it."""
    text = _read(test.folder / "accuracy.txt").decode()
    line = f"hash={hashlib.sha256(log).hexdigest()}"
    found = re.findall(r"^hash=\w+$", text, re.MULTILINE)
    if found not in ([], [line]):
        raise RunDirError(
            f"{test.folder / 'accuracy.txt'} has the hash of another log than lies beside it.",
            hint="submit the run as it ended",
        )
    return (text if found else f"{text}\n{line}\n").encode()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RunDirError(
            f"{path} cannot be read: {error.strerror}.", hint="the run is not whole; run it again"
        ) from error


def _json(value: Mapping[str, str | int]) -> bytes:
    return (json.dumps(value, indent=4, sort_keys=True) + "\n").encode()
