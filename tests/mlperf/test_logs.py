"""LoadGen's logs, sound and damaged: nothing in a file may raise, nothing may be lost unsaid."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.errors import DataError
from paceline.mlperf.logs import read_accuracy, read_detail, read_summary

_AMD = (
    Path(__file__).parents[3]
    / "shared/fixtures/amd-v5.1/closed/AMD/results/8xMI300X_2xEPYC_9575F/llama2-70b-99.9"
)
needs_amd_logs = pytest.mark.skipif(
    not _AMD.exists(), reason="AMD's published v5.1 logs (../shared/fixtures) are not here"
)


def _detail_line(key: str, value: object, *, error: bool = False, warning: bool = False) -> str:
    record = {
        "key": key,
        "value": value,
        "time_ms": 1.5,
        "metadata": {"is_error": error, "is_warning": warning, "line_no": 7},
    }
    return ":::MLLOG " + json.dumps(record) + "\n"


def _entry(index: int, ids: list[int], *, seq_id: int = 0, count: int | None = None) -> str:
    data = b"".join(i.to_bytes(4, "little") for i in ids).hex().upper()
    count = len(ids) if count is None else count
    return (
        f'{{ "seq_id" : {seq_id}, "qsl_idx" : {index}, "data" : "{data}", '
        f'"token_count" : {count} }}'
    )


def _array(entries: list[str]) -> str:
    """The text that LoadGen writes around entries."""
    return "[" + ",".join("\n" + entry for entry in entries) + "\n]\n"


def test_first_value_of_a_repeated_key_is_the_one(tmp_path: Path) -> None:
    path = tmp_path / "detail.txt"
    path.write_text(_detail_line("generic_message", "a") + _detail_line("generic_message", "b"))
    log = read_detail(path)
    assert log.get("generic_message") == "a"
    assert [record.value for record in log.records] == ["a", "b"]
    assert log.get("absent") is None
    assert "absent" not in log


def test_errors_and_warnings_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "detail.txt"
    path.write_text(
        _detail_line("error_runtime", "x", error=True)
        + _detail_line("warning_generic_message", "y", warning=True)
        + _detail_line("result_validity", "INVALID")
    )
    log = read_detail(path)
    assert [record.value for record in log.errors] == ["x"]
    assert [record.value for record in log.warnings] == ["y"]
    assert log.result_validity == "INVALID"


def test_damaged_detail_lines_are_listed_with_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "detail.txt"
    path.write_bytes(
        _detail_line("sut_name", "PySUT").encode()
        + b"noise\n"
        + b":::MLLOG {broken\n"
        + b':::MLLOG {"value": 1}\n'
        + b":::MLLOG [1]\n"
        + b"\xff\xfe\n\n"
        + _detail_line("sut_name", "later").encode()[:40]
    )
    log = read_detail(path)
    assert log.get("sut_name") == "PySUT"
    assert [fault.line_no for fault in log.malformed] == [2, 3, 4, 5, 6, 8]


@given(st.binary(max_size=400))
def test_no_bytes_make_the_readers_raise(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes
) -> None:
    path = tmp_path_factory.mktemp("junk") / "log"
    path.write_bytes(b":::MLLOG " + junk)
    read_detail(path)
    read_summary(path)
    for dtype in ("int32", "int64", "float32"):
        read_accuracy(path, dtype=dtype)


def test_absent_log_is_named() -> None:
    for read in (read_detail, read_summary, read_accuracy):
        with pytest.raises(DataError, match=r"nowhere/log.*cannot read"):
            read(Path("nowhere/log"))


_SERVER_6 = """================================================
MLPerf Results Summary
================================================
SUT name : PySUT
Scenario : Server
Mode     : PerformanceOnly
Completed samples per second    : 81.68
Completed tokens per second: 24593.77
Result is : INVALID
  Performance constraints satisfied : NO
  Min duration satisfied : Yes
  Min queries satisfied : Yes
  Early stopping satisfied: Yes
TTFT Early Stopping Result:
 * Run successful.

================================================
Additional Stats
================================================
Min latency (ns)                : 980187992
Min Time per Output Token (ns)                : 30262518
50.00 percentile time per output token (ns)   : 151044504
================================================
Test Parameters Used
================================================
target_qps : 83.5
ttft_latency (ns): 2000000000

1 warning encountered. See detailed log.

2 ERRORS encountered. See detailed log.
"""


def test_server_summaries_of_5_1_and_6_give_the_same_names(tmp_path: Path) -> None:
    new, old = tmp_path / "6.txt", tmp_path / "5.txt"
    new.write_text(_SERVER_6)
    old.write_text(
        _SERVER_6.replace("Time per Output", "Time to Output").replace("time per", "time to")
    )
    summary = read_summary(new)
    assert summary.statistics == read_summary(old).statistics
    assert summary.statistics["Min Time per Output Token (ns)"] == 30262518
    assert (summary.samples_per_second, summary.tokens_per_second) == (81.68, 24593.77)
    assert (summary.scenario, summary.mode, summary.result) == (
        "Server",
        "PerformanceOnly",
        "INVALID",
    )
    assert summary.satisfied["Performance constraints"] is False
    assert summary.satisfied["Early stopping"] is True
    assert summary.parameters == {"target_qps": 83.5, "ttft_latency (ns)": 2e9}
    assert (summary.num_warnings, summary.num_errors) == (1, 2)


def test_accuracy_summary_has_counts_only(tmp_path: Path) -> None:
    path = tmp_path / "summary.txt"
    path.write_text(
        "\nNo warnings encountered during test.\n\nNo errors encountered during test.\n"
    )
    summary = read_summary(path)
    assert (summary.num_warnings, summary.num_errors, summary.result) == (0, 0, None)


_ids = st.lists(st.integers(0, 2**31 - 1), max_size=6)


@given(entries=st.lists(st.tuples(st.integers(0, 50), _ids), max_size=8), other=st.booleans())
def test_ids_come_back_as_they_were_logged(
    tmp_path_factory: pytest.TempPathFactory, entries: list[tuple[int, list[int]]], other: bool
) -> None:
    text = _array([_entry(index, ids, seq_id=k) for k, (index, ids) in enumerate(entries)])
    if other:  # another JSON writer: no line breaks, small digits, another order of keys
        text = json.dumps(
            [
                dict(sorted((k, str(v).lower() if k == "data" else v) for k, v in entry.items()))
                for entry in json.loads(text)
            ]
        )
    path = tmp_path_factory.mktemp("log") / "mlperf_log_accuracy.json"
    path.write_text(text)
    log = read_accuracy(path)
    assert log.malformed == ()
    assert log.closed
    assert not log.truncated
    assert log.qsl_idx.tolist() == [index for index, _ in entries]
    assert log.seq_id.tolist() == list(range(len(entries)))
    assert [ids.tolist() for ids in log.tokens] == [ids for _, ids in entries]
    if entries:
        assert log.token_count is not None
        assert log.token_count.tolist() == [len(ids) for _, ids in entries]


def test_entries_split_at_any_chunk_border_are_whole(tmp_path: Path) -> None:
    # A chunk is 1 MiB; 1,500 entries of 250 ids are 3 MB.
    path = tmp_path / "mlperf_log_accuracy.json"
    ids = list(range(250))
    path.write_text(_array([_entry(k, ids, seq_id=k) for k in range(1500)]))
    log = read_accuracy(path)
    assert len(log) == 1500
    assert log.malformed == ()
    assert log.tokens.flat.tolist() == ids * 1500


def test_first_tokens_of_server_runs_are_read(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text(
        '[\n{ "seq_id" : 1, "qsl_idx" : 2, "data" : "C20100000D000000", '
        '"token_data" : "C2010000", "token_count" : 2 }\n]\n'
    )
    log = read_accuracy(path)
    assert log.token_data is not None
    assert log.token_data[0].tolist() == [450]
    assert log.tokens[0].tolist() == [450, 13]


def test_performance_log_is_empty_and_sound(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("[\n]\n")
    log = read_accuracy(path)
    assert (len(log), log.closed, log.malformed, log.token_count) == (0, True, (), None)


def test_log_truncated_for_submission_is_recognised(tmp_path: Path) -> None:
    whole = _array([_entry(k, list(range(100)), seq_id=k) for k in range(50)])
    path = tmp_path / "log"
    path.write_text(whole[:4096] + "\n\n...\n\n" + whole[-4096:])
    log = read_accuracy(path)
    assert log.truncated
    assert log.closed
    assert 2 <= len(log) < 50
    assert log.tokens[0].tolist() == list(range(100))


def test_log_of_a_killed_run_keeps_its_whole_entries(tmp_path: Path) -> None:
    whole = _array([_entry(k, [k, 2], seq_id=k) for k in range(5)])
    path = tmp_path / "log"
    path.write_text(whole[: whole.index('"qsl_idx" : 3')])
    log = read_accuracy(path)
    assert log.qsl_idx.tolist() == [0, 1, 2]
    assert not log.closed
    assert [fault.line_no for fault in log.malformed] == [5]


@pytest.mark.parametrize(
    ("entry", "detail"),
    [
        ('{ "seq_id" : 0, "qsl_idx" : 1, "data" : "C201" }', "whole number"),
        ('{ "seq_id" : 0, "qsl_idx" : 1, "data" : "C2010000F" }', "hexadecimal"),
        ('{ "seq_id" : 0, "data" : "C2010000" }', "qsl_idx is missing"),
        ('{ "seq_id" : 0, "qsl_idx" : "1", "data" : "C2010000" }', "qsl_idx is missing"),
        ('{ "seq_id" : 0, "qsl_idx" : 99999999999999999999, "data" : "" }', "63 bits"),
    ],
)
def test_entry_that_cannot_be_read_is_listed(tmp_path: Path, entry: str, detail: str) -> None:
    path = tmp_path / "log"
    path.write_text(_array([_entry(7, [1, 2]), entry]))
    log = read_accuracy(path)
    assert log.qsl_idx.tolist() == [7]
    assert [fault.line_no for fault in log.malformed] == [3]
    assert detail in log.malformed[0].detail


def test_int64_log_read_as_such_and_int32_log_refused_as_int64(tmp_path: Path) -> None:
    path = tmp_path / "log"
    data = b"".join(i.to_bytes(8, "little") for i in (450, 2)).hex()
    path.write_text(f'[{{"seq_id": 0, "qsl_idx": 1, "data": "{data}"}}]')
    assert read_accuracy(path, dtype="int64").tokens[0].tolist() == [450, 2]
    path.write_text(_array([_entry(1, [450, 2])]))
    (fault,) = read_accuracy(path, dtype="int64").malformed
    assert "another type than int64" in fault.detail


@needs_amd_logs
@pytest.mark.parametrize("scenario", ["Offline", "Server", "Interactive"])
def test_amd_logs_are_sound(scenario: str) -> None:
    run = _AMD / scenario / "performance/run_1"
    detail = read_detail(run / "mlperf_log_detail.txt")
    summary = read_summary(run / "mlperf_log_summary.txt")
    assert detail.malformed == ()
    assert detail.errors == []
    assert detail.result_validity == summary.result == "VALID"
    assert summary.num_warnings == len(detail.warnings)
    assert summary.scenario == ("Offline" if scenario == "Offline" else "Server")
    rate = detail.get("result_tokens_per_second", detail.get("result_completed_tokens_per_second"))
    assert summary.tokens_per_second == pytest.approx(rate, rel=1e-5)
    assert all(summary.satisfied.values())
    assert summary.parameters["ttft_latency (ns)"] > 0
    assert len(read_accuracy(run / "mlperf_log_accuracy.json")) == 0


@needs_amd_logs
@pytest.mark.parametrize("scenario", ["Offline", "Server", "Interactive"])
def test_amd_accuracy_logs_are_read(scenario: str) -> None:
    cut = read_accuracy(_AMD / scenario / "accuracy/mlperf_log_accuracy.json")
    assert cut.truncated
    assert cut.closed
    log = read_accuracy(_AMD / scenario / "TEST06/accuracy/mlperf_log_accuracy.json")
    assert len(set(log.qsl_idx.tolist())) == 100
    assert log.malformed == ()
    assert log.token_count is not None
    assert log.token_count.tolist() == log.tokens.lens.tolist()
    assert (log.token_data is None) == (scenario == "Offline")
    assert log.tokens.flat.max() < 32000
