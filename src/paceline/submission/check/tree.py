"""The whole check of a tree: its names, its shape, then every result, on all cores.

Results are independent of each other; a tree of many is checked in several processes. What
needs all of them (one round, its layout) is checked at the end.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from paceline.errors import InputError
from paceline.mlperf.rules import ROUNDS, benchmark, round_rules
from paceline.mlperf.tree_rules import DIVISIONS, LAYOUTS, REPOSITORY_DIRS
from paceline.submission.check.accuracy import check_accuracy
from paceline.submission.check.catalogue import RULES
from paceline.submission.check.context import Facts, Outcome, ResultDir
from paceline.submission.check.description import (
    check_measurements,
    check_network_sut,
    check_system,
)
from paceline.submission.check.findings import Ledger, TreeFinding, Verdicts, shown
from paceline.submission.check.hygiene import check_names, check_secrets
from paceline.submission.check.inventory import Inventory, take_inventory
from paceline.submission.check.performance import check_performance
from paceline.submission.check.structure import check_files_of, find_results, submitters
from paceline.submission.check.test06 import check_test06

__all__ = ["CheckedTree", "check_result", "check_tree", "examine_tree"]

NEWEST = list(ROUNDS)[-1]
# Below this many results a second process costs more than it saves.
_RESULTS_ALONE = 24
_CHUNK = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckedTree:
    """A checked tree: findings in the order of paths, results, and their descriptions."""

    tree: Path
    findings: list[TreeFinding]
    outcomes: list[Outcome]
    systems: dict[str, dict[str, object]]

    @property
    def passed(self) -> bool:
        """Whether nothing fails."""
        return all(finding.passed for finding in self.findings)

    def failures_of(self, result: ResultDir) -> list[TreeFinding]:
        """The failing findings that refuse this result: its own, and those of what it stands on."""
        roots = (
            result.path,
            result.place(result.layout.measurements_dir),
            result.place(result.layout.compliance_dir),
            result.place(result.layout.system_file),
        )
        above = (f"{result.base}/results/{result.system}/{result.model}", result.base)
        source = f"{result.base}/{result.layout.source_dir}"
        return [
            finding
            for finding in self.findings
            if not finding.passed
            and (
                finding.path in (*above, source)
                or any(
                    finding.path == root or finding.path.startswith(f"{root}/") for root in roots
                )
            )
        ]


def check_tree(
    tree: Path, *, round_name: str | None = None, submitter: str | None = None
) -> list[TreeFinding]:
    """Check a submission tree. Every rule that was checked is in the list, passed or not.

    `round_name` None: each result is of the round whose seeds its log has. `submitter` None: all.

    Raises
        InputError  `tree` is no directory, or there is no such round.
    """
    return examine_tree(tree, round_name=round_name, submitter=submitter).findings


def examine_tree(
    tree: Path,
    *,
    round_name: str | None = None,
    submitter: str | None = None,
    processes: int | None = None,
) -> CheckedTree:
    """As `check_tree`, with what was learnt of each result."""
    if round_name is not None:
        round_rules(round_name)
    if not tree.is_dir():
        raise InputError(
            f"{tree}: no such directory.",
            hint="give the directory that holds closed/, open/ or network/",
        )
    inventory = take_inventory(tree, skip=REPOSITORY_DIRS.names)
    ledger = Ledger(RULES)
    for name in REPOSITORY_DIRS.names:
        if (tree / name).is_dir():
            ledger.note("repository-dirs", name, "This directory is the repository's own.")
    chosen = submitters(inventory, submitter, ledger=ledger)
    kept = _kept(inventory, chosen, all_of_it=submitter is None)
    check_names(inventory, kept, ledger=ledger)
    results: list[ResultDir] = []
    systems: dict[str, dict[str, object]] = {}
    for division, name in chosen:
        found = find_results(inventory, division, name, ledger=ledger)
        results += found
        ours = {result.system for result in found}
        for system in inventory.dirs(f"{division}/{name}/results"):
            path = f"{division}/{name}/systems/{system}.json"
            systems[path] = check_system(
                inventory,
                path,
                division=division,
                submitter=name,
                has_results=system in ours,
                ledger=ledger,
            )
    if not results and (chosen or submitter is None):
        ledger.expect(False, "has-results", "", _nothing(inventory, chosen))
    outcomes = _check_all(inventory, results, kept, systems, round_name, processes, ledger)
    _rounds(outcomes, round_name, ledger)
    findings = sorted(ledger.findings(), key=lambda finding: finding.path)
    return CheckedTree(tree=tree, findings=findings, outcomes=outcomes, systems=systems)


def _kept(inventory: Inventory, chosen: list[tuple[str, str]], *, all_of_it: bool) -> list[str]:
    if all_of_it:
        return list(inventory.entries)
    roots = tuple(f"{division}/{name}" for division, name in chosen)
    beside = tuple(f"{root}/" for root in roots)
    return [path for path in inventory.entries if path in roots or path.startswith(beside)]


def _nothing(inventory: Inventory, chosen: list[tuple[str, str]]) -> str:
    if chosen:
        return "There is no Llama-2-70B result here: nothing was checked."
    inside = [name for name in DIVISIONS.names if inventory.is_dir(name)]
    if inventory.is_dir("results") or inventory.is_dir("systems"):
        return "This is a submitter's directory, not a tree: nothing can be checked."
    if inside:
        return f"There is no submitter in {', '.join(inside)}/: nothing is submitted."
    return f"There is no {'/, '.join(DIVISIONS.names)}/ here: nothing is submitted."


_Task = tuple[ResultDir | None, tuple[str, ...]]
_Done = tuple[list[Verdicts], Outcome | None]


def _check_all(
    inventory: Inventory,
    results: list[ResultDir],
    paths: list[str],
    systems: dict[str, dict[str, object]],
    round_name: str | None,
    processes: int | None,
    ledger: Ledger,
) -> list[Outcome]:
    files = [path for path in paths if inventory.is_file(path)]
    tasks: list[_Task] = [(result, ()) for result in results]
    tasks += [(None, tuple(files[i : i + 200])) for i in range(0, len(files), 200)]
    work = partial(_work, inventory, systems, round_name)
    count = processes or min(os.cpu_count() or 1, 8)
    many = len(results) > _RESULTS_ALONE and count > 1
    outcomes = []
    for verdicts, outcome in _run(work, tasks, count) if many else map(work, tasks):
        ledger.extend(verdicts)
        if outcome is not None:
            outcomes.append(outcome)
    return outcomes


def _run(work: Callable[[_Task], _Done], tasks: list[_Task], count: int) -> Iterator[_Done]:
    """As map(), in processes, which inherit `work` and the inventory that it holds."""
    context = multiprocessing.get_context("spawn" if os.name == "nt" else "fork")
    with ProcessPoolExecutor(
        count, mp_context=context, initializer=_inherit, initargs=(work,)
    ) as pool:
        yield from pool.map(_inherited, tasks, chunksize=_CHUNK)


_WORK: list[Callable[[_Task], _Done]] = []


def _inherit(work: Callable[[_Task], _Done]) -> None:
    _WORK[:] = [work]


def _inherited(task: _Task) -> _Done:
    return _WORK[0](task)


def _work(
    inventory: Inventory,
    systems: dict[str, dict[str, object]],
    round_name: str | None,
    task: _Task,
) -> _Done:
    result, paths = task
    ledger = Ledger(RULES)
    if result is None:
        check_secrets(inventory, paths, ledger=ledger)
        return ledger.verdicts, None
    system = systems.get(result.place(result.layout.system_file), {})
    outcome = check_result(inventory, result, system, round_name=round_name, ledger=ledger)
    return ledger.verdicts, outcome


def check_result(
    inventory: Inventory,
    result: ResultDir,
    system: dict[str, object],
    *,
    round_name: str | None,
    ledger: Ledger,
) -> Outcome:
    """Check one result: its files, its three runs, and its measurements."""
    rules = benchmark(result.benchmark)
    power = check_files_of(inventory, result, ledger=ledger)
    log, facts = check_performance(inventory, result, rules, round_name=round_name, ledger=ledger)
    check_accuracy(inventory, result, rules, performance=log, facts=facts, ledger=ledger)
    check_test06(inventory, result, rules, ledger=ledger)
    weights = check_measurements(inventory, result, ledger=ledger)
    if log is not None:
        check_network_sut(log, system, result, ledger=ledger)
    name = facts.round_name or NEWEST
    allowed = ROUNDS[name].benchmarks
    ledger.expect(
        result.benchmark in allowed,
        "benchmark-in-round",
        result.path,
        f"Round {name} has no {result.benchmark}: its checker lists only {', '.join(allowed)}.",
    )
    kept = Facts(round_name=facts.round_name, metric=facts.metric, accuracy=facts.accuracy)
    return Outcome(
        result=result,
        passed=not ledger.failed(),
        facts=kept,
        weight_data_types=weights,
        has_power=power,
    )


def _rounds(outcomes: list[Outcome], asked: str | None, ledger: Ledger) -> None:
    """One round for each submitter, and its layout."""
    by_base: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_base.setdefault(outcome.result.base, []).append(outcome)
    for base, group in by_base.items():
        names = sorted({outcome.facts.round_name for outcome in group} - {None}, key=str)
        ledger.expect(
            len(names) <= 1,
            "one-round",
            base,
            f"The results are of several rounds: {', '.join(map(str, names))}.",
        )
        name = asked or (names[0] if len(names) == 1 else None)
        if name is None:
            continue
        layout, wanted = group[0].result.layout, LAYOUTS[ROUNDS[name].layout]
        old_reader = wanted.name == "v5"
        said = "its official checker stops with a traceback at it, the one before that reads it"
        ledger.expect(
            layout.name == wanted.name,
            "round-layout",
            base,
            f"The tree has the {layout.name} layout, round {shown(name)} has the {wanted.name} one"
            f"{f': {said}' if old_reader else ''}.",
            soft=old_reader,
        )
