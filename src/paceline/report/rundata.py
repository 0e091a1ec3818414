"""A run directory as a report reads it: what is there, and in words what is not.

    read_run     manifest, verdict, changed files, and for each test its log, timeline and power
    read_scores  per-sample figures, texts and lengths, which need the dataset and the tokenizer

Nothing here fails because a part of a run is missing: a run that was killed has a report as well.
What cannot be read is a sentence in `problems`, which the page shows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paceline.errors import DataError
from paceline.mlperf.logs import DetailLog, read_detail
from paceline.report.hardware import category_of
from paceline.rundir import RunDir

__all__ = ["PowerPoint", "RunData", "TestData", "number_of", "read_run"]

_UNREAD = ("loaded_qsl_set", "loadgen_file_sha1", "loadgen_git_log_message")
_TESTS = ("performance", "accuracy", "compliance")


@dataclass(frozen=True, kw_only=True, slots=True)
class PowerPoint:
    """One reading: seconds since the test began, the device, its power in watts."""

    t_s: float
    device: str
    power_w: float
    host: str = ""
    scope: str = "card"
    source: str = ""
    clock_mhz: float | None = None
    throttles: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class TestData:
    """One LoadGen test. `timeline` has a row a second: answered, made, elapsed_s, perhaps more."""

    name: str
    facts: Mapping[str, Any]
    log: DetailLog | None
    timeline: tuple[Mapping[str, Any], ...]
    power: tuple[PowerPoint, ...]

    @property
    def devices(self) -> list[tuple[str, str]]:
        """Host and name of each device whose power was read, in the order they came."""
        return list(dict.fromkeys((point.host, point.device) for point in self.power))

    @property
    def engine(self) -> Mapping[str, Any]:
        """What the engine said of itself at the end."""
        engine = self.facts.get("engine")
        return engine if isinstance(engine, Mapping) else {}


@dataclass(frozen=True, kw_only=True, slots=True)
class RunData:
    """A run. `problems` are sentences on what could not be read, or is not as the run left it."""

    path: Path
    manifest: Mapping[str, Any]
    verdict: Mapping[str, Any] | None
    tests: Mapping[str, TestData]
    problems: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The directory's name."""
        return self.path.resolve().name

    @property
    def config(self) -> Mapping[str, Any]:
        """The resolved config."""
        config: Mapping[str, Any] = self.manifest["config"]
        return config

    @property
    def performance(self) -> TestData | None:
        """The performance test, when the run had one."""
        return self.tests.get("performance")

    @property
    def is_simulated(self) -> bool:
        """Whether an engine says that it runs no model."""
        return any(test.engine.get("simulated") for test in self.tests.values())

    @property
    def accelerator(self) -> tuple[str, int]:
        """Name and number of the cards that made the tokens; ("", 0) when there were none."""
        for test in self.tests.values():
            engine = test.engine
            if engine.get("device") in (None, "none", "cpu", "remote"):
                continue
            config = self.config["engine_config"]
            copies = engine.get("copies")
            num_copies = len(copies) if isinstance(copies, list) and copies else 1
            wide = config.get("tensor_parallel", 1)
            return str(engine.get("device_name") or engine["device"]), num_copies * int(wide)
        return "", 0

    @property
    def category(self) -> str:
        """The hardware category."""
        return category_of(*self.accelerator)


def number_of(log: DetailLog | None, key: str) -> float | None:
    """A finite number of the log; None when it has none under that key."""
    value = None if log is None else log.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def read_run(path: Path) -> RunData:
    """Read a run directory. Raises RunDirError when it is none."""
    run = RunDir.open(path)
    manifest = run.read_manifest()
    problems: list[str] = []
    if changed := run.changed_files(manifest):
        problems.append(f"Changed since the run ended: {', '.join(changed)}.")
    tests = {}
    for name in _TESTS:
        if name in manifest.get("tests", {}):
            tests[name] = _read_test(run, name, manifest["tests"][name], problems)
    return RunData(
        path=path,
        manifest=manifest,
        verdict=run.read_verdict(),
        tests=tests,
        problems=problems,
    )


def _read_test(run: RunDir, name: str, facts: Mapping[str, Any], problems: list[str]) -> TestData:
    folder = run.test_dir(name)
    log: DetailLog | None = None
    try:
        log = read_detail(folder / "mlperf_log_detail.txt", unread=_UNREAD)
    except DataError as error:
        problems.append(f"The {name} test has no detail log: {error.message}")
    if log is not None and log.malformed:
        problems.append(f"The {name} test's detail log has {len(log.malformed)} damaged lines.")
    timeline = _json_lines(folder / "timeline.jsonl", ("elapsed_s", "made"), problems)
    power = [*_power(folder / "power.jsonl", problems)]
    if name == "performance" and not power:
        power = _power(run.path / "power.jsonl", problems)
    return TestData(name=name, facts=facts, log=log, timeline=tuple(timeline), power=tuple(power))


def _power(path: Path, problems: list[str]) -> list[PowerPoint]:
    rows = _json_lines(path, ("t_s", "power_w"), problems)
    return [
        PowerPoint(
            t_s=float(row["t_s"]),
            device=str(row.get("device", "")),
            power_w=float(row["power_w"]),
            host=str(row.get("host", "")),
            scope=str(row.get("scope", "card")),
            source=str(row.get("source", "")),
            clock_mhz=row["clock_mhz"] if _is_number(row.get("clock_mhz")) else None,
            throttles=tuple(map(str, row["throttles"]))
            if isinstance(row.get("throttles"), list)
            else (),
        )
        for row in rows
    ]


def _json_lines(path: Path, numbers: tuple[str, ...], problems: list[str]) -> list[dict[str, Any]]:
    """Rows of a file of JSON lines that have these numbers; others are counted in `problems`.

    No file is no row: what a run has not is for its section to say.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    except OSError as error:
        problems.append(f"{path} cannot be read: {error.strerror}.")
        return []
    rows, bad = [], 0
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict) and all(_is_number(row.get(name)) for name in numbers):
            rows.append(row)
        elif line.strip():
            bad += 1
    if bad:
        problems.append(f"{path} has {bad} damaged lines, which are left out.")
    return rows


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
