"""Server and Interactive runs through the command line, the real LoadGen and the fake engine."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support import Paceline

from paceline.mlperf.logs import read_accuracy

pytestmark = pytest.mark.timed

FAKE = ("run", "--engine", "fake", "--scenario")
LIMITS_MS = {"Server": (3000, 500), "Interactive": (1500, 250)}
# 40 tokens an answer: 50 samples/s.
PACED = ("--set", "engine.fake.tokens_per_second=1600", "--set", "engine.fake.concurrency=4")


def rate(target_qps: float) -> tuple[str, str]:
    return "--set", f"loadgen.target_qps={target_qps}"


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.mark.parametrize("scenario", ["Server", "Interactive"])
def test_a_run_has_first_tokens_in_every_mode_and_the_scenarios_limits(
    paceline: Paceline, tmp_path: Path, scenario: str
) -> None:
    outcome = paceline(
        *FAKE, scenario, "--mode", "submission", *rate(300), "--out", "run", "--json"
    )
    verdict = outcome.json
    assert (verdict["result"], verdict["compliance"]) == ("VALID", "PASS"), outcome
    ttft_ms, tpot_ms = LIMITS_MS[scenario]
    assert verdict["latency_limits_ms"] == {"ttft": ttft_ms, "tpot": tpot_ms}
    assert 0 < verdict["ttft_p90_ms"] < ttft_ms
    assert 0 <= verdict["tpot_p90_ms"] < tpot_ms
    assert verdict["target_qps"] == 300
    assert verdict["scheduled_samples_per_second"] == pytest.approx(300, rel=0.3)
    for test in ("accuracy", "compliance"):
        log = read_accuracy(tmp_path / "run" / test / "mlperf_log_accuracy.json")
        assert len(log) == 96
        assert log.token_data is not None
        for ids, first in zip(log.tokens, log.token_data, strict=True):
            assert first.tolist() == ids[:1].tolist()
    said = (tmp_path / "run/compliance/verify_accuracy.txt").read_text()
    assert "First token check pass: True" in said
    assert not [f for f in verdict["findings"] if not f["passed"] and "errors" in f["rule"]]


def test_too_high_a_rate_is_invalid_and_says_what_missed_by_how_much(
    paceline: Paceline, tmp_path: Path
) -> None:
    run = (*FAKE, "Interactive", "--mode", "performance", *rate(150), *PACED)
    outcome = paceline(*run, "--set", "loadgen.min_query_count=400", "--out", "run")
    assert outcome.code == 1
    assert "INVALID" in outcome.out
    assert "times the limit" in outcome.out
    assert "--find-qps" in outcome.out
    assert "p90 TTFT" in outcome.err  # while it ran
    verdict = read_json(tmp_path / "run/verdict.json")
    failed = {finding["rule"] for finding in verdict["findings"] if not finding["passed"]}
    assert failed == {"performance.valid", "performance.ttft", "performance.early_stopping"}
    (early,) = [f for f in verdict["findings"] if f["rule"] == "performance.early_stopping"]
    assert re.search(
        r"TTFT: \d+ queries are too few to believe .* at least \d+ more", early["detail"]
    )
    assert verdict["ttft_p90_ms"] > 1500
    lines = (tmp_path / "run/performance/timeline.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["ttft_p90_ms"] > 1000


def test_a_rate_is_asked_for_by_name(paceline: Paceline) -> None:
    outcome = paceline(*FAKE, "Server", "--out", "run")
    assert outcome.code == 2
    assert "--find-qps" in outcome.err
    assert "loadgen.target_qps" in outcome.err


def test_an_answer_that_never_comes_ends_a_server_run(paceline: Paceline) -> None:
    stall = ("--set", "engine.fake.stall_after=9", "--set", "run.stall_timeout_s=1")
    outcome = paceline(*FAKE, "Server", "--mode", "performance", *rate(100), *stall, "--out", "run")
    assert outcome.code == 3
    assert "made nothing" in outcome.err


def wait_for(path: Path, text: str) -> None:
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        if path.exists() and text in path.read_text():
            return
        time.sleep(0.01)
    pytest.fail(f"no {text} in {path} within a minute")


def killed(folder: Path, *arguments: str, when: tuple[Path, str]) -> None:
    """A run that is killed when a file has some text, and its child gone."""
    command = [sys.executable, "-m", "paceline", *arguments, "--out", "run"]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL) as process:
        wait_for(*when)
        process.send_signal(signal.SIGKILL)
    for _ in range(400):
        shown = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
        if str(folder / "run") not in shown.stdout:
            return
        time.sleep(0.05)
    pytest.fail("the child of the killed run is still there")


def test_a_killed_accuracy_run_resumes_to_the_log_of_an_undisturbed_one(
    paceline: Paceline, tmp_path: Path
) -> None:
    run = (*FAKE, "Server", "--mode", "accuracy", *rate(50))
    paceline(*run, "--out", "whole")
    journal = tmp_path / "run/accuracy/journal.jsonl"
    killed(tmp_path, *run, when=(journal, "\n"))
    before = journal.read_text().count("\n")
    assert 0 < before < 96
    outcome = paceline("run", "--resume", "run")
    assert "finished before and kept" in outcome.err
    log = "accuracy/mlperf_log_accuracy.json"
    assert (tmp_path / "run" / log).read_bytes() == (tmp_path / "whole" / log).read_bytes()


FIND = ("--find-qps", "--mode", "performance", *PACED, "--set", "find_qps.precision=0.1")


@pytest.mark.slow
def test_a_killed_search_goes_on_and_ends_near_the_engines_capacity(
    paceline: Paceline, tmp_path: Path
) -> None:
    faster = ("--set", "engine.fake.tokens_per_second=16000", "--set", "find_qps.probe_s=4")
    run = (*FAKE, "Server", *FIND, *faster)
    probes = tmp_path / "run/find_qps/probes.json"
    killed(tmp_path, *run, when=(probes, '"number": 4'))
    before = read_json(probes)["probes"]
    outcome = paceline("run", "--resume", "run", "--json")
    verdict = outcome.json
    made = read_json(probes)["probes"]
    assert made[: len(before)] == before
    assert [probe["number"] for probe in made] == list(range(1, len(made) + 1))
    assert verdict["result"] == "VALID", outcome
    assert verdict["find_qps"]["num_probes"] == len(made)
    # Of 500 samples/s, by probes of four seconds in which LoadGen's arrivals are uneven.
    assert 425 <= verdict["find_qps"]["found_qps"] <= 575
    assert verdict["target_qps"] <= verdict["find_qps"]["found_qps"]
    account = (tmp_path / "run/find_qps/probes.txt").read_text()
    assert account.count("\n") == len(made)
    assert f"probe {len(made)}, " in outcome.err


def test_a_final_run_that_is_invalid_is_made_again_lower_and_counted(
    paceline: Paceline, tmp_path: Path
) -> None:
    """A search that was far too hopeful, as one on a quieter machine might be."""
    faster = ("--set", "engine.fake.tokens_per_second=6400", "--set", "find_qps.margin=0.5")
    small = ("--set", "find_qps.probe_s=1", "--set", "find_qps.precision=0.4")
    paceline(*FAKE, "Interactive", *FIND, *faster, *small, "--out", "run")
    path = tmp_path / "run/manifest.json"
    manifest = read_json(path)
    manifest["status"] = "INTERRUPTED"
    del manifest["tests"]["performance"]
    manifest["tests"]["find_qps"]["found_qps"] = 2000.0
    # 200 samples/s: at 500 of them the last of 600 queries wait 1.8 s, and 1.5 s is the limit.
    manifest["config"]["loadgen"] |= {"target_qps": None, "min_query_count": 600}
    path.write_text(json.dumps(manifest))
    outcome = paceline("run", "--resume", "run")
    verdict = read_json(tmp_path / "run/verdict.json")
    attempts = verdict["find_qps"]["attempts"]
    assert [attempt["target_qps"] for attempt in attempts][:2] == [1000.0, 500.0]
    assert [attempt["result"] for attempt in attempts] == ["INVALID"] * (len(attempts) - 1) + [
        "VALID"
    ]
    assert verdict["result"] == "VALID"
    assert verdict["target_qps"] == attempts[-1]["target_qps"]
    assert "INVALID at 1000 samples/s (attempt 1); again at 500" in outcome.err
    kept = tmp_path / "run/find_qps/attempt-1/mlperf_log_detail.txt"
    assert '"INVALID"' in kept.read_text()
    assert f"attempt {len(attempts)}" in outcome.out


@pytest.mark.slow
def test_a_search_that_was_killed_after_its_last_probe_is_over(
    paceline: Paceline, tmp_path: Path
) -> None:
    paceline(*FAKE, "Server", *FIND, "--set", "find_qps.probe_s=1", "--out", "run")
    path = tmp_path / "run/manifest.json"
    manifest, probes = read_json(path), tmp_path / "run/find_qps/probes.json"
    before = probes.read_bytes()
    manifest |= {"status": "INTERRUPTED", "tests": {"find_qps": {"status": "RUNNING"}}}
    manifest["config"]["loadgen"]["target_qps"] = None
    path.write_text(json.dumps(manifest))
    outcome = paceline("run", "--resume", "run")
    assert outcome.code == 0, outcome
    assert probes.read_bytes() == before
    assert read_json(path)["tests"]["find_qps"]["found_qps"] == manifest["find_qps"]["found_qps"]
