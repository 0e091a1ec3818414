"""Which runs make one result: performance, accuracy and TEST06 of the same thing.

A result is only one when its tests had the same model, precision, engine, dataset, system, round
and software. The manifests say so, and `match` compares them field by field; what differs is
named with both values. Runs that did not end, that were changed since, or that measured nothing
are refused here too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paceline.errors import RunDirError
from paceline.rundir import RunDir

__all__ = ["Result", "Test", "is_simulated", "load_tests", "match", "require_measured"]

_TESTS = ("performance", "accuracy", "compliance")
# Packages that only read logs and draw scores: another version of them made no token.
_SCORING_PACKAGES = ("pandas", "pyarrow", "rapidfuzz", "nltk", "tokenizers")
_TEXT_SHOWN = 80


@dataclass(frozen=True, kw_only=True, slots=True)
class Test:
    """One LoadGen test of a run: its name, the run's directory, manifest and verdict.

    `weights_dtype` is what the submitter says, for a run that cannot know; "" for nothing.
    """

    name: str
    run_dir: Path
    manifest: Mapping[str, Any]
    verdict: Mapping[str, Any]
    weights_dtype: str = ""

    @property
    def folder(self) -> Path:
        """The test's logs."""
        return self.run_dir / self.name

    @property
    def config(self) -> Mapping[str, Any]:
        """The run's config, plain values."""
        config: Mapping[str, Any] = self.manifest["config"]
        return config

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the test's process said of itself: times, tokens, the engine's description."""
        facts: Mapping[str, Any] = self.manifest["tests"][self.name]
        return facts


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """One benchmark in one scenario: the tests that make its result."""

    performance: Test
    accuracy: Test
    compliance: Test | None

    @property
    def benchmark(self) -> str:
        return str(self.performance.config["benchmark"])

    @property
    def scenario(self) -> str:
        return str(self.performance.config["scenario"])

    @property
    def round(self) -> str:
        return str(self.performance.config["round"])

    @property
    def tests(self) -> tuple[Test, ...]:
        """The tests that are there, in the order of the rules."""
        found = (self.performance, self.accuracy, self.compliance)
        return tuple(test for test in found if test is not None)


def load_tests(run_dirs: Sequence[Path], *, weights_dtype: str = "") -> list[Test]:
    """Every test of every run. Raises RunDirError for a run that cannot be part of a result."""
    tests = []
    for path in run_dirs:
        run = RunDir.open(path)
        manifest, verdict = run.read_manifest(), run.read_verdict()
        if manifest["status"] != "COMPLETE" or verdict is None:
            raise RunDirError(
                f"{path} is {manifest['status']}: only a whole run can be submitted.",
                hint=f"paceline run --resume {path}",
            )
        if changed := run.changed_files(manifest):
            raise RunDirError(
                f"{path} was changed since it ended: {', '.join(changed[:5])}.",
                hint="submit the run as LoadGen left it; a run again is the only repair",
            )
        tests += [
            Test(
                name=name,
                run_dir=path,
                manifest=manifest,
                verdict=verdict,
                weights_dtype=weights_dtype,
            )
            for name in _TESTS
            if name in manifest["tests"]
        ]
    return tests


def match(tests: Sequence[Test]) -> list[Result]:
    """Tests put together, a Result for each benchmark and scenario.

    Raises RunDirError when a test is there twice or missing, or when two tests differ in a field
    that one result has once.
    """
    groups: dict[tuple[str, str], dict[str, Test]] = {}
    for test in tests:
        group = groups.setdefault((test.config["benchmark"], test.config["scenario"]), {})
        if test.name in group:
            raise RunDirError(
                f"{group[test.name].run_dir} and {test.run_dir} are both {test.name} tests of "
                f"{test.config['benchmark']} {test.config['scenario']}.",
                hint="give the one to submit",
            )
        group[test.name] = test
    results = [_result(names, group) for names, group in groups.items()]
    for other in results[1:]:
        _require_same(results[0].performance, other.performance, names=("round", "host"))
    return results


def require_measured(result: Result, *, division: str) -> None:
    """Refuse what the division's rules refuse whatever the tree looks like. Raises RunDirError."""
    if division == "open":
        return
    where = f"{result.benchmark} {result.scenario}"
    for test in result.tests:
        if bool(test.config.get("network")) != (division == "network"):
            which = "no run" if division == "network" else "a run"
            raise RunDirError(
                f"{test.run_dir} is {which} of the network division, and the submission is of "
                f"{division}.",
                hint="run it again with --set run.network=true"
                if division == "network"
                else "--division network",
            )
    word = result.performance.verdict["result"]
    if word != "VALID":
        raise RunDirError(
            f"{where}: LoadGen says {word}; the {division} division takes VALID results only.",
            hint=f"paceline show {result.performance.run_dir} tells why",
        )
    if result.accuracy.verdict["accuracy"] != "PASS":
        raise RunDirError(
            f"{where}: the accuracy test is {result.accuracy.verdict['accuracy']}; the {division} "
            "division asks for every target.",
            hint=f"paceline show {result.accuracy.run_dir} names them",
        )
    for test in result.tests:
        _require_exact(test, f"{where}, {test.name}", division=division)
    if result.compliance is None or result.compliance.verdict["compliance"] != "PASS":
        state = "missing" if result.compliance is None else "FAIL"
        raise RunDirError(
            f"{where}: TEST06 is {state}; the {division} division asks for it.",
            hint="paceline run --mode compliance with the settings of the performance run",
        )


def _require_exact(test: Test, where: str, *, division: str) -> None:
    """Refuse tokens that were counted from text, and servers whose check failed."""
    engine = test.facts.get("engine", {})
    if engine.get("exact_token_ids") is False:
        raise RunDirError(
            f"{where}: the server gave text only, so its token ids and counts are not exact; the "
            f"{division} division asks for the tokens that the model made.",
            hint="run again on a server that returns token ids: docs/engines.md lists them",
        )
    for check in engine.get("preflight", ()):
        if check["passed"] is False:
            raise RunDirError(
                f"{where}: {check['server']} failed the check '{check['name']}': "
                f"{check['detail']}.",
                hint=check["hint"] or "run again with engine.endpoint.preflight=strict",
            )


def is_simulated(test: Test) -> bool:
    """Whether no model made the test's tokens, or one of random weights."""
    engine = test.facts.get("engine", {})
    random = str(test.config["model_path"] or "").startswith("random:")
    return bool(engine.get("simulated")) or test.config["engine"] == "fake" or random


def _result(names: tuple[str, str], group: Mapping[str, Test]) -> Result:
    for needed in ("performance", "accuracy"):
        if needed not in group:
            there = ", ".join(str(test.run_dir) for test in group.values())
            raise RunDirError(
                f"{names[0]} {names[1]} has no {needed} test: {there} holds none.",
                hint=f"paceline run --mode {needed} with the same settings, then give both",
            )
    for test in list(group.values())[1:]:
        _require_same(next(iter(group.values())), test)
    return Result(
        performance=group["performance"],
        accuracy=group["accuracy"],
        compliance=group.get("compliance"),
    )


def _require_same(one: Test, other: Test, *, names: Sequence[str] | None = None) -> None:
    """Raises RunDirError with the first field in which two tests differ."""
    first, second = _identity(one), _identity(other)
    for name in names or first:
        if first[name] != second[name]:
            where, a, b = _narrow(name, first[name], second[name])
            raise RunDirError(
                f"{one.run_dir} ({one.name}) and {other.run_dir} ({other.name}) differ in "
                f"{where}: {_cut(a)} and {_cut(b)}.",
                hint="a result is made by one configuration: run again what differs",
            )


def _identity(test: Test) -> dict[str, Any]:
    """What must be the same in every test of a result, by the names that people know."""
    manifest, config = test.manifest, test.config
    model = manifest.get("model") or {}
    host = manifest["host"]
    versions = {k: v for k, v in manifest["versions"].items() if k not in _SCORING_PACKAGES}
    engine = test.facts.get("engine", {})
    return {
        "round": config["round"],
        "benchmark": config["benchmark"],
        "scenario": config["scenario"],
        "num_samples": config["num_samples"],
        "seeds": manifest["seeds"],
        "model": model.get("files", {}),
        "dataset": manifest["dataset"]["sha256"],
        "engine": config["engine"],
        "engine_config": config["engine_config"],
        "device": {key: engine.get(key) for key in ("device", "device_name", "num_gpus")},
        "served": {key: engine.get(key) for key in ("model", "exact_token_ids", "streaming")}
        | {
            server["url"]: {key: server[key] for key in ("kind", "version", "dialect")}
            for server in engine.get("servers", ())
        },
        "host": {key: host[key] for key in ("hostname", "cpu", "num_cores", "memory_bytes")},
        "versions": versions,
    }


def _narrow(name: str, one: Any, other: Any) -> tuple[str, Any, Any]:
    """The first entry in which two tables differ, under its dotted name."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in [*one, *other]:
            if one.get(key) != other.get(key):
                return _narrow(f"{name}.{key}", one.get(key), other.get(key))
    return name, one, other


def _cut(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= _TEXT_SHOWN else f"{text[:_TEXT_SHOWN]}..."
