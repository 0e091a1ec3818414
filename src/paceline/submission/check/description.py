"""The checks of what is written by hand: system description, measurements, user.conf, README."""

from __future__ import annotations

import re

from paceline.mlperf.tree_rules import (
    MEASUREMENT_FIELDS,
    NETWORK_SUT_NAME,
    STATUSES,
    SYSTEM_FIELDS,
    SYSTEM_TYPES,
)
from paceline.submission.check.context import ResultDir, RunLog
from paceline.submission.check.findings import Ledger, shown
from paceline.submission.check.inventory import Inventory, Unreadable

__all__ = ["check_measurements", "check_network_sut", "check_system"]

_EMPTY = ("", "none", "n/a", "na", "-", "null", "no", "0")
_PLACEHOLDER = re.compile(r"(?i)^\s*(tbd|todo|fixme|undefined|unknown|xxx+|\?+|change ?me)\s*$")
_GPU = re.compile(
    r"(?i)\b(nvidia|cuda|tensorrt|rocm|gpus?|gb[23]00|[abh][1-3]00|h20|l40s?|mi[23]\d\d[a-z]?|rtx)\b"
)
_PROSE_BYTES_MAX = 1 << 22


def check_system(
    inventory: Inventory,
    path: str,
    *,
    division: str,
    submitter: str,
    has_results: bool,
    ledger: Ledger,
) -> dict[str, object]:
    """Check a system description. Returns it, empty when it cannot be read.

    `has_results`: the system has results of Llama-2-70B, which edge systems may not have.
    """
    try:
        system = inventory.read_object(path)
    except Unreadable as error:
        ledger.expect(False, "system-json", path, f"The system description {error}.")
        return {}
    ledger.expect(True, "system-json", path, "")
    _fields(system, path, ledger)
    _names(system, path, division, submitter, ledger)
    _type(system, path, has_results, ledger)
    _network(system, path, division, ledger)
    _accelerators(system, path, ledger)
    return system


def _fields(system: dict[str, object], path: str, ledger: Ledger) -> None:
    missing = [name for name in SYSTEM_FIELDS.required if name not in system]
    detail = f"Required fields are missing: {', '.join(missing)}."
    ledger.expect(not missing, "system-fields", path, detail)
    empty = [name for name in SYSTEM_FIELDS.meaningful if name in system and not system[name]]
    # An accelerator count of 0 is the truth on a CPU.
    empty = [name for name in empty if system[name] != 0 or isinstance(system[name], bool)]
    if system.get("accelerators_per_node") == 0:
        ledger.expect(
            False,
            "system-fields-filled",
            path,
            "accelerators_per_node is the number 0, which the official checker takes for empty: "
            'write "0".',
        )
    detail = f"Fields that need a meaningful answer are empty: {', '.join(empty)}."
    ledger.expect(not empty, "system-fields-filled", path, detail)
    wrong = [
        f"{name} {shown(system[name])}"
        for name in SYSTEM_FIELDS.integers
        if name in system and _whole(system[name]) is None
    ]
    nodes = _whole(system.get("number_of_nodes"))
    if nodes is not None and nodes < 1:
        wrong.append(f"number_of_nodes {nodes}")
    ledger.expect(
        not wrong, "system-integers", path, f"These must be whole numbers: {', '.join(wrong)}."
    )
    open_answers = [
        name
        for name in SYSTEM_FIELDS.required
        if isinstance(system.get(name), str) and _PLACEHOLDER.match(str(system[name])[:100])
    ]
    ledger.expect(
        not open_answers,
        "system-no-placeholders",
        path,
        f"These fields hold a placeholder: {', '.join(open_answers)}.",
        soft=True,
    )


def _whole(value: object) -> int | None:
    """A count as the official checker reads it: int() of a number or a string, not negative."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    try:
        number = int(value)
    except ValueError:
        return None
    return number if 0 <= number < 1 << 31 else None


def _names(
    system: dict[str, object], path: str, division: str, submitter: str, ledger: Ledger
) -> None:
    for rule, key, directory in (
        ("system-division", "division", division),
        ("system-submitter", "submitter", submitter),
    ):
        found = system.get(key)
        ledger.expect(
            isinstance(found, str) and found.lower() == directory.lower(),
            rule,
            path,
            f"{key} is {shown(found)}, the directory is {shown(directory)}.",
        )
    status = system.get("status")
    ledger.expect(
        isinstance(status, str) and status.lower() in STATUSES.names,
        "system-status",
        path,
        f"status is {shown(status)}; it is one of {', '.join(STATUSES.names)}.",
    )


def _type(system: dict[str, object], path: str, has_results: bool, ledger: Ledger) -> None:
    kind = system.get("system_type")
    wrong = kind == "edge" and has_results
    ledger.expect(
        kind in SYSTEM_TYPES.names and not wrong,
        "system-type",
        path,
        "llama2-70b is no edge benchmark: system_type must hold datacenter."
        if wrong
        else f"system_type is {shown(kind)}; it is one of {' / '.join(SYSTEM_TYPES.names)}.",
    )


def _network(system: dict[str, object], path: str, division: str, ledger: Ledger) -> None:
    flag = system.get("is_network")
    said = isinstance(flag, str) and flag.lower() == "true"
    wanted = division == "network"
    text = f"is_network is {shown(flag)} in the {division} division"
    if flag is not None and not isinstance(flag, str):
        detail = f'{text}; it must be a string, "True" or left out.'
        ledger.expect(False, "system-network", path, detail)
        return
    ledger.expect(
        division == "open" or said == wanted, "system-network", path, f"{text}: they disagree."
    )
    if flag:
        missing = [name for name in SYSTEM_FIELDS.network if name not in system]
        ledger.expect(
            not missing,
            "system-network-fields",
            path,
            f"is_network is given, so these fields are required: {', '.join(missing)}.",
        )


def check_network_sut(
    log: RunLog, system: dict[str, object], result: ResultDir, *, ledger: Ledger
) -> None:
    """A SUT behind a network must say so in its name, which LoadGen logs."""
    flag = system.get("is_network")
    networked = isinstance(flag, str) and flag.lower() == "true"
    if networked or result.division == "network":
        name = log.text("sut_name") or ""
        ledger.expect(
            NETWORK_SUT_NAME.names[0] in name,
            "network-sut-name",
            log.path,
            f"sut_name is {shown(name)}; a network SUT's holds '{NETWORK_SUT_NAME.names[0]}'.",
        )


def _accelerators(system: dict[str, object], path: str, ledger: Ledger) -> None:
    count = _whole(system.get("accelerators_per_node"))
    model = str(system.get("accelerator_model_name", ""))[:1000]
    named = model.strip().lower() not in _EMPTY
    others = " ".join(
        str(system.get(key, ""))[:1000] for key in ("framework", "system_name", "sw_notes")
    )
    hint = _GPU.search(others)
    detail = f"accelerators_per_node is 0, but the accelerator is called {shown(model)}."
    if hint and not named:
        detail = f"accelerators_per_node is 0, but the description speaks of {hint[0]}."
    ledger.expect(not (count == 0 and (named or hint)), "system-accelerators", path, detail)
    ledger.expect(
        not count or named,
        "system-accelerators",
        path,
        f"There are {count} accelerators a node, but accelerator_model_name is {shown(model)!r}.",
    )


def check_measurements(inventory: Inventory, result: ResultDir, *, ledger: Ledger) -> str:
    """Check the measurements of a result. Returns its weight_data_types."""
    base = result.place(result.layout.measurements_dir)
    for name in ("user.conf", "README.md"):
        path = f"{base}/{name}"
        said = "is empty" if inventory.is_file(path) else "is missing"
        ledger.expect(inventory.size(path) > 0, "measurement-files", path, f"{name} {said}.")
    _user_conf(inventory, f"{base}/user.conf", ledger)
    _readme(inventory, f"{base}/README.md", ledger)
    path = f"{base}/{_measurements_name(inventory, result, base)}"
    try:
        measured = inventory.read_object(path)
    except Unreadable as error:
        ledger.expect(False, "measurements-json", path, f"The measurements description {error}.")
        return ""
    ledger.expect(True, "measurements-json", path, "")
    lacking = [name for name in MEASUREMENT_FIELDS.required if not measured.get(name)]
    ledger.expect(
        not lacking,
        "measurement-fields",
        path,
        f"Fields are missing or empty: {', '.join(lacking)}.",
    )
    return shown(measured.get("weight_data_types", ""))


def _measurements_name(inventory: Inventory, result: ResultDir, base: str) -> str:
    """The file that the official checker takes: in the v5 layout, one named for the system."""
    if "{" not in result.layout.measurements_file:
        return result.layout.measurements_file
    names = [
        name
        for name in inventory.files(base)
        if name.startswith(result.system) and name.endswith(".json")
    ]
    exact = [name for name in names if name.endswith(f"_{result.scenario}.json")]
    return (exact or names or [f"{result.system}.json"])[0]


def _user_conf(inventory: Inventory, path: str, ledger: Ledger) -> None:
    """Lines that LoadGen would pass over or refuse: it needs spaces around `=`."""
    try:
        lines = inventory.read_text(path).splitlines()
    except Unreadable as error:
        if inventory.is_file(path):
            ledger.expect(False, "measurement-files", path, f"user.conf {error}.")
        return
    settings = [line.strip() for line in lines if line.strip() and line.strip()[0] != "#"]
    wrong = [line for line in settings if len(line.split()) < 3 or line.split()[1] != "="]
    ledger.expect(
        not wrong,
        "user-conf-grammar",
        path,
        f"LoadGen does not read this line: {shown(wrong[0] if wrong else '')}",
        soft=True,
    )


def _readme(inventory: Inventory, path: str, ledger: Ledger) -> None:
    try:
        text = inventory.read_text(path, bytes_max=_PROSE_BYTES_MAX)
    except Unreadable as error:
        if inventory.is_file(path):
            ledger.expect(False, "readme", path, f"README.md {error}.", soft=True)
        return
    words = text.split()
    ledger.expect(
        len(words) >= 5 and "TBD" not in words,
        "readme",
        path,
        "README.md does not tell how to repeat the run.",
        soft=True,
    )
