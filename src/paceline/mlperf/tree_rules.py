"""The rule book of a submission tree: where files lie, what they hold, each with its source.

The writer of a tree and its checker both read this, so that they cannot disagree. What a round
fixes besides (seeds, wheels, benchmarks, accuracy targets, latencies) is in `rules`; the name of
a round's layout, `Round.layout`, is the key of `LAYOUTS`.

    LAYOUTS            "v5" (rounds to v5.1) and "v6": where each file of a result lies
    PERFORMANCE_FILES, ACCURACY_FILES, COMPLIANCE_FILES   what a directory holds, no more, no less
    SYSTEM_FIELDS, MEASUREMENT_FIELDS                     what the two descriptions must say
    SCENARIO_RULE, TEST06, and limits

Paths are relative, with "/" between parts, as a submission repository has them.
"""

from __future__ import annotations

from dataclasses import dataclass

from paceline.mlperf.rules import Source

__all__ = [
    "ACCURACY_FILES",
    "ACCURACY_LOG_BYTES_MAX",
    "CALIBRATION_FILES",
    "COMPLIANCE_FILES",
    "DIVISIONS",
    "FILE_BYTES_MAX",
    "LAYOUTS",
    "MEASUREMENT_FIELDS",
    "NETWORK_SUT_NAME",
    "OTHER_BENCHMARKS",
    "PERFORMANCE_FILES",
    "REPOSITORY_DIRS",
    "ROOT_SUFFIXES",
    "SCENARIO_NAMES",
    "SCENARIO_RULE",
    "STATUSES",
    "SYSTEM_FIELDS",
    "SYSTEM_TYPES",
    "TEST06",
    "TRUNCATED_BYTES",
    "ComplianceTest",
    "DescriptionFields",
    "FileList",
    "Limit",
    "NameList",
    "ScenarioRule",
    "TreeLayout",
    "checker_source",
    "old_checker_source",
]

_INFERENCE = ("mlcommons/inference", "b66003e10e2db4b8c36a448b0545ec90fcc6e9e9")
_TOOLS = "tools/submission"


def checker_source(symbol: str, *, module: str = "constants.py") -> Source:
    """A place in the official submission checker."""
    return Source(*_INFERENCE, f"{_TOOLS}/submission_checker/{module}", symbol)


def old_checker_source(symbol: str) -> Source:
    """A place in the checker that the official one replaced, and that dropped rules."""
    return Source(*_INFERENCE, f"{_TOOLS}/submission_checker_old.py", symbol)


@dataclass(frozen=True, kw_only=True, slots=True)
class Limit:
    """A number that a rule compares with."""

    value: int
    source: Source


@dataclass(frozen=True, kw_only=True, slots=True)
class NameList:
    """Names that a rule allows, or asks for."""

    names: tuple[str, ...]
    source: Source


@dataclass(frozen=True, kw_only=True, slots=True)
class FileList:
    """What a directory must hold, may hold, and is forgiven for holding."""

    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    tolerated: tuple[str, ...] = ()
    source: Source


@dataclass(frozen=True, kw_only=True, slots=True)
class TreeLayout:
    """Where the parts of a submission lie below `<division>/<submitter>/`.

    Each path but `source_dir` holds {system}, {benchmark} or {scenario}. `measurements_file` is
    the name of the file in `measurements_dir`. What lies below `roots` belongs to the layout.
    """

    name: str
    source_dir: str
    system_file: str
    performance_dir: str
    accuracy_dir: str
    measurements_dir: str
    measurements_file: str
    compliance_dir: str
    roots: tuple[str, ...]
    source: Source

    def place(self, template: str, *, system: str, benchmark: str = "", scenario: str = "") -> str:
        """One of the paths above, filled in. Names are taken as they are, braces and all."""
        for key, value in (("system", system), ("benchmark", benchmark), ("scenario", scenario)):
            template = template.replace(f"{{{key}}}", value.replace("{", "\0"))
        return template.replace("\0", "{")


_RESULT = "results/{system}/{benchmark}/{scenario}"

LAYOUTS: dict[str, TreeLayout] = {
    "v5": TreeLayout(
        name="v5",
        source_dir="code",
        system_file="systems/{system}.json",
        performance_dir=f"{_RESULT}/performance/run_1",
        accuracy_dir=f"{_RESULT}/accuracy",
        measurements_dir="measurements/{system}/{benchmark}/{scenario}",
        measurements_file="{system}.json",
        compliance_dir="compliance/{system}/{benchmark}/{scenario}/TEST06",
        roots=("results", "measurements", "compliance", "systems", "code", "documentation"),
        source=checker_source('MEASUREMENTS_PATH, COMPLIANCE_PATH, SRC_PATH ["v5.1"]'),
    ),
    "v6": TreeLayout(
        name="v6",
        source_dir="src",
        system_file="systems/{system}.json",
        performance_dir=f"{_RESULT}/performance/run_1",
        accuracy_dir=f"{_RESULT}/accuracy",
        measurements_dir=_RESULT,
        measurements_file="measurements.json",
        compliance_dir=f"{_RESULT}/TEST06",
        roots=("results", "systems", "src", "documentation"),
        source=checker_source('MEASUREMENTS_PATH, COMPLIANCE_PATH, SRC_PATH ["v6.1"]'),
    ),
}

DIVISIONS = NameList(names=("closed", "open", "network"), source=checker_source("VALID_DIVISIONS"))
REPOSITORY_DIRS = NameList(
    names=(".git", ".github", "assets"), source=old_checker_source("check_results_dir")
)
ROOT_SUFFIXES = NameList(names=(".md", ".pdf"), source=old_checker_source("check_results_dir"))
CALIBRATION_FILES = NameList(
    names=(
        "calibration.md",
        "documentation/calibration.md",
        "documentation/calibration.adoc",
    ),
    source=old_checker_source("check_results_dir: calibration_path_root, calibration_path_doc"),
)

_TOLERATED = ("mlperf_log_trace.json", "results.json", ".gitkeep")
PERFORMANCE_FILES = FileList(
    required=("mlperf_log_summary.txt", "mlperf_log_detail.txt"),
    optional=("mlperf_log_accuracy.json",),
    tolerated=(*_TOLERATED, "spl.txt"),
    source=old_checker_source("REQUIRED_PERF_FILES, OPTIONAL_PERF_FILES, files_diff"),
)
ACCURACY_FILES = FileList(
    required=(
        "mlperf_log_summary.txt",
        "mlperf_log_detail.txt",
        "accuracy.txt",
        "mlperf_log_accuracy.json",
    ),
    tolerated=_TOLERATED,
    source=old_checker_source("REQUIRED_ACC_FILES, files_diff"),
)
COMPLIANCE_FILES = FileList(
    required=("verify_accuracy.txt", "accuracy/mlperf_log_accuracy.json"),
    source=Source(*_INFERENCE, "compliance/TEST06/run_verification.py", "main"),
)

FILE_BYTES_MAX = Limit(
    value=50 * 1024 * 1024, source=old_checker_source("FILE_SIZE_LIMIT_MB, MB_TO_BYTES")
)
ACCURACY_LOG_BYTES_MAX = Limit(value=10 * 1024, source=checker_source("MAX_ACCURACY_LOG_SIZE"))
# Each end that truncation keeps; "\n\n...\n\n" stands between them.
TRUNCATED_BYTES = Limit(
    value=4096,
    source=Source(*_INFERENCE, f"{_TOOLS}/truncate_accuracy_log.py", "VIEWABLE_SIZE"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class DescriptionFields:
    """The keys of a JSON description: required, not empty, whole numbers, for the network."""

    required: tuple[str, ...]
    meaningful: tuple[str, ...]
    integers: tuple[str, ...] = ()
    network: tuple[str, ...] = ()
    source: Source


_MEANINGFUL = (
    "division",
    "submitter",
    "system_type",
    "status",
    "system_name",
    "number_of_nodes",
    "host_processor_model_name",
    "host_processors_per_node",
    "host_processor_core_count",
    "host_memory_capacity",
    "host_memory_configuration",
    "host_storage_capacity",
    "host_storage_type",
    "host_networking",
    "host_network_card_count",
    "host_networking_topology",
    "accelerators_per_node",
    "accelerator_model_name",
    "accelerator_memory_capacity",
    "accelerator_host_interconnect",
    "accelerator_memory_configuration",
    "accelerator_interconnect",
    "cooling",
    "framework",
    "operating_system",
    "other_software_stack",
)
SYSTEM_FIELDS = DescriptionFields(
    required=(
        *_MEANINGFUL,
        "host_processor_frequency",
        "host_processor_caches",
        "host_processor_interconnect",
        "accelerator_frequency",
        "accelerator_interconnect_topology",
        "accelerator_on-chip_memories",
        "hw_notes",
        "sw_notes",
        "system_type_detail",
    ),
    meaningful=_MEANINGFUL,
    # summary.csv multiplies the two.
    integers=("number_of_nodes", "accelerators_per_node"),
    network=(
        "is_network",
        "network_type",
        "network_media",
        "network_rate",
        "nic_loadgen",
        "number_nic_loadgen",
        "net_software_stack_loadgen",
        "network_protocol",
        "number_connections",
        "nic_sut",
        "number_nic_sut",
        "net_software_stack_sut",
        "network_topology",
    ),
    source=checker_source("SYSTEM_DESC_REQUIRED_FIELDS, SYSTEM_DESC_MEANINGFUL_..._FIELDS"),
)
STATUSES = NameList(
    names=("available", "preview", "rdi"), source=checker_source("VALID_AVAILABILITIES")
)
SYSTEM_TYPES = NameList(
    names=("datacenter", "edge", "datacenter,edge", "edge,datacenter"),
    source=checker_source("SystemCheck.system_type_check", module="checks/system_check.py"),
)
_MEASURED = (
    "input_data_types",
    "retraining",
    "starting_weights_filename",
    "weight_data_types",
    "weight_transformations",
)
MEASUREMENT_FIELDS = DescriptionFields(
    required=_MEASURED, meaningful=_MEASURED, source=checker_source("SYSTEM_IMP_REQUIRED_FILES")
)
NETWORK_SUT_NAME = NameList(
    names=("Network SUT",),
    source=checker_source("NETWORK_MODE_REQUIRED_SUBSTRING_IN_SUT_NAME"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ScenarioRule:
    """The scenarios that a closed or network result of the benchmark needs together."""

    required: tuple[str, ...]
    one_of: tuple[str, ...]
    source: Source


SCENARIO_RULE = ScenarioRule(
    required=("Offline",),
    one_of=("Server", "Interactive"),
    source=checker_source("required-, optional-scenarios-datacenter; Loader.check_scenarios"),
)
SCENARIO_NAMES = NameList(
    names=("Offline", "Server", "Interactive", "SingleStream", "MultiStream"),
    source=checker_source("SCENARIO_MAPPING"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ComplianceTest:
    """A compliance test: its audit settings, and the lines that its verification writes."""

    name: str
    num_samples: int
    accuracy_log_rng_seed: int
    first_token_lines: tuple[str, ...]
    lines: tuple[str, ...]
    source: Source


TEST06 = ComplianceTest(
    name="TEST06",
    num_samples=100,
    accuracy_log_rng_seed=720381539243781796,
    first_token_lines=("First token check pass: True", "First token check pass: Skipped"),
    lines=("EOS check pass: True", "Sample length check pass: True"),
    source=Source(*_INFERENCE, "compliance/TEST06", "audit.config, run_verification.py"),
)

# fmt: off
OTHER_BENCHMARKS = NameList(
    names=(
        "3d-unet-99", "3d-unet-99.9", "bert-99", "bert-99.9", "deepseek-r1", "dlrm-v2-99",
        "dlrm-v2-99.9", "dlrm-v3", "e2e-rag-db", "e2e-rag-qna", "gpt-oss-120b", "gptj-99",
        "gptj-99.9", "llama3.1-405b", "llama3.1-8b", "llama3.1-8b-edge", "mixtral-8x7b",
        "pointpainting", "qwen3-vl-235b-a22b", "qwen3.6-27b", "resnet", "resnet50", "retinanet",
        "rgat", "stable-diffusion-xl", "wan-2.2-t2v-a14b", "whisper", "yolo-95", "yolo-99",
    ),
    source=checker_source('MODEL_CONFIG["..."]["models"]'),
)
# fmt: on
