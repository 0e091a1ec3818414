"""The shape of a tree: divisions, submitters, systems, and the results among them.

The official checker takes whatever lies in a place for what belongs there, and passes over what
lies elsewhere: an empty tree, a misspelt division or submitter are "OK" to it. Here every
directory is accounted for, and a tree without results fails.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from paceline.mlperf.rules import BENCHMARKS, ROUNDS
from paceline.mlperf.tree_rules import (
    ACCURACY_FILES,
    CALIBRATION_FILES,
    DIVISIONS,
    LAYOUTS,
    OTHER_BENCHMARKS,
    PERFORMANCE_FILES,
    ROOT_SUFFIXES,
    SCENARIO_NAMES,
    SCENARIO_RULE,
    FileList,
    TreeLayout,
)
from paceline.submission.check.context import ResultDir
from paceline.submission.check.findings import Ledger, shown
from paceline.submission.check.inventory import Inventory, Unreadable

__all__ = ["check_files_of", "find_results", "layout_of", "submitters"]

_KNOWN = tuple(dict.fromkeys(name for rules in ROUNDS.values() for name in rules.benchmarks))
_IN_SCENARIO = ("performance", "accuracy")
_IN_PERFORMANCE = ("run_1", "power", "ranging")


def submitters(
    inventory: Inventory, wanted: str | None, *, ledger: Ledger
) -> list[tuple[str, str]]:
    """(division, submitter) of the tree, after the checks of its two upper levels."""
    for name in inventory.files(""):
        ledger.expect(
            name.endswith(ROOT_SUFFIXES.names), "root-files", name, "This file lies in the root."
        )
    for name in inventory.dirs(""):
        if name not in DIVISIONS.names:
            _stray_division(inventory, name, ledger)
    found = []
    for division in DIVISIONS.names:
        for name in inventory.files(division):
            detail = "This file lies beside the submitters' directories."
            ledger.expect(False, "division-files", f"{division}/{name}", detail)
        found += [(division, name) for name in inventory.dirs(division)]
    if wanted is None:
        return found
    chosen = [pair for pair in found if pair[1] == wanted]
    names = sorted({name for _, name in found})
    close = difflib.get_close_matches(wanted, names, n=1, cutoff=0.4)
    hint = f"; did you mean {close[0]}?" if close else ""
    ledger.expect(
        bool(chosen),
        "submitter-found",
        "",
        f"No submitter is called {shown(wanted)}{hint} (there are: {shown(', '.join(names))}).",
    )
    return chosen


def _stray_division(inventory: Inventory, name: str, ledger: Ledger) -> None:
    inside = [name, *(f"{name}/{child}" for child in inventory.dirs(name))]
    holds_results = any(inventory.is_dir(f"{path}/results") for path in inside)
    close = difflib.get_close_matches(name.lower(), DIVISIONS.names, n=1, cutoff=0.7)
    hint = f"; is it {close[0]}?" if close else ""
    ledger.expect(
        False,
        "division-names",
        name,
        f"This is no division ({', '.join(DIVISIONS.names)}){hint}"
        f"{', and the results in it are checked by nobody' if holds_results else ''}.",
        soft=not (holds_results or close),
    )


def layout_of(inventory: Inventory, base: str) -> TreeLayout:
    """The layout that a submitter's directory has: v5 keeps measurements/ beside results/."""
    old = any(inventory.is_dir(f"{base}/{name}") for name in ("measurements", "compliance"))
    source = LAYOUTS["v5"].source_dir
    only_old_source = inventory.is_dir(f"{base}/{source}") and not inventory.is_dir(
        f"{base}/{LAYOUTS['v6'].source_dir}"
    )
    in_results = any(
        inventory.is_file(f"{path}/{LAYOUTS['v6'].measurements_file}")
        for path in _scenario_paths(inventory, base)
    )
    return LAYOUTS["v5" if (old or only_old_source) and not in_results else "v6"]


def _scenario_paths(inventory: Inventory, base: str) -> Iterator[str]:
    results = f"{base}/results"
    for system in inventory.dirs(results):
        for model in inventory.dirs(f"{results}/{system}"):
            for scenario in inventory.dirs(f"{results}/{system}/{model}"):
                yield f"{results}/{system}/{model}/{scenario}"


def find_results(
    inventory: Inventory, division: str, submitter: str, *, ledger: Ledger
) -> list[ResultDir]:
    """The results of a submitter, after the checks of everything around them."""
    base = f"{division}/{submitter}"
    layout = layout_of(inventory, base)
    ledger.expect(
        bool(inventory.dirs(f"{base}/results")),
        "has-results",
        base,
        "There is no system below results/: nothing is submitted.",
    )
    _documents(inventory, division, base, layout, ledger)
    _systems_match(inventory, base, ledger)
    mapping = _model_mapping(inventory, division, base, ledger)
    found = []
    for system in inventory.dirs(f"{base}/results"):
        place = f"{base}/results/{system}"
        if not inventory.dirs(place):
            ledger.expect(False, "has-results", place, "This system has no benchmark.")
        for model in inventory.dirs(place):
            benchmark = mapping.get(model, model)
            if not _known(benchmark, f"{place}/{model}", division, ledger):
                continue
            results = [
                ResultDir(
                    division=division,
                    submitter=submitter,
                    system=system,
                    model=model,
                    scenario=scenario,
                    benchmark=benchmark,
                    kind=kind,
                    layout=layout,
                )
                for scenario, kind in _scenarios(inventory, f"{place}/{model}", division, ledger)
            ]
            _required(results, f"{place}/{model}", division, ledger)
            found += results
    return found


def _documents(
    inventory: Inventory, division: str, base: str, layout: TreeLayout, ledger: Ledger
) -> None:
    source = f"{base}/{layout.source_dir}"
    ledger.expect(
        bool(inventory.children.get(source)),
        "source-dir",
        source,
        f"The source directory {layout.source_dir}/ is missing or empty.",
    )
    ledger.expect(
        any(inventory.size(f"{base}/{name}") for name in CALIBRATION_FILES.names),
        "calibration",
        base,
        f"There is no calibration document ({' or '.join(CALIBRATION_FILES.names[:2])}).",
        soft=division == "open",
    )


def _systems_match(inventory: Inventory, base: str, ledger: Ledger) -> None:
    systems = {
        name.removesuffix(".json")
        for name in inventory.files(f"{base}/systems")
        if name.endswith(".json")
    }
    results = set(inventory.dirs(f"{base}/results"))
    for name in sorted(systems - results):
        path = f"{base}/systems/{name}.json"
        ledger.expect(False, "system-has-results", path, "This system has no results.")
    for top in ("measurements", "compliance"):
        for name in sorted(set(inventory.dirs(f"{base}/{top}")) - results):
            path = f"{base}/{top}/{name}"
            ledger.expect(False, "system-has-results", path, "This system has no results.")
    for place in (f"{base}/results", *(f"{base}/results/{name}" for name in sorted(results))):
        for name in inventory.files(place):
            ledger.expect(
                name in ("README.md", "privateid.json"),
                "stray-files",
                f"{place}/{name}",
                "This file belongs to no result.",
                soft=True,
            )


def _model_mapping(
    inventory: Inventory, division: str, base: str, ledger: Ledger
) -> dict[str, str]:
    path = f"{base}/model_mapping.json"
    if division != "open" or inventory.kind(path) is None:
        return {}
    try:
        mapping = inventory.read_object(path)
    except Unreadable as error:
        ledger.expect(False, "model-mapping", path, f"The mapping of model names {error}.")
        return {}
    named = {own: name for own, name in mapping.items() if isinstance(name, str)}
    ledger.expect(len(named) == len(mapping), "model-mapping", path, "A name maps to no name.")
    return {own: name for own, name in named.items() if own not in _KNOWN}


def _known(name: str, path: str, division: str, ledger: Ledger) -> bool:
    if name in _KNOWN:
        return True
    if name in OTHER_BENCHMARKS.names:
        ledger.note("other-benchmark", path, f"paceline does not check {name}.")
        return False
    close = difflib.get_close_matches(name, _KNOWN, n=1, cutoff=0.4)
    hint = f"; did you mean {close[0]}?" if close else ""
    if "interactive" in name:
        hint = "; from v5.1 on, Interactive is a scenario directory of llama2-70b-99.9"
    elif name in BENCHMARKS:
        hint = "; it is paceline's own, to try things with"
    elif division == "open":
        hint += " A name of your own needs a line in model_mapping.json"
    ledger.expect(
        False, "benchmark-known", path, f"There is no MLPerf benchmark {shown(name)}{hint}."
    )
    return False


def _scenarios(
    inventory: Inventory, path: str, division: str, ledger: Ledger
) -> Iterator[tuple[str, str]]:
    """(directory, scenario) of the scenarios below a benchmark that can be checked."""
    canonical = {name.lower(): name for name in SCENARIO_NAMES.names}
    for name in inventory.files(path):
        detail = "This file belongs to no scenario."
        ledger.expect(False, "stray-files", f"{path}/{name}", detail, soft=True)
    names = inventory.dirs(path)
    if not names:
        ledger.expect(False, "has-results", path, "This benchmark has no scenario.")
    for name in names:
        kind, place = canonical.get(name.lower(), ""), f"{path}/{name}"
        allowed = (*SCENARIO_RULE.required, *SCENARIO_RULE.one_of)
        if kind in allowed:
            ledger.expect(name == kind, "scenario-spelling", place, f"Call it {kind}.", soft=True)
            yield name, kind
        else:
            ledger.expect(
                False,
                "scenario-known",
                place,
                f"This benchmark has no scenario {shown(name)}: {', '.join(allowed)}.",
                soft=division == "open" and bool(kind),
            )


def _required(results: list[ResultDir], path: str, division: str, ledger: Ledger) -> None:
    if division == "open" or not results:
        return
    kinds = {result.kind for result in results}
    missing = [name for name in SCENARIO_RULE.required if name not in kinds]
    if not kinds & set(SCENARIO_RULE.one_of):
        missing.append(f"one of {' or '.join(SCENARIO_RULE.one_of)}")
    ledger.expect(
        not missing,
        "required-scenarios",
        path,
        f"The {division} division also needs {' and '.join(missing)}.",
    )


def check_files_of(inventory: Inventory, result: ResultDir, *, ledger: Ledger) -> bool:
    """The directories and file lists of a result. Returns whether it has power logs."""
    layout = result.layout
    tests = layout.name == "v6"
    for name in inventory.dirs(result.path):
        known = name in _IN_SCENARIO or (tests and name.startswith("TEST0"))
        path = f"{result.path}/{name}"
        ledger.expect(known, "stray-dirs", path, "This directory belongs to no result.", soft=True)
    for name in inventory.dirs(f"{result.path}/performance"):
        path = f"{result.path}/performance/{name}"
        ledger.expect(
            name in _IN_PERFORMANCE, "stray-dirs", path, "Only run_1 belongs here.", soft=True
        )
    power = inventory.is_dir(f"{result.path}/performance/power")
    if power:
        ledger.note("power", f"{result.path}/performance/power", "Power logs are not checked.")
    _exact(inventory, result.place(layout.performance_dir), PERFORMANCE_FILES, ledger)
    _exact(inventory, result.place(layout.accuracy_dir), ACCURACY_FILES, ledger)
    path = f"{result.place(layout.performance_dir)}/mlperf_log_accuracy.json"
    ledger.expect(
        inventory.size(path) <= 16,
        "performance-no-answers",
        path,
        f"A performance run logs no answers; this file has {inventory.size(path):,} bytes.",
    )
    return power


def _exact(inventory: Inventory, path: str, files: FileList, ledger: Ledger) -> None:
    there = set(inventory.children.get(path, ()))
    missing = [name for name in files.required if not inventory.is_file(f"{path}/{name}")]
    extra = sorted(there - {*files.required, *files.optional, *files.tolerated})
    detail = []
    if missing:
        detail.append(f"{', '.join(missing)} missing")
    if extra:
        detail.append(f"{shown(', '.join(extra[:10]))} not expected")
    ledger.expect(not detail, "file-list", path, f"The files here: {'; '.join(detail)}.")
