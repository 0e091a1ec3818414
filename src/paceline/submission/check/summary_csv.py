"""Passing results in the columns of the official summary.csv.

As the official checker writes them: every value in double quotes, Interactive rows marked as
inferred. A quote within a value is doubled, which the official file leaves as it is.
"""

from __future__ import annotations

import csv
import io

from paceline.mlperf.tree_rules import checker_source
from paceline.submission.check.context import Outcome
from paceline.submission.check.tree import NEWEST, CheckedTree

__all__ = ["SUMMARY_COLUMNS", "SUMMARY_SOURCE", "summary_csv"]

SUMMARY_SOURCE = checker_source("ResultExporter", module="results.py")
# fmt: off
SUMMARY_COLUMNS = (
    "Organization", "Availability", "Division", "SystemType", "SystemName", "Platform", "Model",
    "MlperfModel", "Scenario", "Result", "Accuracy", "number_of_nodes",
    "host_processor_model_name", "host_processors_per_node", "host_processor_core_count",
    "accelerator_model_name", "accelerators_per_node", "total_accelerators", "Location",
    "framework", "operating_system", "notes", "compliance", "errors", "version", "inferred",
    "has_power", "Units", "weight_data_types", "design_power_watts", "PrivateID",
)
# fmt: on
_FROM_SYSTEM = (
    "number_of_nodes",
    "host_processor_model_name",
    "host_processors_per_node",
    "host_processor_core_count",
    "accelerator_model_name",
    "accelerators_per_node",
    "framework",
    "operating_system",
)


def summary_csv(checked: CheckedTree) -> str:
    """The text of summary.csv: one row for each result that passes."""
    text = io.StringIO()
    text.write(",".join(SUMMARY_COLUMNS) + "\n")
    writer = csv.DictWriter(
        text, SUMMARY_COLUMNS, restval="", quoting=csv.QUOTE_ALL, lineterminator="\n"
    )
    for outcome in checked.outcomes:
        if not checked.failures_of(outcome.result):
            writer.writerow(_row(outcome, checked))
    return text.getvalue()


def _row(outcome: Outcome, checked: CheckedTree) -> dict[str, object]:
    result, facts = outcome.result, outcome.facts
    system = checked.systems.get(result.place(result.layout.system_file), {})
    notes = [str(system[key]) for key in ("hw_notes", "sw_notes") if system.get(key)]
    accuracy = "  ".join(f"{name.upper()}: {value}" for name, value in facts.accuracy.items())
    row: dict[str, object] = {key: system.get(key, "") for key in _FROM_SYSTEM}
    nodes, each = int(str(row["number_of_nodes"])), int(str(row["accelerators_per_node"]))
    return row | {
        "Organization": result.submitter,
        "Availability": system.get("status", ""),
        "Division": result.division,
        "SystemType": system.get("system_type", ""),
        "SystemName": system.get("system_name", ""),
        "Platform": result.system,
        "Model": result.model,
        "MlperfModel": result.benchmark,
        "Scenario": result.scenario,
        "Result": facts.metric,
        "Accuracy": accuracy,
        "total_accelerators": nodes * each,
        "Location": f"{checked.tree}/{result.place(result.layout.performance_dir)}",
        "notes": ". ".join(notes),
        "compliance": result.division,
        "errors": 0,
        "version": facts.round_name or NEWEST,
        "inferred": int(result.scenario != result.loadgen_scenario),
        "has_power": outcome.has_power,
        "Units": "Tokens/s",
        "weight_data_types": outcome.weight_data_types,
    }
