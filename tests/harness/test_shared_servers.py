"""Runs whose tests share the servers that paceline started, through the command line."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import Paceline, wait_until

from paceline.config import embedded_model

RUN = (
    *("run", "--engine", "managed", "--set", "engine.managed.preset=paceline"),
    *("--set", f"data.tokenizer={embedded_model()}", "--out", "run"),
)
# Some eight seconds of answers in each test.
PACED = "engine.managed.extra_args=--engine fake --set engine.fake.tokens_per_second=400"


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def servers_of(run: Path) -> list[int]:
    """Processes that have the port of the run's server in their command line."""
    (url,) = read_json(run / "log/kept.json")["endpoint"]["urls"]
    port, found = url.rpartition(":")[2].encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if port in (folder / "cmdline").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


def test_one_server_serves_every_test_of_a_run(paceline: Paceline, tmp_path: Path) -> None:
    fake = ("--set", "engine.managed.extra_args=--engine fake")
    outcome = paceline(*RUN, *fake, "--mode", "submission")
    run = tmp_path / "run"
    tests = read_json(run / "manifest.json")["tests"]
    assert [test["status"] for test in tests.values()] == ["COMPLETE"] * 3, outcome
    engines = [test["engine"] for test in tests.values()]
    assert [engine["num_starts"] for engine in engines] == [1, 1, 1]
    assert len({engine["processes"][0]["url"] for engine in engines}) == 1
    # Checked again before each test, by a preflight of its own.
    assert [len(engine["preflight"]) for engine in engines] == [6, 6, 6]
    assert (run / "log/server-0.log").read_text().count("serving ") == 1
    assert outcome.out.count("The servers are those of the performance test") == 2
    assert servers_of(run) == []


@pytest.fixture
def paced(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A run in the background whose server is at work on the performance test."""

    def heed_ctrl_c() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    command = [sys.executable, "-m", "paceline", *RUN, "--set", PACED]
    command += ["--set", "engine.managed.restarts=0", "--set", "run.stall_timeout_s=30"]
    command += ["--set", "loadgen.min_query_count=96"]
    with subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=heed_ctrl_c
    ) as process:
        timeline = tmp_path / "run/performance/timeline.jsonl"
        wait_until(lambda: timeline.exists() and timeline.read_text() != "", within_s=60)
        yield process
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_server_outlives_a_run_that_is_ended(
    paced: subprocess.Popen[str], tmp_path: Path, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    assert servers_of(run) != []
    paced.send_signal(number)
    paced.wait(60)
    if number is signal.SIGKILL:  # its launcher sees that later than this process does
        wait_until(lambda: servers_of(run) == [], within_s=60)
    assert servers_of(run) == []
    status = "RUNNING" if number is signal.SIGKILL else "INTERRUPTED"
    assert read_json(run / "manifest.json")["status"] == status


def test_a_run_whose_last_server_is_gone_for_good_ends_at_once(
    paced: subprocess.Popen[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    os.kill(max(servers_of(run)), signal.SIGKILL)
    assert paced.wait(60) == 3
    assert paced.stderr is not None
    told = paced.stderr.read()
    assert "server-0 ended (signal 9) while it served." in told
    assert "No server is left" in told
    manifest = read_json(run / "manifest.json")
    assert manifest["status"] == "INCOMPLETE"
    assert servers_of(run) == []
