"""The checker on good trees, and on trees with one thing wrong: each is found, under its rule."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from support import Paceline

from paceline.errors import InputError
from paceline.mlperf.rules import ROUNDS
from paceline.submission.check import TreeFinding, check_tree, examine_tree
from paceline.submission.check.sample_tree import SampleTree, write_sample_tree
from paceline.submission.check.summary_csv import summary_csv

ALL = ("Offline", "Server", "Interactive")
Edit = Callable[[Path], None]


@pytest.fixture(scope="module")
def closed_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sample = SampleTree(scenarios=ALL)
    return write_sample_tree(tmp_path_factory.mktemp("closed") / "tree", sample)


@pytest.fixture
def tree(closed_tree: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "tree"
    shutil.copytree(closed_tree, copy)
    return copy


def failing(tree: Path, **options: str) -> dict[str, TreeFinding]:
    return {found.rule: found for found in check_tree(tree, **options) if not found.passed}


def base(tree: Path) -> Path:
    return next(path for path in tree.glob("*/*") if path.is_dir())


def scenario(tree: Path, name: str = "Offline") -> Path:
    return next(base(tree).glob(f"results/*/*/{name}"))


def detail(tree: Path, name: str = "Offline", *, accuracy: bool = False) -> Path:
    run = "accuracy" if accuracy else "performance/run_1"
    return scenario(tree, name) / run / "mlperf_log_detail.txt"


def put(key: str, value: object, name: str = "Offline", *, accuracy: bool = False) -> Edit:
    """Give a record of a detail log another value."""

    def edit(tree: Path) -> None:
        path = detail(tree, name, accuracy=accuracy)
        old = re.compile(rf'("key": "{re.escape(key)}", "value": )[^\n]*?(, "time_ms")')
        text, count = old.subn(
            lambda match: match[1] + json.dumps(value) + match[2], path.read_text()
        )
        assert count == 1, key
        path.write_text(text)

    return edit


def add(key: str, value: object, name: str = "Offline", *, accuracy: bool = False) -> Edit:
    """Add a record, marked as an error or a warning when its key says so."""

    def edit(tree: Path) -> None:
        kind = "is_error" if key.startswith("error") else "is_warning"
        record = {"key": key, "value": value, "time_ms": 1, "metadata": {kind: True}}
        with detail(tree, name, accuracy=accuracy).open("a") as log:
            log.write(f":::MLLOG {json.dumps(record)}\n")

    return edit


def swap(pattern: str, old: str, new: str) -> Edit:
    """Replace text in one file of the submitter's directory."""

    def edit(tree: Path) -> None:
        path = sorted(base(tree).glob(pattern))[0]
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return edit


def field(name: str, value: object) -> Edit:
    """Set a field of the system description."""

    def edit(tree: Path) -> None:
        path = next(base(tree).glob("systems/*.json"))
        path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))

    return edit


def remove(pattern: str) -> Edit:
    def edit(tree: Path) -> None:
        path = sorted(base(tree).glob(pattern))[0]
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return edit


def write(pattern: str, name: str, data: bytes) -> Edit:
    def edit(tree: Path) -> None:
        path = sorted(base(tree).glob(pattern))[0] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    return edit


def audited(tree: Path) -> None:
    text = "Found Audit Config file (audit.config). Overriding TestSettings"
    add("warning_generic_message", text)(tree)


def compliance_as_accuracy(tree: Path) -> None:
    put("effective_test_mode", "PerformanceOnly", accuracy=True)(tree)
    put("generated_samples_per_query", 100, accuracy=True)(tree)


def move_benchmark(tree: Path) -> None:
    path = next(base(tree).glob("results/*/*"))
    path.rename(path.with_name("llama2-70b-99"))


def drop_interactive_and_server(tree: Path) -> None:
    for name in ("Server", "Interactive"):
        shutil.rmtree(scenario(tree, name))


V60 = ROUNDS["v6.0"].seeds
DETAIL = "results/*/*/Offline/performance/run_1/mlperf_log_detail.txt"
SUMMARY = "results/*/*/Offline/performance/run_1/mlperf_log_summary.txt"
SCORES = "results/*/*/Offline/accuracy/accuracy.txt"
RAW = "results/*/*/Offline/TEST06/accuracy/mlperf_log_accuracy.json"
SERVER_RAW = "results/*/*/Server/TEST06/accuracy/mlperf_log_accuracy.json"
VERIFIED = "results/*/*/Offline/TEST06/verify_accuracy.txt"
MEASURED = "results/*/*/Offline/measurements.json"
EOS = "02000000"
TTFT = "result_first_token_99.00_percentile_latency_ns"
TPOT = "result_time_per_output_token_99.00_percentile_ns"

SHORT_ANSWERS = (
    "[\n"
    + ",\n".join(
        f'{{ "seq_id" : {i}, "qsl_idx" : {i}, "data" : "3201000002000000", "token_count" : 2 }}'
        for i in range(24576)
    )
    + "\n]\n"
).encode()
WRONG: dict[str, tuple[str, Edit]] = {
    "invalid run": ("run-valid", put("result_validity", "INVALID")),
    "no verdict": ("run-valid", put("result_validity", None)),
    "loadgen error": ("performance-no-errors", add("error_runtime", "n_tokens is 0")),
    "error in accuracy": ("accuracy-no-errors", add("error_runtime", "x", accuracy=True)),
    "configured too short": ("min-duration", put("effective_min_duration_ms", 1000)),
    "ran a tenth of a second": ("ran-long-enough", put("result_max_latency_ns", 100_000_000)),
    "wall clock too short": ("ran-long-enough", put("power_end", "07-31-2026 12:00:01.000")),
    "server too short": (
        "ran-long-enough",
        put("generated_query_duration", 5_000_000_000, "Server"),
    ),
    "accuracy of 100 samples": (
        "accuracy-all-samples",
        put("generated_samples_per_query", 100, accuracy=True),
    ),
    "dataset of another size": (
        "accuracy-all-samples",
        put("qsl_reported_total_count", 24575, accuracy=True),
    ),
    "TEST06 as accuracy": ("accuracy-mode", compliance_as_accuracy),
    "accuracy as performance": (
        "performance-mode",
        put("effective_test_mode", "AccuracyOnly"),
    ),
    "audit in performance": ("performance-no-audit", audited),
    "answers sampled": (
        "performance-no-sampling",
        put("effective_accuracy_log_sampling_target", 100),
    ),
    "answers in performance": (
        "performance-no-answers",
        write("results/*/*/Offline/performance/run_1", "mlperf_log_accuracy.json", b"[{}]" * 9),
    ),
    "not concatenated": (
        "equal-issue",
        put("effective_sample_concatenate_permutation", False),
    ),
    "same sample": ("no-special-issue", put("effective_performance_issue_same", True)),
    "few samples loaded": (
        "performance-sample-count",
        put("effective_performance_sample_count", 100),
    ),
    "few samples per query": ("offline-samples", put("effective_samples_per_query", 2000)),
    "no token latencies": ("token-latencies", put("requested_use_token_latencies", False)),
    "seed of another round": ("round-seeds", put("effective_qsl_rng_seed", V60.qsl)),
    "scenario mismatch": ("scenario-of-directory", put("effective_scenario", "Server")),
    "early stopping": ("early-stopping", put("early_stopping_met", False, "Server")),
    "late first token": ("latency-ttft", put(TTFT, 2_000_000_000, "Server")),
    "late first token, interactive": ("latency-ttft", put(TTFT, 451_000_000, "Interactive")),
    "slow tokens, interactive": ("latency-tpot", put(TPOT, 41_000_000, "Interactive")),
    "server limits on interactive": (
        "latency-limit-ttft",
        put("requested_server_ttft_latency", 2_000_000_000, "Interactive"),
    ),
    "queries lost": ("figures-consistent", put("result_query_count", 7, "Server")),
    "figure that does not follow": (
        "figures-consistent",
        put("result_samples_per_second", 99999.0),
    ),
    "no metric": ("metric", put("result_tokens_per_second", None)),
    "NaN metric": ("metric", put("result_tokens_per_second", float("nan"))),
    "summary of another run": ("summary-agrees", swap(SUMMARY, " : VALID", " : INVALID")),
    "summary removed": ("summary", remove(SUMMARY)),
    "line of junk": ("performance-log-sound", swap(DETAIL, ':::MLLOG {"key": "sut_name"', "junk")),
    "log removed": ("performance-log", remove(DETAIL)),
    "accuracy log removed": (
        "accuracy-log",
        remove("results/*/*/Offline/accuracy/mlperf_log_detail.txt"),
    ),
    "other system's accuracy": ("same-system", put("sut_name", "Other", accuracy=True)),
    "low rouge": ("accuracy-target", swap(SCORES, "44.4465", "44.3")),
    "too many tokens": ("accuracy-target", swap(SCORES, "294.5", "400.5")),
    "tokens made up": ("accuracy-tokens-agree", swap(SCORES, "294.5", "300.5")),
    "other tokens in performance": (
        "same-tokens-per-sample",
        put("result_tokens_per_second", 1000.0),
    ),
    "100 samples scored": ("accuracy-gen-num", swap(SCORES, "24576", "100")),
    "numpy scalars": ("accuracy-txt", swap(SCORES, "44.4465", "np.float64(44.4465)")),
    "no hash": ("accuracy-hash", swap(SCORES, "hash=", "sha=")),
    "hash of nothing": ("accuracy-hash", swap(SCORES, "hash=0123456789abcdef", "hash=xyz")),
    "not truncated": (
        "accuracy-truncated",
        write("results/*/*/Offline/accuracy", "mlperf_log_accuracy.json", b" " * 20000),
    ),
    "whole log with another's hash": (
        "accuracy-hash-of-log",
        write("results/*/*/Offline/accuracy", "mlperf_log_accuracy.json", b"[\n]\n"),
    ),
    "whole log of shorter answers": (
        "accuracy-tokens-recounted",
        write("results/*/*/Offline/accuracy", "mlperf_log_accuracy.json", SHORT_ANSWERS),
    ),
    "no TEST06": ("test06-present", remove("results/*/*/Server/TEST06")),
    "TEST06 not verified": ("test06-verified", swap(VERIFIED, "EOS check pass: True", "EOS")),
    "first token skipped in Server": (
        "test06-verified",
        swap("results/*/*/Server/TEST06/verify_accuracy.txt", "pass: True", "pass: Skipped"),
    ),
    "doubled EOS": ("test06-recomputed", swap(RAW, f'E9030000{EOS}"', f'{EOS}{EOS}"')),
    "first token of another": (
        "test06-recomputed",
        swap(SERVER_RAW, 'token_data" : "32', 'token_data" : "33'),
    ),
    "no first token": ("test06-recomputed", swap(SERVER_RAW, '"token_data"', '"token_none"')),
    "count made up": ("test06-recomputed", swap(RAW, '"token_count" : 4', '"token_count" : 5')),
    "id out of range": ("test06-raw", swap(RAW, "E8030000", "E8030001")),
    "sample out of range": ("test06-raw", swap(RAW, '"qsl_idx" : 693', '"qsl_idx" : 99999')),
    "sample twice": ("test06-raw", swap(RAW, '"qsl_idx" : 693', '"qsl_idx" : 7')),
    "TEST06 cut": ("test06-raw", swap(RAW, '{ "seq_id" : 90,', "")),
    "no measurements": ("measurements-json", remove(MEASURED)),
    "field emptied": ("measurement-fields", swap(MEASURED, '"fp8"', '""')),
    "key twice": ("measurements-json", swap(MEASURED, "{", '{"retraining": "Yes",')),
    "empty user.conf": ("measurement-files", write("results/*/*/Offline", "user.conf", b"")),
    "no README": ("measurement-files", remove("results/*/*/Offline/README.md")),
    "no system": ("system-json", remove("systems/*.json")),
    "no results of a system": ("system-has-results", write("systems", "other.json", b"{}")),
    "status": ("system-status", field("status", "ready")),
    "status is no text": ("system-status", field("status", 7)),
    "edge": ("system-type", field("system_type", "edge")),
    "other submitter": ("system-submitter", field("submitter", "Someone")),
    "other division": ("system-division", field("division", "open")),
    "empty field": ("system-fields-filled", field("cooling", "")),
    "nodes in words": ("system-integers", field("number_of_nodes", "two")),
    "network in closed": ("system-network", field("is_network", "True")),
    "network as a boolean": ("system-network", field("is_network", True)),
    "network flag demands fields": ("system-network-fields", field("is_network", "false")),
    "GPU without accelerators": ("system-accelerators", field("accelerators_per_node", "0")),
    "accelerator without a name": ("system-accelerators", field("accelerator_model_name", "N/A")),
    "one scenario": ("required-scenarios", drop_interactive_and_server),
    "no Offline": ("required-scenarios", remove("results/*/*/Offline")),
    "unknown scenario": ("scenario-known", write("results/*/*", "Batch/x.txt", b"x")),
    "-99 on v6.1": ("benchmark-in-round", move_benchmark),
    "no source": ("source-dir", remove("src")),
    "no calibration": ("calibration", remove("documentation/calibration.md")),
    "extra file in a run": ("file-list", write("results/*/*/Offline/accuracy", "x.log", b"x")),
    "dot file": ("no-dot-names", write("src", ".DS_Store", b"x")),
    "space": ("no-spaces", write("src", "my code.py", b"x")),
    "cache": ("no-pycache", write("src", "__pycache__/x.pyc", b"x")),
    "secret": ("no-secrets", write("src", "run.sh", b"export HF_TOKEN=hf_" + b"aB3" * 12)),
    "key": ("no-secrets", write("src", "id", b"-----BEGIN OPENSSH PRIVATE KEY-----\n")),
    "token in prose": ("no-secrets", write("documentation", "a.md", b"ghp_" + b"a1" * 18)),
}


@pytest.mark.parametrize("round_name", sorted(ROUNDS))
@pytest.mark.parametrize("division", ["open", "closed", "network"])
def test_a_good_tree_has_nothing_to_find(tmp_path: Path, round_name: str, division: str) -> None:
    sample = SampleTree(round_name=round_name, division=division, num_systems=2, scenarios=ALL)
    found = check_tree(write_sample_tree(tmp_path / "tree", sample))
    assert len(found) > 100
    assert [finding for finding in found if finding.verdict != "PASS"] == []


def test_one_scenario_is_enough_for_open(tmp_path: Path) -> None:
    sample = SampleTree(division="open", scenarios=("Offline",))
    tree = write_sample_tree(tmp_path / "tree", sample)
    shutil.rmtree(scenario(tree) / "TEST06")
    assert failing(tree) == {}


@pytest.mark.parametrize("name", sorted(WRONG))
def test_one_thing_wrong_is_found(tree: Path, name: str) -> None:
    rule, edit = WRONG[name]
    edit(tree)
    found = failing(tree)
    assert rule in found, sorted(found)
    assert len(found[rule].detail) > 10
    assert found[rule].mend
    assert found[rule].source.commit


def test_the_accuracy_of_a_compliance_run_is_refused_in_one_sentence(tree: Path) -> None:
    compliance_as_accuracy(tree)
    found = failing(tree)
    assert list(found) == ["accuracy-mode"]
    assert "PerformanceOnly run of 100 samples" in found["accuracy-mode"].detail


def test_seeds_of_another_round_name_that_round_and_the_wheel(tmp_path: Path) -> None:
    tree = write_sample_tree(tmp_path / "tree", SampleTree(round_name="v6.0"))
    text = failing(tree, round_name="v6.1")["round-seeds"].detail
    assert "v6.0" in text
    assert ROUNDS["v6.1"].wheel in text


def test_open_keeps_what_makes_a_run_real_and_drops_the_targets(tmp_path: Path) -> None:
    tree = write_sample_tree(tmp_path / "tree", SampleTree(division="open"))
    swap(SCORES, "44.4465", "11.1")(tree)
    assert failing(tree) == {}
    put("result_validity", "INVALID")(tree)
    assert set(failing(tree)) == {"run-valid", "summary-agrees"}


def test_a_cpu_result_has_no_accelerators(tree: Path) -> None:
    field("accelerators_per_node", "0")(tree)
    field("accelerator_model_name", "N/A")(tree)
    assert failing(tree) == {}
    field("framework", "TensorRT-LLM 1.0, CUDA 13")(tree)
    assert set(failing(tree)) == {"system-accelerators"}


def test_the_old_layout_is_refused_in_a_new_round_and_the_new_one_read_in_an_old(
    tmp_path: Path,
) -> None:
    old = write_sample_tree(tmp_path / "old", SampleTree(round_name="v5.1"))
    assert "round-layout" in failing(old, round_name="v6.1")
    tree = write_sample_tree(tmp_path / "new", SampleTree(round_name="v6.0"))
    for path in tree.rglob("mlperf_log_detail.txt"):
        text = path.read_text()
        for name in ("qsl", "sample_index", "schedule"):
            ours, theirs = (str(getattr(ROUNDS[r].seeds, name)) for r in ("v6.0", "v5.1"))
            text = text.replace(ours, theirs)
        path.write_text(text)
    found = [finding for finding in check_tree(tree) if finding.verdict != "PASS"]
    assert [(finding.rule, finding.verdict) for finding in found] == [("round-layout", "WARN")]


def test_an_empty_tree_and_a_misspelt_submitter_fail(tree: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "has-results" in failing(empty)
    assert (
        "did you mean ExampleOrg" in failing(tree, submitter="ExampelOrg")["submitter-found"].detail
    )
    assert failing(tree, submitter="ExampleOrg") == {}
    assert "not a tree" in failing(base(tree))["has-results"].detail
    (tree / "closed").rename(tree / "Closed")
    assert {"division-names", "has-results"} <= set(failing(tree))


def test_a_tree_of_other_benchmarks_only_was_not_checked_and_says_so(tree: Path) -> None:
    path = next(base(tree).glob("results/*/*"))
    path.rename(path.with_name("mixtral-8x7b"))
    field("system_type", "edge")(tree)
    found = failing(tree)
    assert set(found) == {"has-results"}
    assert "nothing was checked" in found["has-results"].detail


def test_links_are_found_and_never_followed(tree: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_text("hf_" + "aB3" * 12)
    source = base(tree) / "src"
    (source / "out").symlink_to(outside)
    (source / "loop").symlink_to(source)
    (source / "nowhere").symlink_to("/does/not/exist")
    log = detail(tree)
    log.unlink()
    log.symlink_to(outside / "secret.txt")
    found = [finding for finding in check_tree(tree) if not finding.passed]
    assert len([finding for finding in found if finding.rule == "no-links"]) == 4
    assert "no-secrets" not in {finding.rule for finding in found}
    assert "performance-log" in {finding.rule for finding in found}


def test_a_pipe_or_a_socket_is_never_opened(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detail(tree).unlink()
    os.mkfifo(detail(tree))
    os.mkfifo(base(tree) / "src" / "pipe")
    monkeypatch.chdir(base(tree) / "src")  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        found = failing(tree)
    assert {"ordinary-files", "performance-log"} <= set(found)


@pytest.mark.parametrize("pattern", ["src/README.md", DETAIL, SUMMARY, SCORES, RAW, VERIFIED])
def test_a_file_of_a_terabyte_without_content_is_found_and_not_read(
    tree: Path, pattern: str
) -> None:
    os.truncate(next(base(tree).glob(pattern)), 1 << 40)
    assert "file-size" in failing(tree)


def test_names_that_are_no_text_are_shown_escaped(tree: Path, paceline: Paceline) -> None:
    for name in (b"\xff\xfe.py", b"a\nb.py", b"\x1b[31m.py", b"..\\up.py"):
        (base(tree) / "src" / os.fsdecode(name)).write_bytes(b"x")
    assert "printable-names" in failing(tree)
    outcome = paceline("check", tree)
    assert outcome.code == 1
    assert "\x1b" not in outcome.out
    assert paceline("check", tree, "--json").code == 1


def test_the_verb_prints_data_and_ends_with_the_right_code(tree: Path, paceline: Paceline) -> None:
    good = paceline("check", tree, "--json", "--csv", "summary.csv")
    assert good.code == 0
    assert {"path", "rule", "source", "verdict", "detail", "mend"} <= set(good.json[0])
    assert (tree.parent / "summary.csv").read_text().count("\n") == 4
    put("result_validity", "INVALID")(tree)
    bad = paceline("check", tree)
    assert bad.code == 1
    assert "FAIL" in bad.out
    assert "run-valid" in bad.out
    assert paceline("check", tree / "nothing").code == 2
    assert paceline("check", tree, "--round", "v9").code == 2


def test_a_tree_that_is_no_directory_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such directory"):
        check_tree(tmp_path / "nothing")


def test_only_passing_results_are_in_the_summary(tree: Path) -> None:
    put("result_validity", "INVALID", "Server")(tree)
    rows = summary_csv(examine_tree(tree)).splitlines()
    assert len(rows) == 3
    assert rows[1].startswith('"ExampleOrg","available","closed","datacenter"')


def test_a_tree_of_many_results_is_checked_the_same_in_many_processes(tmp_path: Path) -> None:
    tree = write_sample_tree(tmp_path / "tree", SampleTree(num_systems=15))
    assert examine_tree(tree, processes=2).findings == examine_tree(tree, processes=1).findings


def test_the_bench_says_how_long_and_how_many(paceline: Paceline) -> None:
    measured = paceline("bench", "check", "--directories", 4, "--json").json
    assert measured["directories"] == 4
    assert measured["failing"] == 0
    assert measured["seconds"] > 0
