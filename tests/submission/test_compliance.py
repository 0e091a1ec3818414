"""TEST06: its settings, its run through the real LoadGen, and what its raw log shows."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import Paceline

from paceline.harness import audit
from paceline.mlperf import test06
from paceline.mlperf.logs import AccuracyLog, read_accuracy, read_detail

FAKE = ("run", "--engine", "fake")
AUDIT_CONFIG = """\
*.*.mode = 2
*.*.accuracy_log_rng_seed = 720381539243781796
*.*.accuracy_log_sampling_target = 100
*.*.min_query_count = 100
*.*.min_duration = 0
*.*.sample_concatenate_permutation = 0
"""


def entry(index: int, ids: list[int], first: list[int] | None = None, count: int = -1) -> str:
    def packed(values: list[int]) -> str:
        return b"".join(value.to_bytes(4, "little") for value in values).hex().upper()

    token_data = f', "token_data" : "{packed(first)}"' if first is not None else ""
    return (
        f'{{ "seq_id" : {index}, "qsl_idx" : {index}, "data" : "{packed(ids)}"{token_data}, '
        f'"token_count" : {len(ids) if count < 0 else count} }}'
    )


def raw_log(folder: Path, *entries: str) -> AccuracyLog:
    path = folder / "mlperf_log_accuracy.json"
    path.write_text("[\n" + ",\n".join(entries) + "\n]\n")
    return read_accuracy(path)


def verified(log: AccuracyLog, scenario: str = "Offline") -> test06.Test06:
    return test06.verify(log, scenario=scenario, eos_token_id=2, num_samples=len(log))


def test_the_audit_settings_are_the_official_ones() -> None:
    assert test06.audit_config() == AUDIT_CONFIG


def test_a_benchmark_of_fewer_samples_logs_them_all() -> None:
    assert audit.samples_of(16) == 16
    assert audit.samples_of(24576) == 100
    assert "min_query_count = 16\n" in test06.audit_config(16)


def test_a_sound_offline_log_passes_and_the_first_token_is_skipped(tmp_path: Path) -> None:
    result = verified(raw_log(tmp_path, entry(3, [5, 6, 2]), entry(4, [7, 8, 9])))
    assert result.passed
    assert test06.verification_text(result) == (
        "First token check pass: Skipped\n"
        "EOS check pass: True\n"
        "Sample length check pass: True\n"
        "TEST06 verification complete\n"
    )


@pytest.mark.parametrize(
    ("ids", "passes"),
    [
        ([5, 2], True),
        ([5, 6, 2], True),
        ([5, 2, 2], False),
        ([5, 2, 2, 2], False),
        ([5, 2, 6, 2], True),
        ([5, 2, 2, 6], True),
        ([2, 2], True),
        ([2, 2, 2], False),
    ],
)
def test_more_than_one_end_token_at_the_end_fails(
    tmp_path: Path, ids: list[int], passes: bool
) -> None:
    assert verified(raw_log(tmp_path, entry(3, ids))).end is passes


def test_a_count_that_is_not_the_length_fails_and_names_the_sample(tmp_path: Path) -> None:
    result = verified(raw_log(tmp_path, entry(3, [5, 6]), entry(41, [5, 6], count=3)))
    assert not result.lengths
    assert "samples 41" in next(f.detail for f in result.findings if f.rule == "lengths")
    assert test06.verification_text(result).endswith("TEST06 verification failed\n")


def test_another_first_token_than_was_reported_fails(tmp_path: Path) -> None:
    good = raw_log(tmp_path, entry(3, [5, 6], first=[5]))
    assert verified(good, "Server").first_token is True
    bad = raw_log(tmp_path, entry(3, [5, 6], first=[6]))
    assert verified(bad, "Server").first_token is False


def test_a_first_token_that_was_never_reported_fails(tmp_path: Path) -> None:
    assert verified(raw_log(tmp_path, entry(3, [5, 6])), "Interactive").first_token is False
    assert verified(raw_log(tmp_path, entry(3, [5, 6], first=[])), "Server").first_token is False


def test_samples_that_are_missing_or_repeated_fail(tmp_path: Path) -> None:
    log = raw_log(tmp_path, entry(3, [5, 6]), entry(3, [5, 6]))
    assert not verified(log).passed
    few = test06.verify(raw_log(tmp_path, entry(3, [5, 6])), scenario="Offline", eos_token_id=2)
    assert "expected 100" in few.findings[0].detail
    assert not few.passed


def test_an_entry_that_cannot_be_read_fails_every_check(tmp_path: Path) -> None:
    result = verified(raw_log(tmp_path, entry(3, [5, 6]), '{ "seq_id" : 1 }'))
    assert (result.end, result.lengths, result.passed) == (False, False, False)


@pytest.mark.parametrize("scenario", ["Offline", "Server", "Interactive"])
def test_real_logs_give_the_texts_that_were_submitted_with_them(
    real_logs: Path, scenario: str
) -> None:
    found = sorted(real_logs.glob(f"**/{scenario}/TEST06/verify_accuracy.txt"))
    assert found
    for text in found:
        log = read_accuracy(text.parent / "accuracy" / "mlperf_log_accuracy.json")
        result = test06.verify(log, scenario=scenario, eos_token_id=2)
        assert test06.verification_text(result) == text.read_text()


def test_a_compliance_run_is_made_under_the_audit_settings_and_leaves_none(
    paceline: Paceline, tmp_path: Path
) -> None:
    outcome = paceline(*FAKE, "--mode", "compliance", "--out", "run", "--json")
    assert outcome.code == 0, outcome
    assert outcome.json["compliance"] == "PASS"
    folder = tmp_path / "run/compliance"
    assert not (folder / "audit.config").exists()
    log = read_detail(folder / "mlperf_log_detail.txt")
    assert log.get("effective_accuracy_log_rng_seed") == 720381539243781796
    assert log.get("effective_test_mode") == "PerformanceOnly"
    assert log.get("effective_samples_per_query") == 96
    assert len(read_accuracy(folder / "mlperf_log_accuracy.json")) == 96
    assert "complete" in (folder / "verify_accuracy.txt").read_text()


def test_all_is_two_tests_and_submission_is_three(paceline: Paceline, tmp_path: Path) -> None:
    """And only the compliance test sees the audit settings."""
    paceline(*FAKE, "--mode", "all", "--out", "all")
    paceline(*FAKE, "--mode", "submission", "--out", "three")
    assert not (tmp_path / "all/compliance").exists()
    manifest = json.loads((tmp_path / "three/manifest.json").read_text())
    assert list(manifest["tests"]) == ["performance", "accuracy", "compliance"]
    audited = [
        name
        for name in ("performance", "accuracy", "compliance")
        if "Audit Config" in (tmp_path / f"three/{name}/mlperf_log_detail.txt").read_text()
    ]
    assert audited == ["compliance"]


def test_settings_that_a_killed_run_left_are_gone_when_it_goes_on(
    paceline: Paceline, tmp_path: Path
) -> None:
    paceline(*FAKE, "--mode", "submission", "--out", "run", "--set", "engine.fake.fail_after=3")
    (tmp_path / "run/performance").mkdir(exist_ok=True)
    for name in ("performance", "accuracy", "compliance"):
        (tmp_path / "run" / name).mkdir(exist_ok=True)
        (tmp_path / "run" / name / "audit.config").write_text(AUDIT_CONFIG)
    paceline("run", "--resume", "run")
    assert not list((tmp_path / "run").rglob("audit.config"))
    assert "Audit" not in (tmp_path / "run/performance/mlperf_log_detail.txt").read_text()


def test_a_killed_compliance_run_leaves_no_settings_behind(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "paceline", *FAKE, "--mode", "compliance", "--out", "run"]
    slow = ["--set", "engine.fake.tokens_per_second=50"]
    folder = tmp_path / "run/compliance"
    with subprocess.Popen([*command, *slow], cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
        deadline_s = time.monotonic() + 60
        timeline = folder / "timeline.jsonl"
        while time.monotonic() < deadline_s and not (timeline.exists() and timeline.stat().st_size):
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert timeline.stat().st_size
    assert not (folder / "audit.config").exists()


def test_the_settings_are_gone_even_when_loadgen_never_reads_them(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), audit.placed(tmp_path, 24576) as file:  # noqa: PT012
        assert file.path.read_text() == AUDIT_CONFIG
        raise RuntimeError("LoadGen failed")
    assert not (tmp_path / "audit.config").exists()
