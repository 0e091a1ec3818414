"""Sections on what made a run: verdict and findings, effective config, system, history."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from paceline.report.blocks import Section, Table
from paceline.report.formulas import formulas
from paceline.report.rundata import RunData

__all__ = [
    "config_section",
    "effective_config",
    "history_section",
    "made_by",
    "shown",
    "system_section",
    "verdict_section",
]

_PLACES = {
    "data.path": "data_path",
    "data.tokenizer": "tokenizer_path",
    "data.trust_pickle": "trust_pickle",
    "model.path": "model_path",
    "engine.name": "engine",
}


def verdict_section(run: RunData) -> Section:
    """The verdict with its reasons, and the figures with their formulas."""
    section = Section(name="verdict", title="Verdict")
    manifest, verdict = run.manifest, run.verdict
    if manifest["status"] != "COMPLETE":
        error = manifest.get("error", {})
        why = error.get("message", "no reason is on record")
        section.missing.append(f"The run is {manifest['status']}: {why}")
    section.missing += run.problems
    if verdict is None:
        section.missing.append("The run has no verdict yet.")
        return section
    if run.is_simulated:
        section.missing.append("SIMULATED: the engine ran no model; no figure here was measured.")
    if verdict["shortfalls"]:
        section.paragraphs.append(f"NOT A SUBMISSION: {'; '.join(verdict['shortfalls'])}.")
    table = formulas(run)
    if table.rows:
        section.tables.append(table)
    findings = verdict["findings"]
    rows = tuple(
        ("PASS" if f["passed"] else "FAIL", str(f["rule"]), str(f["detail"])) for f in findings
    )
    if rows:
        section.tables.append(
            Table(
                caption="Every rule that was checked",
                head=("verdict", "rule", "detail"),
                rows=rows,
                marks={i: "bad" for i, f in enumerate(findings) if not f["passed"]},
            )
        )
    return section


def effective_config(run: RunData) -> dict[str, tuple[str, str]]:
    """Key -> (value, where it came from), of the run and of its own engine, in order."""
    config, found = run.config, {}
    engine = config["engine"]
    for key, origin in run.manifest.get("origins", {}).items():
        parts = key.split(".")
        if parts[0] == "engine" and len(parts) > 2 and parts[1] != engine:
            continue
        found[key] = (shown(_value(config, key, parts)), str(origin))
    return found


def _value(config: Mapping[str, Any], key: str, parts: list[str]) -> object:
    if key in _PLACES:
        return config.get(_PLACES[key])
    if parts[0] == "run":
        return config.get(parts[1])
    if parts[0] == "loadgen":
        return config["loadgen"].get(parts[1])
    if parts[0] == "engine" and len(parts) > 2:
        return config["engine_config"].get(parts[2])
    return None


def config_section(run: RunData) -> Section:
    """Every key with its value and where it came from."""
    section = Section(name="config", title="Effective config")
    section.paragraphs.append(
        "The value that the run had, and the last origin that gave it one; a value whose origin "
        "is default was decided by paceline."
    )
    rows = [(key, value, origin) for key, (value, origin) in effective_config(run).items()]
    marks = {place: "own" for place, row in enumerate(rows) if row[2] != "default"}
    section.tables.append(
        Table(
            caption="Keys, values, origins",
            head=("key", "value", "from"),
            rows=tuple(rows),
            marks=marks,
        )
    )
    return section


def made_by(run: RunData) -> dict[str, str]:
    """What made the run besides its config: code, packages, seeds, inputs, host."""
    manifest = run.manifest
    model, dataset = manifest.get("model") or {}, manifest.get("dataset") or {}
    groups: dict[str, Mapping[str, Any]] = {
        "code": manifest.get("code", {}),
        "version": manifest.get("versions", {}),
        "seed": manifest.get("seeds", {}),
        "dataset": {"sha256": dataset.get("sha256")},
        "model": model.get("files", {}),
        "host": manifest.get("host", {}),
    }
    return {
        f"{group} {name}": shown(value)
        for group, values in groups.items()
        for name, value in values.items()
    }


def system_section(run: RunData) -> Section:
    """Host, packages, code, seeds, and the hashes of what the run read."""
    section = Section(name="system", title="System, software and inputs")
    name, cards = run.accelerator
    section.paragraphs.append(
        f"Hardware category: {run.category}" + (f" ({cards} x {name})." if cards else ".")
    )
    rows = tuple(made_by(run).items())
    section.tables.append(Table(caption="What made the run", head=("what", "value"), rows=rows))
    for test in run.tests.values():
        facts = {k: shown(v) for k, v in test.engine.items() if k != "copies"}
        if facts:
            caption = f"What the engine said of itself, {test.name} test"
            section.tables.append(
                Table(caption=caption, head=("what", "value"), rows=tuple(facts.items()))
            )
    return section


def history_section(run: RunData) -> Section:
    """When each test began and ended, what was resumed or cut short."""
    section = Section(name="history", title="History")
    manifest = run.manifest
    ends = (shown(manifest.get("created")), shown(manifest.get("ended")))
    rows: list[tuple[str, ...]] = [("run", str(manifest["status"]), *ends, "-", "-")]
    names = ("status", "started", "ended", "resumed", "torn_lines")
    for test in run.tests.values():
        rows.append((test.name, *(shown(test.facts.get(name, "-")) for name in names)))
    section.tables.append(
        Table(
            caption="Tests",
            head=("what", "status", "started", "ended", "samples resumed", "torn journal lines"),
            rows=tuple(rows),
        )
    )
    for moment in manifest.get("resumed", []):
        section.paragraphs.append(f"Resumed at {moment}.")
    return section


def shown(value: object) -> str:
    """A value of a manifest as text."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)
