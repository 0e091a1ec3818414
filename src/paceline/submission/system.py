"""The description of a system: every field with its value and where the value comes from.

    describe(host)         what this host says of itself: detected, or unknown
    give(description, ...) values from a person or a file: given
    merge(descriptions)    several hosts as one system of so many nodes
    official(description)  the JSON of a submission tree, refused while a required field is unknown

A field is detected, given or unknown. Nothing else fills one in: a field that nobody knows stays
unknown, and `missing` says how to give it.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from paceline.errors import DataError, InputError
from paceline.mlperf.tree_rules import STATUSES, SYSTEM_FIELDS, SYSTEM_TYPES
from paceline.submission.system_host import Host
from paceline.submission.system_probe import probe

__all__ = [
    "Description",
    "Field",
    "describe",
    "from_json",
    "give",
    "merge",
    "missing",
    "official",
    "read",
    "read_toml",
]

DETECTED, GIVEN, UNKNOWN = "detected", "given", "unknown"

_SCHEMA = 1
_ENTERED_AT_SUBMIT = ("division", "submitter")
_COUNTS = (*SYSTEM_FIELDS.integers, "host_processors_per_node", "host_network_card_count")
_OPTIONAL = ("filesystem", "disk_drives", "boot_firmware_version", "other_hardware")
_CHOSEN = ("system_type", "is_network")
# What a host alone says of its place among others is no longer so in a system of several.
_OF_ONE_NODE = ("host_networking_topology",)
_EXAMPLES = {
    "status": f"{', '.join(STATUSES.names)}; available means that anybody can get it",
    "cooling": "air, liquid",
    "system_name": '"Supermicro SYS-821GE-TNHR"',
    "host_memory_configuration": '"16x 64 GB DDR5"; dmidecode tells it to an administrator',
    "host_networking": '"400 Gb/s InfiniBand"',
    "host_networking_topology": '"fat tree", or "N/A" for one node',
    "accelerators_per_node": "8; a driver that is not loaded hides them",
    "accelerator_memory_configuration": "HBM3",
    "accelerator_interconnect": "NVLink, XGMI, PCIe",
    "system_type": ", ".join(SYSTEM_TYPES.names),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Field:
    """A value and its provenance: detected, given or unknown. `origin` says where it was read."""

    value: str | int | None
    provenance: str
    origin: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Description:
    """A system: its fields by name, the hosts it was made from, and where these differ."""

    fields: dict[str, Field]
    hosts: tuple[str, ...]
    differences: tuple[str, ...] = ()

    def value(self, name: str) -> str | int | None:
        """The value of a field; None when it is unknown."""
        return self.fields[name].value if name in self.fields else None

    def as_json(self) -> dict[str, Any]:
        """Plain values, from which `from_json` makes the same description."""
        fields = {
            name: {"value": f.value, "provenance": f.provenance, "origin": f.origin}
            for name, f in self.fields.items()
        }
        return {
            "schema": _SCHEMA,
            "hosts": list(self.hosts),
            "fields": fields,
            "unknown": [name for name, _ in missing(self)],
            "differences": list(self.differences),
        }


def describe(host: Host, *, network: bool = False) -> Description:
    """What `host` says of itself. `network` adds the fields of the network division."""
    facts = probe(host)
    names = [*SYSTEM_FIELDS.required, *(name for name in _OPTIONAL if name in facts)]
    if network:
        names += SYSTEM_FIELDS.network
        facts["is_network"] = ("True", "asked for")
    unknown = Field(value=None, provenance=UNKNOWN, origin="")
    return Description(
        fields={
            name: Field(
                value=facts[name][0],
                provenance=GIVEN if name in _CHOSEN else DETECTED,
                origin=facts[name][1],
            )
            if name in facts
            else unknown
            for name in names
        },
        hosts=(host.name,),
    )


def give(description: Description, values: Mapping[str, Any], *, origin: str) -> Description:
    """The description with `values` in place of what was there.

    Raises InputError for a field that does not exist, or a value that it cannot have.
    """
    known = (*SYSTEM_FIELDS.required, *SYSTEM_FIELDS.network, *_OPTIONAL)
    fields = dict(description.fields)
    for name, value in values.items():
        if name not in known and name not in fields:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            raise InputError(
                f"{origin}: a system description has no field '{name}'.",
                hint=f"did you mean '{close[0]}'?" if close else "paceline system lists them",
            )
        checked = _checked(name, value, origin)
        fields[name] = Field(value=checked, provenance=GIVEN, origin=origin)
    return replace(description, fields=fields)


def merge(descriptions: Sequence[Description]) -> Description:
    """Several hosts as one system. A field in which they differ becomes unknown, and is named.

    Raises InputError when a host is there twice.
    """
    hosts = [host for description in descriptions for host in description.hosts]
    twice = sorted({host for host in hosts if hosts.count(host) > 1})
    if twice:
        raise InputError(
            f"{', '.join(twice)} is described twice.", hint="give each host's file once"
        )
    if len(descriptions) == 1:
        return descriptions[0]
    fields: dict[str, Field] = {}
    differences: list[str] = []
    for name in dict.fromkeys(name for d in descriptions for name in d.fields):
        if name == "number_of_nodes":
            nodes = sum(int(d.value(name) or 1) for d in descriptions)
            fields[name] = Field(value=nodes, provenance=DETECTED, origin="hosts merged")
            continue
        found = [d.fields.get(name) for d in descriptions]
        fields[name], difference = _merged(name, found, descriptions)
        differences += difference
    return Description(fields=fields, hosts=tuple(hosts), differences=tuple(differences))


def missing(description: Description) -> list[tuple[str, str]]:
    """(field, how to fill it) of every field that must say something and does not.

    Division and submitter are entered by `paceline submit`.
    """
    network = SYSTEM_FIELDS.network if "is_network" in description.fields else ()
    wanted = [*SYSTEM_FIELDS.meaningful, *network]
    return [
        (name, f"--set {name}=VALUE   ({_EXAMPLES.get(name, 'or a line in system.toml')})")
        for name in wanted
        if name not in _ENTERED_AT_SUBMIT and description.value(name) in (None, "")
    ]


def official(description: Description, *, division: str, submitter: str) -> dict[str, str | int]:
    """systems/<system>.json. Raises InputError while a field that must say something is unknown."""
    if unknown := missing(description):
        listed = "\n".join(f"    {name:34} {how}" for name, how in unknown)
        if description.differences:
            listed += "\n  The hosts differ:\n" + "\n".join(
                f"    {line}" for line in description.differences
            )
        raise InputError(
            f"The system description leaves {len(unknown)} required fields unknown:\n{listed}",
            hint="paceline system --set FIELD=VALUE --out FILE, then --system FILE",
        )
    values = {name: field.value for name, field in description.fields.items()}
    values |= {"division": division, "submitter": submitter}
    # The official checker takes the number 0 for an empty field, and "0" for an answer.
    texts = {name: "" if v is None else "0" if v == 0 else v for name, v in values.items()}
    return dict(sorted(texts.items()))


def read(path: Path) -> Description:
    """A description that `paceline system --out` wrote, or a plain systems/<system>.json.

    Raises DataError.
    """
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read as a system description: {error}.",
            hint="paceline system --out FILE writes one",
        ) from error
    return from_json(value, origin=str(path))


def from_json(value: Any, *, origin: str) -> Description:
    """A description from its plain values. Raises DataError."""
    try:
        if "fields" not in value:
            given = {name: _checked(name, field, origin) for name, field in value.items()}
            fields = {
                name: Field(value=field, provenance=GIVEN, origin=origin)
                for name, field in given.items()
            }
            return Description(fields=fields, hosts=())
        return Description(
            fields={name: Field(**field) for name, field in value["fields"].items()},
            hosts=tuple(value["hosts"]),
            differences=tuple(value["differences"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{origin} is not a system description: {error}.",
            hint="paceline system --out FILE writes one",
        ) from error


def read_toml(path: Path) -> dict[str, Any]:
    """Fields from a small system.toml. Raises DataError."""
    try:
        return tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DataError(f"{path} cannot be read as TOML: {error}.") from error


def _merged(
    name: str, found: Sequence[Field | None], descriptions: Sequence[Description]
) -> tuple[Field, list[str]]:
    values = {field.value if field else None for field in found}
    detected = any(field is not None and field.provenance == DETECTED for field in found)
    if len(values) == 1 and not (name in _OF_ONE_NODE and detected):
        first = next(field for field in found if field is not None)
        return first, []
    unknown = Field(value=None, provenance=UNKNOWN, origin="hosts merged")
    if len(values) == 1:
        return unknown, []
    listed = "; ".join(
        f"{', '.join(description.hosts)}: {field.value if field else None}"
        for description, field in zip(descriptions, found, strict=True)
    )
    return unknown, [f"{name}: {listed}"]


def _checked(name: str, value: Any, origin: str) -> str | int:
    """The value in the type that the official tools read. Raises InputError."""
    if name in _COUNTS and re.fullmatch(r"\d+", str(value)):
        return int(value)
    if name in SYSTEM_FIELDS.integers:
        raise InputError(f"{origin}: {name} is {value!r}, but must be a whole number.")
    allowed = {"status": STATUSES.names, "system_type": SYSTEM_TYPES.names}.get(name)
    if allowed and str(value).lower() not in allowed:
        raise InputError(f"{origin}: {name} is {value!r}.", hint=f"one of {', '.join(allowed)}")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InputError(f"{origin}: {name} is {value!r}, but must be a text.")
    return str(value)
