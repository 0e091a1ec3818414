"""A valid submission tree out of small templates, for the benchmark and the tests.

Its figures are made up; its form is that of a run. A tree of thousands of results is written
once: results beyond the first of a scenario share its files by hard links.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from paceline.mlperf.rules import ROUNDS, Round, benchmark
from paceline.mlperf.tree_rules import LAYOUTS, SYSTEM_FIELDS, TreeLayout

__all__ = ["SampleTree", "write_sample_tree"]

_HASH = "0123456789abcdef" * 4


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleTree:
    """What a sample tree holds. `num_indices` and `answer_len` set the size of its logs."""

    round_name: str = "v6.1"
    division: str = "closed"
    submitter: str = "ExampleOrg"
    num_systems: int = 1
    scenarios: tuple[str, ...] = ("Offline", "Server")
    num_indices: int = 8
    answer_len: int = 4

    @property
    def rules(self) -> Round:
        """The round's rules."""
        return ROUNDS[self.round_name]

    @property
    def layout(self) -> TreeLayout:
        """The round's layout."""
        return LAYOUTS[self.rules.layout]


def write_sample_tree(root: Path, sample: SampleTree) -> Path:
    """Write the tree below `root`. Returns `root`."""
    base, layout = root / sample.division / sample.submitter, sample.layout
    model = sample.rules.benchmarks[-1]
    _write(base / layout.source_dir / "README.md", "The code of this made-up submission.\n")
    _write(base / "documentation" / "calibration.md", "Nothing was quantised.\n")
    first: dict[str, dict[str, Path]] = {}
    for number in range(sample.num_systems):
        system = f"example-{number:04d}"
        place = base / layout.place(layout.system_file, system=system)
        _write(place, json.dumps(_system(sample, system), indent=2))
        for scenario in sample.scenarios:
            files = {
                layout.place(path, system=system, benchmark=model, scenario=scenario): text
                for path, text in _result(sample, scenario, first.get(scenario) is None).items()
            }
            if scenario not in first:
                first[scenario] = {}
            shared = first[scenario]
            for (path, text), key in zip(files.items(), _result_names(sample), strict=True):
                target = base / path
                if key in shared:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    os.link(shared[key], target)
                else:
                    _write(target, text)
                    shared[key] = target
    return root


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _result_names(sample: SampleTree) -> list[str]:
    return list(_result(sample, sample.scenarios[0], False))


def _result(sample: SampleTree, scenario: str, filled: bool) -> dict[str, str]:
    """The files of a result by their place in the layout; empty texts unless `filled`."""
    layout = sample.layout
    performance = _detail(sample, scenario, accuracy=False) if filled else []
    accuracy = _detail(sample, scenario, accuracy=True) if filled else []
    entries = _answers(sample, scenario) if filled else ""
    measured = {
        "input_data_types": "int32",
        "retraining": "No",
        "starting_weights_filename": "Llama-2-70b-chat-hf",
        "weight_data_types": "fp8",
        "weight_transformations": "quantization",
    }
    return {
        f"{layout.performance_dir}/mlperf_log_detail.txt": _lines(performance),
        f"{layout.performance_dir}/mlperf_log_summary.txt": _summary(dict(performance)),
        f"{layout.performance_dir}/mlperf_log_accuracy.json": "[\n]\n",
        f"{layout.accuracy_dir}/mlperf_log_detail.txt": _lines(accuracy),
        f"{layout.accuracy_dir}/mlperf_log_summary.txt": "\nNo warnings encountered during test.\n"
        "\nNo errors encountered during test.\n",
        f"{layout.accuracy_dir}/mlperf_log_accuracy.json": _truncated(),
        f"{layout.accuracy_dir}/accuracy.txt": _scores(),
        f"{layout.measurements_dir}/{layout.measurements_file}": json.dumps(measured, indent=2),
        f"{layout.measurements_dir}/user.conf": f"*.{scenario}.target_qps = 93.0\n",
        f"{layout.measurements_dir}/README.md": "Run `paceline run recipe.toml` on the system.\n",
        f"{layout.compliance_dir}/verify_accuracy.txt": "First token check pass: "
        f"{'Skipped' if scenario == 'Offline' else 'True'}\nEOS check pass: True\n"
        "Sample length check pass: True\nTEST06 verification complete\n",
        f"{layout.compliance_dir}/accuracy/mlperf_log_accuracy.json": entries,
    }


def _detail(sample: SampleTree, scenario: str, *, accuracy: bool) -> list[tuple[str, object]]:
    seeds, offline = sample.rules.seeds, scenario == "Offline"
    kind = "Offline" if offline else "Server"
    num = benchmark(sample.rules.benchmarks[-1]).num_samples
    issued = num if accuracy else 2 * num
    records: list[tuple[str, object]] = [
        ("loadgen_version", f"{sample.rules.wheel} @ 0000000000"),
        ("loadgen_git_status_message", ""),
        ("sut_name", "Network SUT" if sample.division == "network" else "PySUT"),
        ("qsl_name", "PyQSL"),
        ("qsl_reported_total_count", num),
        ("requested_use_token_latencies", True),
        ("effective_scenario", kind),
        ("effective_test_mode", "AccuracyOnly" if accuracy else "PerformanceOnly"),
        ("effective_samples_per_query", issued if offline else 1),
        ("effective_target_latency_ns", 0),
        ("effective_min_duration_ms", 600000),
        ("effective_min_query_count", 1 if offline else 100),
        ("effective_qsl_rng_seed", seeds.qsl),
        ("effective_sample_index_rng_seed", seeds.sample_index),
        ("effective_schedule_rng_seed", seeds.schedule),
        ("effective_accuracy_log_rng_seed", 0),
        ("effective_accuracy_log_probability", 0),
        ("effective_accuracy_log_sampling_target", 0),
        ("effective_performance_issue_unique", False),
        ("effective_performance_issue_same", False),
        ("effective_performance_sample_count", num),
        ("effective_sample_concatenate_permutation", True),
        ("loaded_qsl_set", list(range(sample.num_indices))),
        ("generated_query_count", 1 if offline else issued),
        ("generated_samples_per_query", issued if offline else 1),
        ("generated_query_duration", 700_000_000_000),
        ("power_begin", "07-31-2026 12:00:00.000"),
        ("power_end", "07-31-2026 12:11:40.500"),
    ]
    if not offline:
        interactive = scenario == "Interactive"
        records += [
            ("requested_server_ttft_latency", 450_000_000 if interactive else 2_000_000_000),
            ("requested_server_tpot_latency", 40_000_000 if interactive else 200_000_000),
        ]
    return records if accuracy else records + _results(offline, issued)


def _results(offline: bool, issued: int) -> list[tuple[str, object]]:
    rate = float(f"{issued / 700:.6g}")
    tokens = float(f"{rate * 294.5:.6g}")
    records: list[tuple[str, object]] = [
        ("result_validity", "VALID"),
        ("early_stopping_met", True),
        ("result_query_count", 1 if offline else issued),
        ("result_max_latency_ns", 700_000_000_000),
        ("result_99.00_percentile_latency_ns", 690_000_000_000),
    ]
    if offline:
        records += [("result_samples_per_second", rate), ("result_tokens_per_second", tokens)]
    else:
        records += [
            ("result_completed_samples_per_sec", rate),
            ("result_first_token_99.00_percentile_latency_ns", 400_000_000),
            ("result_time_per_output_token_99.00_percentile_ns", 39_000_000),
            ("result_completed_tokens_per_second", tokens),
        ]
    return [*records, ("num_errors", 0)]


def _lines(records: list[tuple[str, object]]) -> str:
    tail = '"namespace": "mlperf::logging", "event_type": "POINT_IN_TIME", "metadata": '
    tail += '{"is_error": false, "is_warning": false, "file": "logging.cc", "line_no": 1}}'
    return "".join(
        f':::MLLOG {{"key": {json.dumps(key)}, "value": {json.dumps(value)}, "time_ms": 1.5, '
        f"{tail}\n"
        for key, value in records
    )


def _summary(log: dict[str, object]) -> str:
    offline = log.get("effective_scenario") == "Offline"
    word = "" if offline else "Completed "
    suffix = "result_samples_per_second" if offline else "result_completed_samples_per_sec"
    tokens = "result_tokens_per_second" if offline else "result_completed_tokens_per_second"
    name = "samples per second" if word else "Samples per second"
    return (
        f"SUT name : {log.get('sut_name')}\nScenario : {log.get('effective_scenario')}\n"
        f"Mode     : PerformanceOnly\n{word}{name}: {log.get(suffix)}\n"
        f"{word}{'tokens' if word else 'Tokens'} per second: {log.get(tokens)}\n"
        "Result is : VALID\n  Min duration satisfied : Yes\n  Min queries satisfied : Yes\n"
        "  Early stopping satisfied: Yes\n\nNo warnings encountered during test.\n\n"
        "No errors encountered during test.\n"
    )


def _answers(sample: SampleTree, scenario: str) -> str:
    first = 306
    ids = [first, *(1000 + i for i in range(sample.answer_len - 2)), 2]
    data = b"".join(token.to_bytes(4, "little") for token in ids).hex().upper()
    report = "" if scenario == "Offline" else f', "token_data" : "{data[:8]}"'
    entries = ",\n".join(
        f'{{ "seq_id" : {i}, "qsl_idx" : {7 * i}, "data" : "{data}"{report}, '
        f'"token_count" : {len(ids)} }}'
        for i in range(100)
    )
    return f"[\n{entries}\n]\n"


def _truncated() -> str:
    """What is left of an accuracy log: two ends of 4096 bytes."""
    data = "32010000" * 3 + "02000000"
    entries = ",\n".join(
        f'{{ "seq_id" : {i}, "qsl_idx" : {i}, "data" : "{data}", "token_count" : 4 }}'
        for i in range(200)
    )
    whole = f"[\n{entries}\n]\n"
    return f"{whole[:4096]}\n\n...\n\n{whole[-4096:]}"


def _scores() -> str:
    figures = {
        "rouge1": 44.4465,
        "rouge2": 22.0638,
        "rougeL": 28.625,
        "gen_len": 29614748,
        "gen_num": 24576,
        "gen_tok_len": 7237632,
        "tokens_per_sample": 294.5,
    }
    return f"\nResults\n\n{figures}\n\nhash={_HASH}\n"


def _system(sample: SampleTree, name: str) -> dict[str, object]:
    system: dict[str, object] = dict.fromkeys(SYSTEM_FIELDS.required, "made up")
    system |= {
        "division": sample.division,
        "submitter": sample.submitter,
        "status": "available",
        "system_type": "datacenter",
        "system_name": name,
        "number_of_nodes": "1",
        "accelerators_per_node": "8",
        "accelerator_model_name": "Example Accelerator",
    }
    if sample.division == "network":
        system |= dict.fromkeys(SYSTEM_FIELDS.network, "made up") | {"is_network": "True"}
    return system
