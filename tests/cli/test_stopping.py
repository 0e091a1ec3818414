"""Ctrl-C and SIGTERM end any verb with one line, with the way on where something is kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import Paceline, wait_until

SLOW = ("--engine", "fake", "--set", "engine.fake.tokens_per_second=500")


def started(folder: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "paceline", *words],
        cwd=folder,
        env={**os.environ, "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # What a shell starts in the background ignores Ctrl-C, these tests perhaps among it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def children(folder: Path) -> list[str]:
    """Command lines of processes that name the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in line:
            found.append(line)
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_search_that_is_stopped_says_how_it_goes_on(
    tmp_path: Path, paceline: Paceline, number: signal.Signals
) -> None:
    words = ("--budget", "10m", "--trial-seconds", "1", "--pairs", "2")
    process = started(
        tmp_path, "tune", *SLOW, "--out", "t", *words, "--search", "concurrency=1,2,3,4"
    )
    wait_until(lambda: (tmp_path / "t/trial-001/log.txt").exists(), within_s=60)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 3, (out, err)
    assert err.endswith(
        "error: Stopped by Ctrl-C or SIGTERM. What was measured is kept.\n"
        "  Next: paceline tune --resume t\n"
    )
    assert "Traceback" not in err
    assert children(tmp_path) == []
    again = paceline("tune", "--resume", "t", *words, "--trials", 1)
    assert "1 trial was made before and kept" in again.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_forecast_that_is_stopped_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    process = started(tmp_path, "forecast", *SLOW, "--seconds", "60")
    wait_until(lambda: any("trial_child" in line for line in children(tmp_path)), within_s=60)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (3, ""), err
    assert err.endswith("error: Stopped by Ctrl-C or SIGTERM.\n")
    assert "Traceback" not in err
    assert children(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_who_watches_may_stop_and_the_run_goes_on(tmp_path: Path) -> None:
    process = started(tmp_path, "watch", "run")
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "", "")
