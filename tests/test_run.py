"""Whole runs through the command line, the real LoadGen and the shipped fake engine."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import Outcome, Paceline

FAKE = ("run", "--engine", "fake")
# Some four seconds of answers: time enough to be killed in, on a busy machine too.
PACED = (*FAKE, "--mode", "accuracy", "--set", "engine.fake.tokens_per_second=1000")
KEYS = {
    "verdict",
    "result",
    "tokens_per_second",
    "samples_per_second",
    "rouge1",
    "rouge2",
    "rougeL",
    "tokens_per_sample",
    "engine",
    "benchmark",
}


def accuracy_log(run_dir: Path) -> bytes:
    return (run_dir / "accuracy" / "mlperf_log_accuracy.json").read_bytes()


def journaled(run_dir: Path) -> list[int]:
    lines = (run_dir / "accuracy" / "journal.jsonl").read_text().splitlines()
    return [sample[0] for line in lines for sample in json.loads(line.partition(" ")[2])]


def manifest(run_dir: Path) -> Any:
    return json.loads((run_dir / "manifest.json").read_text())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("undisturbed")
    command = [sys.executable, "-m", "paceline", *FAKE, "--mode", "accuracy", "--out", "run"]
    subprocess.run(command, cwd=folder, capture_output=True, check=False, timeout=120)
    return accuracy_log(folder / "run")


@pytest.fixture
def paced_run(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A paced accuracy run in the background, in run/ of the test's folder."""
    command = [sys.executable, "-m", "paceline", *PACED, "--out", "run"]
    with subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, preexec_fn=heed_ctrl_c
    ) as process:
        yield process
        process.kill()


def heed_ctrl_c() -> None:
    """A test run in the background is told to ignore Ctrl-C, and passes that on."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for_samples(run_dir: Path, count: int) -> None:
    deadline_s = time.monotonic() + 60
    journal = run_dir / "accuracy" / "journal.jsonl"
    while time.monotonic() < deadline_s:
        if journal.exists() and journal.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.005)
    pytest.fail("no sample was finished within a minute")


def wait_until_unlocked(run_dir: Path) -> None:
    """Until the orphaned child of a killed run has seen that its parent is gone."""
    deadline_s = time.monotonic() + 20
    while time.monotonic() < deadline_s:
        if (
            str(run_dir)
            not in subprocess.run(
                ["ps", "-eo", "args"], capture_output=True, text=True, check=True
            ).stdout
        ):
            return
        time.sleep(0.05)
    pytest.fail("a process of the killed run is still there")


def test_a_run_ends_with_a_verdict_and_a_directory_that_explains_it(
    paceline: Paceline, tmp_path: Path
) -> None:
    outcome = paceline(*FAKE, "--out", "run", "--json")
    verdict = outcome.json
    assert set(verdict) >= KEYS
    assert (verdict["result"], verdict["verdict"]) == ("VALID", "FAIL")
    assert outcome.code == 1
    assert verdict["engine"] == "fake"
    made = manifest(tmp_path / "run")
    assert made["status"] == "COMPLETE"
    assert made["config"]["benchmark"] == verdict["benchmark"] == "smollm2-135m-99"
    assert made["model"]["files"]
    assert made["dataset"]["sha256"]
    assert made["versions"]["mlcommons-loadgen"]
    assert set(made["files"]) >= {"accuracy/accuracy.txt", "performance/mlperf_log_detail.txt"}


def test_a_run_that_is_no_submission_says_so_in_capitals(paceline: Paceline) -> None:
    outcome = paceline(*FAKE, "--mode", "performance", "--out", "run")
    assert "THIS RUN IS NOT A SUBMISSION" in outcome.out
    assert "NOT A SUBMISSION" in outcome.err


def test_show_gives_the_verdict_again_and_the_same_exit_code(paceline: Paceline) -> None:
    first = paceline(*FAKE, "--mode", "performance", "--out", "run", "--json")
    again = paceline("show", "run", "--json")
    assert first.code == again.code == 0
    assert again.json["changed_files"] == []
    assert {k: again.json[k] for k in KEYS} == {k: first.json[k] for k in KEYS}


def test_show_names_a_file_that_was_changed(paceline: Paceline, tmp_path: Path) -> None:
    paceline(*FAKE, "--mode", "performance", "--out", "run")
    (tmp_path / "run/performance/user.conf").write_text("changed\n")
    assert "performance/user.conf" in paceline("show", "run").err


def test_two_runs_give_the_same_accuracy_log(
    paceline: Paceline, tmp_path: Path, undisturbed: bytes
) -> None:
    paceline(*FAKE, "--mode", "accuracy", "--out", "run")
    assert accuracy_log(tmp_path / "run") == undisturbed


@pytest.mark.parametrize("seed", range(3))
def test_a_killed_accuracy_run_resumes_to_the_same_log_and_redoes_nothing(
    paceline: Paceline,
    tmp_path: Path,
    undisturbed: bytes,
    paced_run: subprocess.Popen[bytes],
    seed: int,
) -> None:
    run_dir = tmp_path / "run"
    wait_for_samples(run_dir, random.Random(seed).randrange(1, 90))
    paced_run.send_signal(signal.SIGKILL)
    paced_run.wait()
    wait_until_unlocked(run_dir)
    before = journaled(run_dir)
    assert 0 < len(before) < 96
    outcome = paceline("run", "--resume", "run")
    assert outcome.code == 1, outcome
    assert f"{len(before)} samples were finished before and kept" in outcome.err
    assert accuracy_log(run_dir) == undisturbed
    assert sorted(journaled(run_dir)) == list(range(96))
    assert journaled(run_dir)[: len(before)] == before


def test_ctrl_c_leaves_a_run_that_can_be_finished(
    paceline: Paceline, tmp_path: Path, undisturbed: bytes, paced_run: subprocess.Popen[bytes]
) -> None:
    run_dir = tmp_path / "run"
    wait_for_samples(run_dir, 10)
    paced_run.send_signal(signal.SIGINT)
    _, err = paced_run.communicate(timeout=30)
    assert paced_run.returncode == 3
    assert b"Traceback" not in err
    assert b"--resume" in err
    assert manifest(run_dir)["status"] == "INTERRUPTED"
    shown = paceline("show", "run")
    assert shown.code == 1
    assert "INCOMPLETE" in shown.out
    paceline("run", "--resume", "run")
    assert accuracy_log(run_dir) == undisturbed


def test_a_finished_run_is_not_run_again(paceline: Paceline, tmp_path: Path) -> None:
    paceline(*FAKE, "--mode", "performance", "--out", "run")
    before = (tmp_path / "run/performance/mlperf_log_detail.txt").read_bytes()
    assert paceline("run", "--resume", "run").code == 0
    assert (tmp_path / "run/performance/mlperf_log_detail.txt").read_bytes() == before


def test_resume_takes_no_other_settings(paceline: Paceline) -> None:
    outcome = paceline("run", "--resume", "run", "--set", "run.mode=all")
    assert outcome.code == 2
    assert "keeps its own" in outcome.err


def test_resume_refuses_a_dataset_that_changed(
    paceline: Paceline, tmp_path: Path, demo_copy: Path
) -> None:
    paceline(*FAKE, "--data", demo_copy, "--out", "run", "--set", "engine.fake.fail_after=5")
    with demo_copy.open("ab") as file:
        file.write(b" ")
    outcome = paceline("run", "--resume", "run")
    assert outcome.code == 2
    assert "dataset" in outcome.err


def test_a_stalled_engine_ends_the_run_with_the_samples_in_flight_named(
    paceline: Paceline, tmp_path: Path
) -> None:
    outcome = paceline(
        *(*FAKE, "--out", "run", "--mode", "performance"),
        *("--set", "engine.fake.stall_after=12", "--set", "run.stall_timeout_s=1.0"),
    )
    assert outcome.code == 3
    assert "In flight: 4 samples" in outcome.err
    assert manifest(tmp_path / "run")["status"] == "INCOMPLETE"


def test_a_failed_request_ends_the_run_and_names_the_sample(
    paceline: Paceline, tmp_path: Path
) -> None:
    outcome = paceline(*FAKE, "--out", "run", "--set", "engine.fake.fail_after=5")
    assert outcome.code == 3
    assert "failed, as told to" in outcome.err
    assert "Sample " in outcome.err
    assert manifest(tmp_path / "run")["status"] == "INCOMPLETE"


@pytest.mark.timed
def test_a_run_that_was_too_short_names_the_target_that_makes_it_long_enough(
    paceline: Paceline,
) -> None:
    # The 20 samples last half a second, of which a moment's standstill is a small part.
    pace = ("--set", "engine.fake.tokens_per_second=1000", "--set", "run.probe_s=0")
    short = (*FAKE, "--mode", "performance", *pace)
    floor = ("--set", "loadgen.min_duration_ms=3000")
    outcome = paceline(*short, *floor, "--out", "short")
    assert outcome.code == 1
    assert "INVALID" in outcome.out
    wanted = outcome.out.partition("loadgen.target_qps=")[2].split()[0]
    again = paceline(*short, *floor, "--set", f"loadgen.target_qps={wanted}", "--out", "long")
    assert again.code == 0, again


def test_a_stray_audit_config_in_the_users_folder_does_nothing(
    paceline: Paceline, tmp_path: Path
) -> None:
    (tmp_path / "audit.config").write_text("*.*.accuracy_log_sampling_target = 5\n*.*.mode = 2\n")
    paceline(*FAKE, "--mode", "performance", "--out", "run")
    assert "Audit" not in (tmp_path / "run/performance/mlperf_log_detail.txt").read_text()


def refused(outcome: Outcome, code: int, *words: str) -> None:
    """One clear error with the way out, and no traceback."""
    assert outcome.code == code, outcome
    assert "Traceback" not in outcome.err
    assert "error: " in outcome.err
    for word in words:
        assert word in outcome.err, outcome


def test_a_wheel_of_another_round_is_refused_with_the_wheel_to_install(paceline: Paceline) -> None:
    outcome = paceline(*FAKE, "--round", "v6.0", "--out", "run")
    refused(outcome, 3, "mlcommons-loadgen==6.0.15", "--round v6.1")


def test_a_typo_in_a_recipe_names_file_and_nearest_key(paceline: Paceline, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("[run]\nbenchmrk = 'llama2-70b-99'\n")
    refused(paceline("run", "r.toml"), 2, "r.toml", "run.benchmrk", "did you mean 'run.benchmark'")


def test_a_missing_model_is_one_error(paceline: Paceline) -> None:
    refused(paceline("run", "--model", "nowhere", "--out", "run"), 2, "nowhere", "--model PATH")


def test_a_damaged_model_is_one_error(paceline: Paceline, tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + os.urandom(1000))
    refused(paceline("run", "--model", "bad.gguf", "--out", "run"), 2, "bad.gguf")


def test_a_dataset_of_the_wrong_schema_is_one_error(paceline: Paceline, tmp_path: Path) -> None:
    (tmp_path / "data.parquet").write_bytes(b"not parquet")
    refused(paceline(*FAKE, "--data", "data.parquet", "--out", "run"), 2, "data.parquet")
    assert not (tmp_path / "run").exists()


def test_a_dataset_that_is_too_short_is_one_error(paceline: Paceline, demo_copy: Path) -> None:
    outcome = paceline(
        *(*FAKE, "--benchmark", "llama2-70b-99.9", "--data", demo_copy, "--out", "run")
    )
    refused(outcome, 2, "96 samples", "24576")


def test_a_directory_that_cannot_be_made_is_one_error(paceline: Paceline) -> None:
    refused(paceline(*FAKE, "--out", "/proc/paceline/run"), 2, "/proc/paceline/run", "--out")


def test_a_run_directory_in_use_is_not_overwritten(paceline: Paceline, tmp_path: Path) -> None:
    paceline(*FAKE, "--mode", "performance", "--out", "run")
    refused(paceline(*FAKE, "--out", "run"), 2, "--resume run")


def test_debug_shows_the_traceback(paceline: Paceline) -> None:
    outcome = paceline("run", "--model", "nowhere", "--debug")
    assert "Traceback" in outcome.err


def test_a_full_disk_is_one_error_and_finished_samples_stay(
    paceline: Paceline, small_disk: Path, tmp_path: Path, undisturbed: bytes
) -> None:
    run_dir = small_disk / "run"
    filler = small_disk / "filler"
    with filler.open("wb") as file:
        file.write(bytes(small_disk_free(small_disk) - 60_000))
    outcome = paceline(*PACED, "--out", run_dir)
    assert outcome.code == 3, outcome
    assert "full" in outcome.err
    assert "Traceback" not in outcome.err
    filler.unlink()
    assert paceline("run", "--resume", run_dir).code == 1
    assert accuracy_log(run_dir) == undisturbed


def small_disk_free(disk: Path) -> int:
    status = os.statvfs(disk)
    return status.f_bavail * status.f_frsize


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user cannot mount a small disk")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.fixture
def demo_copy(tmp_path: Path) -> Path:
    """The demo's dataset, to be changed."""
    from paceline.config import demo_dataset

    copy = tmp_path / "demo.parquet"
    copy.write_bytes(demo_dataset().read_bytes())
    return copy
