"""summary_results.json: the results as other programs read them.

The keys are those of the MLCommons results pages' file of this name, so that what reads theirs
reads ours; after them come the ones in small letters, which are ours.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from paceline.report.ranking import Place
from paceline.report.results import Results, ShownResult

__all__ = ["summary_json"]


def summary_json(results: Results, places: Mapping[str, Place]) -> str:
    """The text of the file: a list, fastest first."""
    rows = [
        _row(result, number, places.get(result.location))
        for number, result in enumerate(results.results, 1)
    ]
    return json.dumps(rows, indent=1, allow_nan=False) + "\n"


def _row(result: ShownResult, number: int, place: Place | None) -> dict[str, Any]:
    system = result.system
    notes = [str(system[key]) for key in ("hw_notes", "sw_notes") if system.get(key)]
    accuracy = "  ".join(f"{key.upper()}: {value}" for key, value in result.accuracy.items())
    return {
        "ID": f"{result.round.removeprefix('v')}-{number:04d}",
        "Submitter": result.submitter,
        "Availability": system.get("status", ""),
        "Category": result.division,
        "Suite": system.get("system_type", ""),
        "System": system.get("system_name", ""),
        "Platform": result.platform,
        "UsedModel": result.model,
        "Model": result.benchmark,
        "Scenario": result.scenario,
        "Accuracy": accuracy,
        "Nodes": system.get("number_of_nodes", ""),
        "Processor": system.get("host_processor_model_name", ""),
        "host_processors_per_node": system.get("host_processors_per_node", ""),
        "host_processor_core_count": system.get("host_processor_core_count", ""),
        "Accelerator": result.accelerator,
        "a#": system.get("accelerators_per_node", ""),
        "Software": system.get("framework", ""),
        "operating_system": system.get("operating_system", ""),
        "Notes": ". ".join(notes),
        "Performance_Result": result.tokens_per_second,
        "Performance_Units": "Tokens/s",
        "has_power": result.has_power,
        "version": result.round,
        "weight_data_types": result.weight_data_types,
        "Location": result.location,
        "passes": result.passed,
        "rehearsal": result.is_rehearsal,
        "failures": list(result.failures),
        "hardware_category": result.category,
        "total_accelerators": result.num_accelerators,
        "tokens_per_second_per_accelerator": result.per_accelerator,
        "samples_per_second": result.samples_per_second,
        "duration_s": result.duration_s,
        **{key: result.latencies_ms.get(key) for key in ("ttft_p99_ms", "tpot_p99_ms")},
        "score": None if place is None else place.score,
        "place_by_throughput": None if place is None else place.by_throughput,
        "place_by_accelerator": None if place is None else place.by_accelerator,
        "page": result.page,
    }
