"""A whole run: its directory, one child process a LoadGen test, the scores, the verdict.

    run(config, ...)      a new run in a new directory
    resume(path, ...)     finish a run: accuracy samples on disk are kept, a performance test
                          that did not end starts again, as the rules want

The parent never imports LoadGen or torch. It writes the manifest, starts the child, passes its
events to an observer and, when anything goes wrong, leaves a manifest that says so.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from paceline import errors
from paceline.config import RANDOM_WEIGHTS, RunConfig, Setting
from paceline.errors import EngineError, InterruptedRun, PacelineError, RunDirError
from paceline.harness import audit, loadgen, preflight, provenance, verdict
from paceline.mlperf import dataset, rules
from paceline.rundir import RunDir, disk_problem, write_atomically

__all__ = ["Observer", "resume", "run"]

Observer = Callable[[Mapping[str, Any]], None]

_LOG_LINES_SHOWN = 20
# OpenMP threads that wait by spinning make a CPU run twenty times slower as soon as anything
# else wants a core; waiting quietly costs nothing that could be measured.
_QUIET_THREADS = {"OMP_WAIT_POLICY": "PASSIVE"}
_STOP_WITHIN_S = 15.0


def run(
    config: RunConfig,
    out: Path,
    *,
    settings: Mapping[str, Setting],
    recipe: Path | None,
    observer: Observer,
) -> dict[str, Any]:
    """Run everything that `config.mode` asks for; returns the verdict.

    The observer gets the child's events (`harness.child`), with "test" added, and events of the
    parent's own: {"event": "stage", "what": text}. Raises PacelineError; the manifest in `out`
    then says what happened.
    """
    loadgen.wheel().require(config.round)
    dataset_sha256 = _check_dataset(config)
    RunDir.require_free(out)
    config, measured = preflight.with_measured_qps(config, settings, observer=observer)
    with RunDir.create(out) as directory:
        if recipe is not None:
            write_atomically(directory.path / "recipe.toml", recipe.read_text())
        manifest = {
            "status": "RUNNING",
            "created": _now(),
            "cwd": str(Path.cwd()),
            "config": config.as_json(),
            "origins": {name: setting.origin for name, setting in settings.items()},
            "seeds": _seeds(config),
            "versions": provenance.package_versions(),
            "code": provenance.code_facts(),
            "host": provenance.host_facts(),
            "tests": {},
            **measured,
        }
        directory.write_manifest(manifest)
        manifest |= _inputs(config, dataset_sha256, observer=observer)
        return _run_tests(config, directory, manifest, observer=observer)


def resume(path: Path, *, observer: Observer) -> dict[str, Any]:
    """Finish the run in `path`; returns the verdict. Raises PacelineError.

    Model and dataset must still be the ones that the run began with.
    """
    directory = RunDir.open(path)
    directory.lock()
    with directory:
        manifest = directory.read_manifest()
        config = RunConfig.from_json(manifest["config"])
        loadgen.wheel().require(config.round)
        inputs = _inputs(config, _check_dataset(config), observer=observer)
        for name, value in inputs.items():
            if manifest.get(name, value) != value:
                raise RunDirError(
                    f"The {name} of {path} has changed since the run began.",
                    hint="put the old one back, or start a new run",
                )
        manifest |= inputs | {
            "status": "RUNNING",
            "resumed": [*manifest.get("resumed", []), _now()],
        }
        return _run_tests(config, directory, manifest, observer=observer)


def _run_tests(
    config: RunConfig, directory: RunDir, manifest: dict[str, Any], *, observer: Observer
) -> dict[str, Any]:
    tests: dict[str, Any] = manifest["tests"]
    for test in verdict.tests_of(config.mode):
        audit.remove(directory.test_dir(test))
    try:
        for test in verdict.tests_of(config.mode):
            if tests.get(test, {}).get("status") != "COMPLETE":
                tests[test] = {"status": "RUNNING", "started": _now()}
                directory.write_manifest(manifest)
                tests[test] |= _run_test(
                    config, directory, test, cwd=manifest["cwd"], observer=observer
                )
                tests[test] |= {"status": "COMPLETE", "ended": _now()}
                directory.write_manifest(manifest)
        return _conclude(config, directory, manifest, observer=observer)
    except PacelineError as error:
        _leave_incomplete(config, directory, manifest, error=error)
        raise
    except KeyboardInterrupt:
        stopped = InterruptedRun(
            "Stopped by Ctrl-C. Finished accuracy samples are on disk.",
            hint=f"paceline run --resume {directory.path}",
        )
        _leave_incomplete(config, directory, manifest, error=stopped)
        raise stopped from None


def _conclude(
    config: RunConfig, directory: RunDir, manifest: dict[str, Any], *, observer: Observer
) -> dict[str, Any]:
    """Judge the tests; write verdict and manifest."""
    results: dict[str, dict[str, Any]] = {}
    for test in verdict.tests_of(config.mode):
        if test == "performance":
            results[test] = verdict.judge_performance(config, directory)
        elif test == "compliance":
            results[test] = verdict.judge_compliance(config, directory)
        else:
            observer({"event": "stage", "what": "scoring", "test": test})
            results[test] = verdict.judge_accuracy(
                config,
                directory,
                progress=lambda done, total: observer(
                    {"event": "scoring", "done": done, "total": total}
                ),
            )
    judged = verdict.judge(config, results) | {"notes": verdict.notes_of(manifest["tests"])}
    directory.write_json("verdict.json", judged)
    manifest |= {"status": "COMPLETE", "ended": _now(), "files": directory.file_hashes()}
    manifest.pop("error", None)
    directory.write_manifest(manifest)
    return judged


def _leave_incomplete(
    config: RunConfig,
    directory: RunDir,
    manifest: dict[str, Any],
    *,
    error: PacelineError,
) -> None:
    """Record what ended the run, as far as the disk still takes it."""
    manifest |= {
        "status": "INTERRUPTED" if isinstance(error, InterruptedRun) else "INCOMPLETE",
        "ended": _now(),
        "error": {"kind": type(error).__name__, "message": error.message},
    }
    with contextlib.suppress(PacelineError):
        for test in manifest["tests"].values():
            if test["status"] != "COMPLETE":
                test["status"] = manifest["status"]
        directory.write_json("verdict.json", verdict.judge(config, {}))
        directory.write_manifest(manifest)


def _run_test(
    config: RunConfig, directory: RunDir, test: str, *, cwd: str, observer: Observer
) -> dict[str, Any]:
    """Run one LoadGen test in a child process; returns its facts for the manifest.

    The child works in `cwd`, the folder of the run's first start, so that paths in a recipe
    mean the same when the run is resumed from elsewhere.
    """
    keep = ("journal.jsonl",) if test == "accuracy" else ()
    folder = directory.make_test_dir(test, keep=keep)
    write_atomically(folder / "user.conf", loadgen.user_conf(config, test))
    child, events_read, control_write = _start_child(directory, test, cwd)
    try:
        with os.fdopen(events_read, encoding="utf-8") as events:
            facts = _follow(events, test, observer=observer)
    finally:
        os.close(control_write)
        _await_exit(child)
        audit.remove(folder)
    if facts is None:
        log_path = directory.log_path(test)
        raise EngineError(
            f"The {test} test's process died (exit {child.returncode}).\n{_tail(log_path)}",
            hint=f"see {log_path}; paceline run --resume {directory.path}",
        )
    return facts


def _start_child(
    directory: RunDir, test: str, cwd: str
) -> tuple[subprocess.Popen[bytes], int, int]:
    """The child, the descriptor its events come from, and the one whose closing ends it."""
    events_read, events_write = os.pipe()
    control_read, control_write = os.pipe()
    command = [sys.executable, "-m", "paceline.harness.child", str(directory.path.resolve()), test]
    command += [str(events_write), str(control_read)]
    log_path = directory.log_path(test)
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
    return child, events_read, control_write


def _follow(events: Any, test: str, *, observer: Observer) -> dict[str, Any] | None:
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


def _await_exit(child: subprocess.Popen[bytes]) -> None:
    """Wait for a child that was told to stop; end it when it does not."""
    try:
        child.wait(_STOP_WITHIN_S)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        child.kill()
        child.wait()


def _tail(path: Path) -> str:
    with contextlib.suppress(OSError):
        lines = path.read_text(errors="replace").splitlines()[-_LOG_LINES_SHOWN:]
        return "\n".join(f"    {line}" for line in lines)
    return ""


def _check_dataset(config: RunConfig) -> str:
    """Refuse a dataset that the run could not use, before anything is written or loaded.

    Returns the file's SHA-256, which reading it gave.
    """
    loaded = dataset.load_dataset(config.data_path, trust_pickle=config.trust_pickle)
    rules.sample_rows(loaded.num_samples, config.num_samples)
    return loaded.sha256


def _inputs(config: RunConfig, dataset_sha256: str, *, observer: Observer) -> dict[str, Any]:
    """Hashes of what the run reads."""

    def report(what: str) -> None:
        observer({"event": "stage", "what": what})

    model = config.model_path
    return {
        "dataset": {"path": str(config.data_path), "sha256": dataset_sha256},
        "model": None
        if model is None
        else {"path": str(model), "files": {}}
        if str(model).startswith(RANDOM_WEIGHTS)
        else {"path": str(model), "files": provenance.checkpoint_hashes(model, report)},
    }


def _seeds(config: RunConfig) -> dict[str, int]:
    seeds = rules.round_rules(config.round).seeds
    return {"qsl": seeds.qsl, "sample_index": seeds.sample_index, "schedule": seeds.schedule}


def _now() -> str:
    return datetime.datetime.fromtimestamp(time.time(), datetime.UTC).isoformat(timespec="seconds")
