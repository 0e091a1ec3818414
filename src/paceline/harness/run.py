"""A whole run: its directory, one child process a LoadGen test, the scores, the verdict.

    run(config, ...)      a new run in a new directory
    resume(path, ...)     finish a run: accuracy samples on disk are kept, a performance test
                          that did not end starts again, as the rules want

The parent never imports LoadGen or torch. It writes the manifest, starts the child, passes its
events to an observer and, when anything goes wrong, leaves a manifest that says so.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paceline.config import RANDOM_WEIGHTS, RunConfig, Setting, refuse_long_samples
from paceline.errors import STOPPED, InterruptedRun, PacelineError, RunDirError
from paceline.harness import audit, final_rate, loadgen, process, provenance, verdict
from paceline.harness.hosting import Hosting
from paceline.harness.process import Observer
from paceline.harness.vitals import Vitals
from paceline.mlperf import dataset, rules
from paceline.rundir import RunDir, write_atomically

__all__ = ["Observer", "resume", "run"]

# What a test that was broken off goes on from.
_KEPT = {"accuracy": ("journal.jsonl",), "find_qps": ("probes.json", "probes.txt")}


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
    vitals = Vitals(config.power, observer=observer)
    with vitals, RunDir.create(out) as directory:
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
        }
        directory.write_manifest(manifest)
        manifest |= _inputs(config, dataset_sha256, observer=observer)
        return _run_tests(config, directory, manifest, vitals)


def resume(path: Path, *, observer: Observer) -> dict[str, Any]:
    """Finish the run in `path`; returns the verdict. Raises PacelineError.

    Model and dataset must still be the ones that the run began with.
    """
    directory = RunDir.open(path)
    directory.lock()
    config = RunConfig.from_json(directory.read_manifest()["config"])
    vitals = Vitals(config.power, observer=observer)
    with directory, vitals:
        manifest = directory.read_manifest()
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
        return _run_tests(config, directory, manifest, vitals)


def _run_tests(
    config: RunConfig, directory: RunDir, manifest: dict[str, Any], vitals: Vitals
) -> dict[str, Any]:
    vitals.watch(directory)
    for test in verdict.tests_of(config.mode):
        audit.remove(directory.test_dir(test))
    hosting = Hosting(directory, cwd=Path(manifest["cwd"]), observer=vitals)

    def finish(test: str) -> RunConfig:
        return _finish_test(config, directory, manifest, test, vitals=vitals, hosting=hosting)

    try:
        with hosting:
            if config.find_qps is not None:
                finish("find_qps")
                config = final_rate.settle(config, directory, manifest)
            for test in verdict.tests_of(config.mode):
                config = finish(test)
                while test == "performance" and final_rate.is_too_high(config, directory, manifest):
                    config = final_rate.step_down(config, directory, manifest, observer=vitals)
                    finish(test)
        return _conclude(config, directory, manifest, vitals)
    except PacelineError as error:
        _leave_incomplete(config, directory, manifest | {"power": vitals.facts()}, error=error)
        raise
    except KeyboardInterrupt:
        stopped = InterruptedRun(
            f"{STOPPED} Finished accuracy samples are on disk.",
            hint=f"paceline run --resume {directory.path}",
        )
        _leave_incomplete(config, directory, manifest | {"power": vitals.facts()}, error=stopped)
        raise stopped from None


def _finish_test(
    config: RunConfig,
    directory: RunDir,
    manifest: dict[str, Any],
    test: str,
    *,
    vitals: Vitals,
    hosting: Hosting,
) -> RunConfig:
    """Run a test, unless it has been run to its end before; the config as the test left it."""
    tests: dict[str, Any] = manifest["tests"]
    if tests.get(test, {}).get("status") == "COMPLETE":
        return config
    tests[test] = {"status": "RUNNING", "started": _now()}
    directory.write_manifest(manifest)
    cwd = manifest["cwd"]
    facts = _run_test(config, directory, test, cwd=cwd, vitals=vitals, hosting=hosting)
    if "probe" in facts:  # the test was sized by a measurement of its own
        manifest["probe"] = facts.pop("probe") | {"said": facts.pop("sizing")}
        sized = dataclasses.replace(config.loadgen, target_qps=facts.pop("target_qps"))
        config = dataclasses.replace(config, loadgen=sized)
        manifest["config"] = config.as_json()
    tests[test] |= {**facts, "power": vitals.end_test(test, facts)}
    tests[test] |= {"status": "COMPLETE", "ended": _now()}
    directory.write_manifest(manifest)
    return config


def _conclude(
    config: RunConfig, directory: RunDir, manifest: dict[str, Any], vitals: Vitals
) -> dict[str, Any]:
    """Judge the tests; write verdict and manifest."""
    vitals.end_tests()
    results: dict[str, dict[str, Any]] = {}
    for test in verdict.tests_of(config.mode):
        if test == "performance":
            results[test] = verdict.judge_performance(config, directory)
        elif test == "compliance":
            results[test] = verdict.judge_compliance(config, directory)
        else:
            vitals({"event": "stage", "what": "scoring", "test": test})
            results[test] = verdict.judge_accuracy(
                config,
                directory,
                progress=lambda done, total: vitals(
                    {"event": "scoring", "done": done, "total": total}
                ),
            )
    judged = verdict.judge(config, results) | {
        "power": verdict.power_of(manifest["tests"]),
        "notes": [*verdict.notes_of(manifest["tests"]), *vitals.notes()],
    }
    if config.find_qps is not None:
        judged["find_qps"] = manifest["find_qps"]
    directory.write_json("verdict.json", judged)
    manifest |= {"status": "COMPLETE", "ended": _now(), "power": vitals.facts()}
    manifest["files"] = directory.file_hashes()
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
    config: RunConfig,
    directory: RunDir,
    test: str,
    *,
    cwd: str,
    vitals: Vitals,
    hosting: Hosting,
) -> dict[str, Any]:
    """Run one LoadGen test in a child process; returns its facts for the manifest."""
    folder = directory.make_test_dir(test, keep=_KEPT.get(test, ()))
    write_atomically(folder / "user.conf", loadgen.user_conf(config, test))
    vitals.begin_test(test, folder)
    try:
        hosting.ready(config, test)
        return hosting.ended(process.run_child(directory, test, cwd=cwd, observer=vitals))
    finally:
        audit.remove(folder)


def _check_dataset(config: RunConfig) -> str:
    """Refuse a dataset that the run could not use, before anything is written or loaded.

    Returns the file's SHA-256, which reading it gave.
    """
    loaded = dataset.load_dataset(config.data_path, trust_pickle=config.trust_pickle)
    rows = rules.sample_rows(loaded.num_samples, config.num_samples)
    refuse_long_samples(config, loaded.prompt_lens[rows].tolist())
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
