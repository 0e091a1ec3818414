"""The results of a repository of submissions: every one that is there, checked and measured.

A repository holds trees: `closed/`, `open/`, `network/` at its root, or in directories of their own
one level down, as v5.1/ and v6.1/. Each tree is checked as `paceline check` does, so a result
carries the reasons for which it would be refused; it is shown then, and ranked nowhere. What holds
no figure at all is in `skipped`, with the reason.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paceline.errors import InputError
from paceline.mlperf.tree_rules import DIVISIONS
from paceline.report.hardware import category_of
from paceline.report.rundata import number_of
from paceline.submission.check import CheckedTree, examine_tree
from paceline.submission.check.context import Outcome, RunLog, read_run_log
from paceline.submission.check.inventory import Inventory, Unreadable, take_inventory
from paceline.submission.documents import REHEARSAL

__all__ = ["Results", "ShownResult", "Skipped", "find_trees", "read_results"]

_UNKNOWN_ROUND = "unknown"
_LATENCY = {
    "ttft_p99_ms": "result_first_token_99.00_percentile_latency_ns",
    "tpot_p99_ms": "result_time_per_output_token_99.00_percentile_ns",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownResult:
    """One result of a repository, in units of its columns. `failures` empty: it passes.

    `location` is the directory of its performance run within the repository.
    """

    division: str
    submitter: str
    platform: str
    benchmark: str
    model: str
    scenario: str
    round: str
    tokens_per_second: float
    samples_per_second: float | None
    duration_s: float | None
    latencies_ms: Mapping[str, float]
    accuracy: Mapping[str, str]
    category: str
    accelerator: str
    num_accelerators: int
    system: Mapping[str, object]
    weight_data_types: str
    has_power: bool
    failures: tuple[str, ...]
    location: str

    @property
    def per_accelerator(self) -> float | None:
        """Tokens/s of one card; None of a system without any."""
        return self.tokens_per_second / self.num_accelerators if self.num_accelerators else None

    @property
    def is_rehearsal(self) -> bool:
        """Whether its system's notes say that nothing was measured."""
        return REHEARSAL in str(self.system.get("sw_notes", ""))

    @property
    def passed(self) -> bool:
        """Whether the checker takes it, and it is a measurement."""
        return not self.failures and not self.is_rehearsal

    @property
    def word(self) -> str:
        """PASS, FAIL or REHEARSAL."""
        return "REHEARSAL" if self.is_rehearsal else "FAIL" if self.failures else "PASS"

    @property
    def page(self) -> str:
        """Address of the page of its submission, safe as a file's name and in a link."""
        tree = self.location.partition(f"{self.division}/")[0]
        name = f"{tree}{self.division}-{self.submitter}-{self.platform}"
        digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:8]
        return f"submissions/{re.sub(r'[^A-Za-z0-9._-]+', '_', name)[:80]}-{digest}.html"

    @property
    def group(self) -> tuple[str, str, str, str]:
        """What it competes in: category, division, benchmark, scenario."""
        return self.category, self.division, self.benchmark, self.scenario


@dataclass(frozen=True, kw_only=True, slots=True)
class Skipped:
    """A result without a figure, and why it has none."""

    path: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Results:
    """All results, fastest first; and what could not be one."""

    results: tuple[ShownResult, ...]
    skipped: tuple[Skipped, ...]


def find_trees(repository: Path) -> list[Path]:
    """The submission trees of a repository. Raises InputError when there is none."""
    if not repository.is_dir():
        raise InputError(f"{repository}: no such directory.", hint="give a results repository")

    def is_tree(path: Path) -> bool:
        return any(
            (path / name).is_dir() and not (path / name).is_symlink() for name in DIVISIONS.names
        )

    inside = sorted(
        path
        for path in repository.iterdir()
        if path.is_dir()
        and not path.is_symlink()
        and not path.name.startswith(".")
        and path.name not in DIVISIONS.names
        and is_tree(path)
    )
    trees = [repository, *inside] if is_tree(repository) else inside
    if not trees:
        raise InputError(
            f"{repository} holds no submission: there is no {', '.join(DIVISIONS.names)} in it.",
            hint="give the directory that holds closed/, open/ or network/",
        )
    return trees


def read_results(repository: Path) -> Results:
    """Every result of a repository. Raises InputError when it holds no tree."""
    results: list[ShownResult] = []
    skipped: list[Skipped] = []
    for tree in find_trees(repository):
        checked = examine_tree(tree)
        inventory = take_inventory(tree)
        prefix = "" if tree == repository else f"{tree.relative_to(repository).as_posix()}/"
        failures = _failures(checked)
        for outcome in checked.outcomes:
            found = _result(checked, inventory, outcome, failures[outcome.result.path], prefix)
            if isinstance(found, Skipped):
                skipped.append(found)
            else:
                results.append(found)
        if not checked.outcomes:
            skipped.append(
                Skipped(path=prefix or ".", reason="There is no Llama-2-70B result in this tree.")
            )
    results.sort(key=lambda result: (-result.tokens_per_second, result.location))
    return Results(results=tuple(results), skipped=tuple(skipped))


def _failures(checked: CheckedTree) -> dict[str, tuple[str, ...]]:
    """By result, the findings that refuse it."""
    # A tree of thousands of results has a hundred findings for each: only the failing ones are
    # gone through for every result.
    failing = [finding for finding in checked.findings if not finding.passed]
    only = dataclasses.replace(checked, findings=failing)
    return {
        outcome.result.path: tuple(
            f"{finding.path}: {finding.detail} [{finding.rule}]"
            for finding in only.failures_of(outcome.result)
        )
        for outcome in checked.outcomes
    }


def _result(
    checked: CheckedTree,
    inventory: Inventory,
    outcome: Outcome,
    failures: tuple[str, ...],
    prefix: str,
) -> ShownResult | Skipped:
    result, facts = outcome.result, outcome.facts
    place = result.place(result.layout.performance_dir)
    location = f"{prefix}{place}"
    try:
        log = read_run_log(inventory, f"{place}/mlperf_log_detail.txt")
    except Unreadable as error:
        return Skipped(path=location, reason=f"mlperf_log_detail.txt {error}.")
    tokens = facts.metric
    if tokens is None:
        return Skipped(path=location, reason=_first(failures) or "The log has no result.")
    system = checked.systems.get(result.place(result.layout.system_file), {})
    name = str(system.get("accelerator_model_name") or "")
    cards = _count(system, "number_of_nodes") * _count(system, "accelerators_per_node")
    return ShownResult(
        division=result.division,
        submitter=result.submitter,
        platform=result.system,
        benchmark=result.benchmark,
        model=result.model,
        scenario=result.kind,
        round=facts.round_name or _UNKNOWN_ROUND,
        tokens_per_second=tokens,
        samples_per_second=_rate(log),
        duration_s=_seconds(log),
        latencies_ms=_latencies(log),
        accuracy=facts.accuracy,
        category=category_of(name, cards),
        accelerator=name,
        num_accelerators=cards,
        system=system,
        weight_data_types=outcome.weight_data_types,
        has_power=outcome.has_power,
        failures=failures,
        location=location,
    )


def _latencies(log: RunLog) -> dict[str, float]:
    found = {key: number_of(log.log, name) for key, name in _LATENCY.items()}
    return {key: value * 1e-6 for key, value in found.items() if value is not None}


def _first(texts: Sequence[str]) -> str:
    return texts[0] if texts else ""


def _rate(log: RunLog) -> float | None:
    value = log.number("result_samples_per_second")
    return log.number("result_completed_samples_per_sec") if value is None else value


def _seconds(log: RunLog) -> float | None:
    """How long the test was: Offline's latest answer; of a server, its queries' schedule."""
    offline = log.text("effective_scenario") == "Offline"
    key = "result_max_latency_ns" if offline else "generated_query_duration"
    value = log.number(key)
    return None if value is None else value * 1e-9


def _count(system: Mapping[str, Any], key: str) -> int:
    try:
        return max(0, int(str(system.get(key, 0)).strip() or 0))
    except ValueError:
        return 0
