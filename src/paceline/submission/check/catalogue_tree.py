"""The rules of a tree, its systems and its measurements."""

from __future__ import annotations

from paceline.mlperf.rules import Source
from paceline.mlperf.tree_rules import (
    CALIBRATION_FILES,
    DIVISIONS,
    FILE_BYTES_MAX,
    LAYOUTS,
    MEASUREMENT_FIELDS,
    NETWORK_SUT_NAME,
    OTHER_BENCHMARKS,
    PERFORMANCE_FILES,
    REPOSITORY_DIRS,
    ROOT_SUFFIXES,
    SCENARIO_NAMES,
    SCENARIO_RULE,
    STATUSES,
    SYSTEM_FIELDS,
    SYSTEM_TYPES,
    checker_source,
    old_checker_source,
)
from paceline.submission.check.findings import CheckRule, Official

__all__ = ["TREE_RULES"]

_OLD = old_checker_source("check_results_dir")
_PACELINE = Source("paceline", "docs/rules.md", "docs/rules.md", "What paceline adds")
_LOADER = checker_source("Loader.load", module="loader.py")
_SYSTEM = "checks/system_check.py"
_REPOSITORY = Source(
    OTHER_BENCHMARKS.source.repository,
    OTHER_BENCHMARKS.source.commit,
    "tools/submission/repository_checks.sh",
    "SYMBOLIC_LINKS, BAD_FILE_NAMES, SPACE_FILE_NAMES",
)
_SETTINGS = Source(
    OTHER_BENCHMARKS.source.repository,
    OTHER_BENCHMARKS.source.commit,
    "loadgen/test_settings_internal.cc",
    "TestSettings::FromConfig",
)
_POLICY = Source(
    "mlcommons/inference_policies", "ac93e89", "inference_rules.adoc", "Submission; Network"
)


def _rule(name: str, text: str, source: Source, mend: str, official: Official) -> CheckRule:
    return CheckRule(name=name, text=text, source=source, mend=mend, official=official)


_ROOT = "move or remove it"
_RENAME = "rename it, and what refers to it"
_REMOVE = "remove it from the tree"
_EDIT = "edit the system description (`paceline system` writes one), and check again"

# fmt: off
TREE_RULES = (
    _rule("has-results", "There is something to check.", _PACELINE,
          "give the directory that holds closed/, open/ or network/, with results in it", "never"),
    _rule("submitter-found", "The submitter asked for is there.", _PACELINE,
          "--submitter NAME, as the directory is called", "never"),
    _rule("division-names", "Top directories are divisions.", DIVISIONS.source,
          "name it closed, open or network, or remove it", "dropped"),
    _rule("root-files", "The root holds directories, .md and .pdf only.", ROOT_SUFFIXES.source,
          _ROOT, "dropped"),
    _rule("division-files", "A division holds submitters' directories only.", _OLD, _ROOT,
          "dropped"),
    _rule("repository-dirs", "Directories of the repository itself are passed over.",
          REPOSITORY_DIRS.source, "", "dropped"),
    _rule("round-layout", "The tree has the layout of its round.", LAYOUTS["v6"].source,
          "`paceline submit --round ROUND` writes the round's layout; by hand: v5.1 keeps "
          "measurements/, compliance/, code/ beside results/, v6 has results/ and src/",
          "checks"),
    _rule("one-round", "All results of a submitter are of one round.", _PACELINE,
          "submit the results of each round by themselves", "never"),
    _rule("benchmark-known", "Each benchmark directory is an MLPerf benchmark.",
          OTHER_BENCHMARKS.source, "rename the directory", "checks"),
    _rule("other-benchmark", "Benchmarks other than Llama-2-70B are not checked.", _PACELINE,
          "check them with the official checker", "never"),
    _rule("benchmark-in-round", "The round lists the benchmark.", OTHER_BENCHMARKS.source,
          "submit llama2-70b-99.9, whose gate is the stricter one", "checks"),
    _rule("model-mapping", "model_mapping.json maps names to names.", _LOADER,
          'write {"your-name": "llama2-70b-99.9"}', "checks"),
    _rule("scenario-known", "Each scenario is one of the benchmark.", SCENARIO_RULE.source,
          "remove the directory", "checks"),
    _rule("scenario-spelling", "Scenario directories have LoadGen's spelling.",
          SCENARIO_NAMES.source, _RENAME, "never"),
    _rule("required-scenarios", "Closed and network have Offline and Server or Interactive.",
          SCENARIO_RULE.source, "run the missing scenario too, or submit to open", "checks"),
    _rule("system-has-results", "Every system has results.", _OLD,
          "remove the description, or add its results", "dropped"),
    _rule("source-dir", "The source is there.",
          checker_source("MeasurementsCheck.directory_exist_check",
                         module="checks/measurements_checks.py"),
          "put the code that talks to LoadGen there", "checks"),
    _rule("calibration", "A calibration document is there.", CALIBRATION_FILES.source,
          "write calibration.md: how the weights were quantised, and with which samples",
          "dropped"),
    _rule("stray-files", "No file lies where it belongs to nothing.", PERFORMANCE_FILES.source,
          _ROOT, "never"),
    _rule("stray-dirs", "No directory lies where it belongs to nothing.", _LOADER, _ROOT, "never"),
    _rule("file-list", "A run's directory holds LoadGen's files and no others.",
          PERFORMANCE_FILES.source, "add what is missing, remove what is not expected", "dropped"),
    _rule("power", "Power logs are not checked.", _POLICY,
          "run the official checker, whose power check this is", "never"),
    _rule("no-links", "There are no symbolic links.", _REPOSITORY,
          "put the file itself there", "dropped"),
    _rule("ordinary-files", "There are only files and directories.", _PACELINE, _REMOVE, "never"),
    _rule("no-dot-names", "No name begins with a dot.", _REPOSITORY, _REMOVE, "dropped"),
    _rule("no-spaces", "No name has a space.", _REPOSITORY, _RENAME, "dropped"),
    _rule("printable-names", "Names are printable UTF-8.", _PACELINE, _RENAME, "never"),
    _rule("file-size", "No file is larger than 50 MB.", FILE_BYTES_MAX.source,
          "leave it out, or truncate it", "dropped"),
    _rule("no-pycache", "There are no compiled Python files.", _OLD, _REMOVE, "dropped"),
    _rule("no-empty-dirs", "No directory is empty.", _OLD, _REMOVE, "dropped"),
    _rule("no-secrets", "No file holds a key, token or password.", _PACELINE,
          "remove it, and revoke it: it has been on disk in a tree meant for the public", "never"),
    _rule("system-json", "Each system with results has a sound description.",
          checker_source("SystemCheck.missing_check", module=_SYSTEM), _EDIT, "checks"),
    _rule("system-fields", "The description has all required fields.", SYSTEM_FIELDS.source, _EDIT,
          "checks"),
    _rule("system-fields-filled", "Fields that need an answer have one.", SYSTEM_FIELDS.source,
          _EDIT, "checks"),
    _rule("system-integers", "Nodes and accelerators are whole numbers.",
          checker_source("ResultExporter.add_result: total_accelerators", module="results.py"),
          _EDIT, "checks"),
    _rule("system-no-placeholders", "No field holds a placeholder.", _PACELINE, _EDIT, "never"),
    _rule("system-division", "The description names its division.",
          checker_source("SystemCheck.division_check", module=_SYSTEM), _EDIT, "checks"),
    _rule("system-submitter", "The description names its submitter.",
          checker_source("SystemCheck.submitter_check", module=_SYSTEM), _EDIT, "checks"),
    _rule("system-status", "The status is a known one.", STATUSES.source, _EDIT, "checks"),
    _rule("system-type", "The system type is a datacenter's.", SYSTEM_TYPES.source, _EDIT,
          "checks"),
    _rule("system-network", "is_network agrees with the division.",
          checker_source("SystemCheck.network_check", module=_SYSTEM), _EDIT, "checks"),
    _rule("system-network-fields", "A network system has the network fields.",
          SYSTEM_FIELDS.source, _EDIT, "checks"),
    _rule("network-sut-name", "A network SUT says so in its name.", NETWORK_SUT_NAME.source,
          "construct the SUT as a QDL whose name holds it", "checks"),
    _rule("system-accelerators", "The accelerator count and name agree.", _PACELINE, _EDIT,
          "never"),
    _rule("measurement-files", "user.conf and README.md are there and not empty.",
          checker_source("REQUIRED_MEASURE_FILES"), "add it", "checks"),
    _rule("measurements-json", "The measurements description is there and sound.",
          checker_source("MEASUREMENTS_PATH"), "write it (`paceline submit` does)", "checks"),
    _rule("measurement-fields", "Its five fields are filled.", MEASUREMENT_FIELDS.source,
          "fill them in", "checks"),
    _rule("user-conf-grammar", "LoadGen reads every line of user.conf.",
          _SETTINGS, "write `model.scenario.key = value`, with the spaces",
          "never"),
    _rule("readme", "The README tells how to repeat the run.", _POLICY,
          "write the commands, recipe and versions (`paceline submit` does)", "never"),
)
# fmt: on
