"""From run directories to a checked tarball: `paceline submit`.

    OUT/
      tree/                          what the checker reads: <division>/<submitter>/...
      mlperf_submission.tar.gz       the tree, the same bytes for the same runs; and its .sha256
      mlperf_submission.run          the commands that repeat it
      mlperf_submission.md           the platform and what was measured
      cert-N-mlperf.*                the four files of a contest's attempt

Order of work: names, then runs, then the system, then every file in memory; only then is
anything written. The tarball is made when the check finds nothing wrong. A rehearsal (a simulated
engine, or a run too short to count) is called one in every document, and its files are named
mlperf_rehearsal.
"""

from __future__ import annotations

import datetime
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paceline.errors import InputError, RunDirError
from paceline.mlperf import rules
from paceline.rundir import make_folder, write_atomically
from paceline.submission import documents, system
from paceline.submission.certificates import certificates
from paceline.submission.matching import (
    Result,
    is_simulated,
    load_tests,
    match,
    require_measured,
)
from paceline.submission.measurements import calibration_text, gpus_used
from paceline.submission.package import write_tarball
from paceline.submission.recipe import recipe_name, recipe_text
from paceline.submission.source_code import source_files
from paceline.submission.system_parse import size_text
from paceline.submission.tree import (
    Submission,
    check_division,
    check_name,
    tree_files,
    write_files,
)

__all__ = ["Order", "Prepared", "package", "prepare", "write_tree"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """What was asked for. `round` None: that of the runs; `weights_dtype` "": as the runs say."""

    submitter: str
    system_id: str
    division: str
    round: str | None = None
    calibration: Path | None = None
    weights_dtype: str = ""
    attempt: int = 1
    also_99: bool = False
    is_rehearsal: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A submission in memory: nothing is written yet. `mtime_s` is the end of its last run."""

    submission: Submission
    files: Mapping[str, bytes]
    attempt: int
    mtime_s: int

    @property
    def archive(self) -> str:
        """The tarball's name, which tells a rehearsal from a submission."""
        return f"mlperf_{'rehearsal' if self.submission.is_rehearsal else 'submission'}.tar.gz"


def prepare(run_dirs: Sequence[Path], order: Order, description: system.Description) -> Prepared:
    """Everything that will be written, or the reason why nothing is.

    Raises InputError, or RunDirError when the runs do not make a submission.
    """
    check_name(order.submitter, "The submitter")
    check_name(order.system_id, "The system")
    check_division(order.division)
    results = match(load_tests(run_dirs, weights_dtype=order.weights_dtype))
    round_name = _round(results, order.round)
    for result in results:
        _require_submittable(result, order)
    official = _system(results, order, description)
    submission = Submission(
        round=rules.round_rules(round_name),
        division=order.division,
        submitter=order.submitter,
        system_id=order.system_id,
        system=official,
        results=tuple(results),
        also_99=_also_99(results, order, round_name),
        is_rehearsal=order.is_rehearsal,
    )
    ended = [test.facts["ended"] for result in results for test in result.tests]
    last = max(datetime.datetime.fromisoformat(moment) for moment in ended)
    return Prepared(
        submission=submission,
        files=_files(submission, order),
        attempt=order.attempt,
        mtime_s=int(last.timestamp()),
    )


def write_tree(prepared: Prepared, out: Path) -> Path:
    """Write OUT/tree; returns it. Raises RunDirError when OUT is taken."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunDirError(f"{out} exists and is not empty.", hint="another --out")
    make_folder(out)
    tree, partial = out / "tree", out / "tree.partial"
    try:
        write_files(prepared.files, partial)
        partial.rename(tree)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return tree


def package(prepared: Prepared, out: Path) -> dict[str, Any]:
    """Write the tarball and what goes with it beside the tree; returns what was made."""
    submission = prepared.submission
    stem = prepared.archive.removesuffix(".tar.gz")
    sha256 = write_tarball(out / prepared.archive, prepared.files, mtime_s=prepared.mtime_s)
    script = documents.run_script(submission, prepared.archive)
    texts = {
        f"{stem}.run": script,
        f"{stem}.md": documents.highlights(submission, sha256=sha256),
        **certificates(submission, attempt=prepared.attempt, script=script),
    }
    for name, text in texts.items():
        write_atomically(out / name, text)
        if name.endswith(".run"):
            (out / name).chmod(0o755)
    return {
        "tarball": str(out / prepared.archive),
        "sha256": sha256,
        "bytes": (out / prepared.archive).stat().st_size,
        "files": [prepared.archive, f"{prepared.archive}.sha256", *texts],
    }


def _round(results: Sequence[Result], asked: str | None) -> str:
    made = results[0].round
    if asked is not None and rules.round_rules(asked).name != made:
        raise RunDirError(
            f"The runs are of round {made}, not {asked}: a log has its round's seeds.",
            hint=f"--round {made}, or run again with --round {asked}",
        )
    for result in results:
        benchmark = rules.benchmark(result.benchmark)
        if benchmark.is_mlperf:
            rules.benchmark_in_round(result.benchmark, made)
    return made


def _require_submittable(result: Result, order: Order) -> None:
    shortfalls = [
        f"{test.run_dir}: {shortfall}"
        for test in result.tests
        for shortfall in test.config["shortfalls"]
    ]
    simulated = [test for test in result.tests if is_simulated(test)]
    if (shortfalls or simulated) and not order.is_rehearsal:
        listed = "; ".join(dict.fromkeys(shortfalls)) or "the engine is simulated"
        raise RunDirError(
            f"{result.benchmark} {result.scenario} cannot be submitted: {listed}.",
            hint="--rehearsal makes the same files, marked as a rehearsal everywhere",
        )
    require_measured(result, division=order.division)


def _system(
    results: Sequence[Result], order: Order, description: system.Description
) -> dict[str, str | int]:
    """systems/<system>.json. Raises InputError when it is not the system of the runs."""
    test = results[0].performance
    host = test.manifest["host"]
    if not _describes(description, host):
        raise InputError(
            f"The runs were made on {host['hostname']}; the system description is of "
            f"{', '.join(description.hosts)}.",
            hint=f"on {host['hostname']}: paceline system --out FILE, then --system FILE",
        )
    if order.division == "network" and description.value("is_network") != "True":
        raise InputError(
            "The network division asks for the network fields of a system.",
            hint="paceline system --network --out FILE",
        )
    official = system.official(description, division=order.division, submitter=order.submitter)
    if gpus_used(test) and not int(official["accelerators_per_node"]):
        raise InputError(
            f"{test.run_dir} ran on {test.facts['engine']['device']}, but the system description "
            "has 0 accelerators.",
            hint="paceline system on the host that ran it, or --set accelerators_per_node=N",
        )
    if order.is_rehearsal:
        official["sw_notes"] = f"{documents.REHEARSAL} {official['sw_notes']}".strip()
        official["hw_notes"] = f"{documents.REHEARSAL} {official['hw_notes']}".strip()
    return official


def _describes(description: system.Description, host: Mapping[str, Any]) -> bool:
    """Whether the description is of the runs' host: by its name, or, as containers change theirs,
    by its processor and memory. One that names no host was written by hand and is believed."""
    if not description.hosts or host["hostname"] in description.hosts:
        return True
    memory = size_text(host["memory_bytes"], binary=True)
    return (host["cpu"], memory) == (
        description.value("host_processor_model_name"),
        description.value("host_memory_capacity"),
    )


def _also_99(results: Sequence[Result], order: Order, round_name: str) -> bool:
    for result in results if order.also_99 else ():
        rules.benchmark_in_round(result.benchmark.removesuffix(".9"), round_name)
    return order.also_99


def _files(submission: Submission, order: Order) -> dict[str, bytes]:
    test = submission.results[0].performance
    source, code = source_files(test.manifest["code"])
    code += _other_code(submission.results)
    texts = {
        f"{result.benchmark}/{result.scenario}": documents.result_readme(
            submission, result, code=code
        )
        for result in submission.results
    }
    texts["documentation/README.md"] = documents.overview(submission)
    texts["documentation/bandwidth.md"] = documents.bandwidth_text(submission)
    texts["documentation/calibration.md"] = calibration_text(
        test, order.calibration, division=order.division
    )
    source = dict(source)
    source["README.md"] = documents.source_readme(submission, code=code).encode()
    for result in submission.results:
        name = f"recipes/{recipe_name(result)}"
        source[name] = recipe_text(result.performance).encode()
        source[f"{name.removesuffix('.toml')}.manifest.json"] = _manifest(result)
    return tree_files(submission, texts, source)


def _other_code(results: Sequence[Result]) -> str:
    """A sentence on tests that other code ran than the first, which the tree holds; or nothing."""
    tests = [test for result in results for test in result.tests]
    first = tests[0].manifest["code"]
    others = [
        f"the {test.config['scenario']} {test.name} test by commit "
        f"{test.manifest['code'].get('commit')}"
        + (", changed since" if test.manifest["code"].get("modified") else "")
        for test in tests
        if test.manifest["code"] != first
    ]
    return f" Other code ran {'; '.join(others)}." if others else ""


def _manifest(result: Result) -> bytes:
    """What the manifest says of the result, without the places of this machine."""
    manifest = result.performance.manifest
    kept = {name: manifest[name] for name in ("seeds", "versions", "code", "origins")}
    kept["dataset_sha256"] = manifest["dataset"]["sha256"]
    kept["model_files"] = (manifest.get("model") or {}).get("files", {})
    return (json.dumps(kept, indent=2, sort_keys=True) + "\n").encode()
