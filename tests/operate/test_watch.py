"""Watching a run from its files: finished, running, killed, empty."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import Paceline

from paceline.errors import RunDirError
from paceline.operate.watch import View, look

pytestmark = pytest.mark.timed

RUN = ("run", "--engine", "fake", "--mode", "performance", "--set", "loadgen.min_duration_ms=0")
PACE = ("--set", "engine.fake.tokens_per_second=100", "--set", "engine.fake.concurrency=4")


def start(run: Path) -> subprocess.Popen[bytes]:
    """A run of about five seconds, which goes on by itself."""
    command = [sys.executable, "-m", "paceline", *RUN, *PACE, "--out", str(run)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def until(run: Path, what: Callable[[View], bool], within_s: float = 60) -> View:
    end_s = time.monotonic() + within_s
    while not what(view := look(run)):
        assert time.monotonic() < end_s, view
        time.sleep(0.1)
    return view


@pytest.fixture
def running(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = start(tmp_path / "run")
    yield process
    process.kill()
    process.wait()


def test_a_run_is_seen_from_its_start_to_its_end(
    running: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    view = until(run, lambda view: bool(view.answered))
    assert (view.status, view.test, view.stage) == ("RUNNING", "performance", "running")
    assert view.answered is not None
    assert view.issued is not None
    assert 0 < view.answered < view.issued
    assert view.live_sequences == 4
    assert view.waiting_sequences == view.issued - view.answered - 4
    assert view.tokens_per_second == pytest.approx(100, rel=0.5)
    assert view.elapsed_s is not None
    left = view.issued - view.answered
    assert view.eta_s == pytest.approx(left * view.elapsed_s / view.answered)
    assert view.age_s is not None
    assert view.age_s < 10
    running.wait()
    ended = look(run)
    assert ended.status == "COMPLETE"
    assert ended.verdict is not None
    mean, measured = ended.tokens_per_second_mean, ended.verdict["tokens_per_second"]
    assert mean == pytest.approx(measured, rel=0.01)


def test_a_killed_run_is_told_from_one_that_goes_on(
    running: subprocess.Popen[bytes], tmp_path: Path, paceline: Paceline
) -> None:
    run = tmp_path / "run"
    until(run, lambda view: bool(view.answered))
    running.send_signal(signal.SIGKILL)
    running.wait()
    outcome = paceline("watch", run, "--once")
    assert outcome.code == 1
    assert outcome.out.startswith("SILENT")
    assert "the run was killed" in outcome.out
    assert "paceline run --resume" in outcome.out


def edit(run: Path, name: str, **changes: Any) -> None:
    path = run / name
    found = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(found | changes))


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A run on another node, as its files show it a second ago."""
    run = tmp_path / "elsewhere"
    (run / "performance").mkdir(parents=True)
    config = {"benchmark": "llama2-70b-99.9", "scenario": "Offline", "engine": "endpoint"}
    tests = {"performance": {"status": "RUNNING"}}
    edit(run, "manifest.json", schema=1, status="RUNNING", config=config, tests=tests)
    long_ago = time.time() - 3600
    os.utime(run / "manifest.json", (long_ago, long_ago))
    facts = {"unix_s": time.time(), "host": "node9", "pid": os.getpid(), "test": "performance"}
    edit(run, ".live.json", **facts, stage="running", fraction=None)
    return run


def row(elapsed_s: float, tokens: tuple[int, ...], **more: Any) -> str:
    parts = [
        {"name": f"http://n{place}", "live_sequences": 64, "tokens": count, "is_up": True}
        for place, count in enumerate(tokens)
    ]
    counts = {"issued": 24576, "answered": 1000, "resumed": 0, "tokens": 294000}
    facts = {**counts, "made": sum(tokens), "elapsed_s": elapsed_s, "parts": parts, **more}
    return json.dumps(facts) + "\n"


def test_the_slowest_server_is_the_one_that_made_least_of_late(written: Path) -> None:
    """Over the whole run n2 made least, as it started late; of late n1 does."""
    path = written / "performance" / "timeline.jsonl"
    path.write_text(
        row(100, (90_000, 90_000, 20_000)) + row(109, (99_000, 92_000, 29_000)) + '{"half'
    )
    view = look(written)
    assert view.status == "RUNNING"
    assert view.slowest == "http://n1"
    assert view.tokens_per_second == pytest.approx(20_000 / 9)
    assert view.eta_s == pytest.approx((24576 - 1000) * 109 / 1000)


def test_a_server_that_is_away_is_the_slowest(written: Path) -> None:
    line = json.loads(row(9, (500, 400, 300)))
    line["parts"][0]["is_up"] = False
    (written / "performance" / "timeline.jsonl").write_text(json.dumps(line) + "\n")
    assert look(written).slowest == "http://n0"


def test_a_run_on_another_node_without_a_sign_of_life_is_silent(written: Path) -> None:
    assert look(written).status == "RUNNING"
    edit(written, ".live.json", unix_s=time.time() - 20)
    view = look(written)
    assert view.status == "SILENT"
    assert view.age_s == pytest.approx(20, abs=2)


def test_power_and_the_cap_are_shown_by_card(written: Path, paceline: Paceline) -> None:
    card = {"host": "node9", "power_w": 690.0, "limit_w": 700.0, "clock_mhz": 1755}
    readings = [card | {"device": f"gpu {place}"} for place in range(2)]
    cap = {"cap_w": 1400.0, "seconds_above": 3.0, "seconds_near": 9.0}
    power = {"total_w": 1380.0, "readings": readings, "unread": []}
    edit(written, ".live.json", power=power, cap=cap)
    (written / "performance" / "timeline.jsonl").write_text(
        row(9, (500, 400), kv_used_fraction=0.875, preemptions=17)
    )
    edit(written, ".live.json", unix_s=time.time() + 5)  # clocks of nodes differ
    outcome = paceline("watch", written, "--once")
    assert outcome.code == 0, outcome
    assert "sum 1,380 W  99% of the cap of 1,400 W  3 s above it" in outcome.out
    for words in ("gpu 1    690      700    1,755", "87.5% used", "preemptions  17"):
        assert words in outcome.out
    found = paceline("watch", written, "--once", "--json").json
    assert (found["power_w"], found["kv_used_fraction"]) == (1380, 0.875)


def test_a_folder_without_a_run_is_no_run(tmp_path: Path, paceline: Paceline) -> None:
    assert look(tmp_path).status == "WAITING"
    assert look(tmp_path / "not-there-yet").status == "WAITING"
    outcome = paceline("watch", tmp_path, "--once")
    assert outcome.code == 2
    assert "holds no run" in outcome.err


def test_a_watch_without_a_terminal_is_a_line_each_time_and_ends_with_the_run(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-m", "paceline", "watch", str(tmp_path / "run"), "--every", "0.5"]
    watcher = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert watcher.stdout is not None
    first = watcher.stdout.readline()
    time.sleep(1.2)
    process = start(tmp_path / "run")
    out, _ = watcher.communicate()
    process.wait()
    assert watcher.returncode == 0, out
    assert first == f"WAITING  no run has begun here yet  {tmp_path / 'run'}\n"
    assert "WAITING" not in out  # once, however long it waited
    lines = [line for line in out.splitlines() if line.startswith("RUNNING")]
    assert any("samples" in line and "ETA" in line for line in lines), lines
    assert "COMPLETE" in out


def test_a_damaged_manifest_is_an_error(written: Path) -> None:
    (written / "manifest.json").write_text("{")
    with pytest.raises(RunDirError, match="cannot be read"):
        look(written)


def test_an_interrupted_run_says_why(written: Path, paceline: Paceline) -> None:
    error = {"kind": "InterruptedRun", "message": "Stopped by Ctrl-C."}
    edit(written, "manifest.json", status="INTERRUPTED", error=error)
    outcome = paceline("watch", written)
    assert outcome.code == 1
    assert "Stopped by Ctrl-C." in outcome.out


def test_a_run_on_a_thousand_replicas_is_seen_with_its_pace(written: Path) -> None:
    """A row of its timeline is longer than the tail that shows a run of one engine."""
    with (written / "performance" / "timeline.jsonl").open("w") as file:
        for second in range(30):
            parts = [
                {"name": f"replica-{i} on node{i // 8}", "live_sequences": 1280, "tokens": 9 * i}
                for i in range(1000)
            ]
            facts = {"elapsed_s": float(second), "made": 5000 * second, "parts": parts}
            facts |= {"issued": 9000, "answered": 100 + second, "resumed": 0}
            file.write(json.dumps(facts) + "\n")
    view = look(written)
    assert view.tokens_per_second == pytest.approx(5000)
    assert len(view.parts) == 1000


@pytest.mark.slow
def test_a_run_of_replicas_is_seen_as_one_engine_and_by_replica(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install 'paceline[ray]' -c constraints.txt")
    run = tmp_path / "run"
    sets = ("engine.replicas.engine=fake", "engine.replicas.num_replicas=2")
    sets += ("engine.fake.tokens_per_second=20", "engine.fake.concurrency=4")
    words = [word for one in sets for word in ("--set", one)]
    command = [sys.executable, "-m", "paceline", *RUN, "--engine", "replicas", *words]
    process = subprocess.Popen(
        [*command, "--out", str(run)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        view = until(run, lambda view: bool(view.parts) and view.live_sequences == 8, 180)
        assert view.issued is not None
        assert view.answered is not None
        assert abs(view.issued - view.answered - 8 - (view.waiting_sequences or 0)) <= 8
        assert [part["name"].split()[0] for part in view.parts] == ["replica-0", "replica-1"]
        assert [part["live_sequences"] for part in view.parts] == [4, 4]
        process.wait(180)
    finally:
        process.kill()
        process.wait()
    assert look(run).status == "COMPLETE"
