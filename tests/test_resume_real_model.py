"""A run of the real model, killed and resumed: the same accuracy log as an undisturbed run."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import Paceline

ARGUMENTS = (
    *("run", "--mode", "accuracy", "--set", "run.num_samples=24"),
    *("--set", "engine.reference.batch_size=4"),
)


@pytest.mark.slow
def test_a_killed_run_of_the_reference_resumes_to_the_same_log(
    paceline: Paceline, tmp_path: Path
) -> None:
    paceline(*ARGUMENTS, "--out", "whole", timeout_s=600)
    command = [sys.executable, "-m", "paceline", *ARGUMENTS, "--out", "killed"]
    journal = tmp_path / "killed/accuracy/journal.jsonl"
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
        while not journal.exists() or journal.read_bytes().count(b"\n") < 2:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    time.sleep(3)
    outcome = paceline("run", "--resume", "killed", timeout_s=600)
    assert "finished before and kept" in outcome.err
    log = "accuracy/mlperf_log_accuracy.json"
    assert (tmp_path / "killed" / log).read_bytes() == (tmp_path / "whole" / log).read_bytes()
