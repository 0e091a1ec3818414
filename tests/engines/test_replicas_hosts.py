"""Three hosts with addresses of their own, one killed and one cut off: the accuracy log stays.

The hosts are network namespaces on a bridge, each with its own name and its own Ray. It needs
root, for namespaces.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from ray_nodes import ENVIRONMENT, Host, hosts_on_a_bridge
from support import Paceline

from paceline.rundir import Journal

pytest.importorskip("ray", reason="Ray is not installed: pip install 'paceline[ray]'")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("ip") is None, reason="ip (iproute2) is not installed"),
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
]

ACCURACY = "accuracy/mlperf_log_accuracy.json"
FAKE = (
    *("--set", "engine.fake.tokens_per_second=40", "--set", "engine.fake.concurrency=2"),
    *("--set", "engine.replicas.engine=fake", "--set", "engine.replicas.stall_timeout_s=8"),
)
NATIVE = (
    *("--set", "engine.replicas.engine=native", "--set", "engine.native.device=cpu"),
    *("--set", "engine.native.max_live_sequences=4", "--set", "run.num_samples=16"),
    *("--set", "engine.replicas.stall_timeout_s=30"),
)


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[list[Host]]:
    with hosts_on_a_bridge(tmp_path, 3) as made, ExitStack() as stack:
        for host in made:
            host.start_ray(made[0], num_cpus=1)
            stack.callback(host.end_ray)
        yield made


class Run:
    """`paceline run` on the head's host, while something happens to the others."""

    def __init__(self, head: Host, folder: Path, *arguments: str, mode: str = "accuracy") -> None:
        self.path = folder / "cluster"
        command = [sys.executable, "-m", "paceline", "run", "--engine", "replicas"]
        command += ["--mode", mode, "--out", str(self.path), *arguments]
        command += ["--set", f"engine.replicas.address={head.address}:6379"]
        command += ["--set", "engine.replicas.backoff_s=0.5"]
        self.process = subprocess.Popen(
            head.command(*command),
            cwd=folder,
            env=os.environ | ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def await_that(self, what: Callable[[], bool], within_s: float = 240) -> None:
        end_s = time.monotonic() + within_s
        while not what():
            assert time.monotonic() < end_s
            assert self.process.poll() is None, self.process.communicate()[0]
            time.sleep(0.05)

    def num_journaled(self) -> int:
        """Samples; a line has as many as were answered together."""
        path = self.path / "accuracy/journal.jsonl"
        return len(Journal(path).read()) if path.exists() else 0

    def said(self, text: str) -> bool:
        return any(text in path.read_text() for path in (self.path / "log").glob("*.log"))

    def end(self, within_s: float = 400) -> tuple[str, dict[str, Any]]:
        """What it printed, and what the engine says of itself in the manifest."""
        printed = self.process.communicate(timeout=within_s)[0]
        manifest = json.loads((self.path / "manifest.json").read_text())
        return printed, manifest["tests"]["accuracy"].get("engine", {})


def test_a_host_that_dies_and_one_that_is_cut_off_change_nothing_in_the_accuracy_log(
    hosts: list[Host], paceline: Paceline, tmp_path: Path
) -> None:
    """The one that died comes back and is used again; the other one does not."""
    head, dying, cut = hosts
    alone = paceline(
        *("run", "--mode", "accuracy", "--engine", "fake", "--out", "alone", "--json")
    ).json
    run = Run(head, tmp_path, *FAKE)
    run.await_that(lambda: run.num_journaled() >= 8)
    dying.end_ray()
    run.await_that(lambda: run.said("lost"))
    cut.cut_off()
    dying.start_ray(head, num_cpus=1)
    printed, engine = run.end()
    assert (tmp_path / "alone" / ACCURACY).read_bytes() == (run.path / ACCURACY).read_bytes()
    verdict = json.loads((run.path / "verdict.json").read_text())
    figures = ("rouge1", "rouge2", "rougeL", "tokens_per_sample", "verdict", "accuracy")
    assert {name: verdict[name] for name in figures} == {name: alone[name] for name in figures}
    events = [(event["what"], event["host"], event["reason"]) for event in engine["events"]]
    lost = {host: reason for what, host, reason in events if what == "lost"}
    assert lost.keys() == {dying.label, cut.label}
    assert lost[dying.label].startswith("died")
    assert "silent" in lost[cut.label] or "died" in lost[cut.label]
    assert ("back", dying.label) in {(what, host) for what, host, _ in events}
    back = next(row for row in engine["replicas"] if row["host"] == dying.label)
    assert back["is_up"]
    assert back["answered"] > 8 / 3  # before and after
    assert engine["counts"]["moved"] == sum(event["moved"] for event in engine["events"]) > 0
    assert f"{dying.label}" in printed
    assert "samples were run again after their replica was lost" in printed


def test_the_system_of_a_cluster_is_all_its_hosts(hosts: list[Host], tmp_path: Path) -> None:
    """They are alike here but for what only a single node can say."""
    head = hosts[0]
    command = [sys.executable, "-m", "paceline", "system", "--json"]
    command += ["--ray", f"{head.address}:6379"]
    finished = subprocess.run(
        head.command(*command),
        cwd=tmp_path,
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
    )
    facts = json.loads(finished.stdout)
    assert facts["hosts"] == [host.name for host in hosts]
    assert facts["fields"]["number_of_nodes"]["value"] == 3
    assert facts["fields"]["host_memory_capacity"]["provenance"] == "detected"
    assert facts["fields"]["host_networking_topology"]["value"] is None
    assert facts["differences"] == []


def test_a_host_that_is_cut_off_is_named_when_the_system_is_described(
    hosts: list[Host], tmp_path: Path
) -> None:
    """Ray has not noticed: it says nothing of the host, or that it has died."""
    head, _, cut = hosts
    cut.cut_off()
    command = [sys.executable, "-m", "paceline", "system", "--json"]
    command += ["--ray", f"{head.address}:6379"]
    told = subprocess.run(
        head.command(*command),
        cwd=tmp_path,
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert told.returncode == 3, told
    assert told.stdout == ""
    error = next(line for line in told.stderr.splitlines() if line.startswith("error: "))
    assert error.startswith(f"error: {cut.label} ")
    assert error.endswith(".")
    assert "  Next: ray status" in told.stderr


def test_the_embedded_model_gives_the_same_tokens_on_three_hosts_as_on_one(
    hosts: list[Host], paceline: Paceline, tmp_path: Path
) -> None:
    head, dying, cut = hosts
    alone = paceline(
        *("run", "--mode", "accuracy", "--engine", "native", "--out", "alone", "--json"),
        *("--set", "run.num_samples=16", "--set", "engine.native.device=cpu"),
        *("--set", "engine.native.max_live_sequences=4"),
        timeout_s=600,
    )
    run = Run(head, tmp_path, *NATIVE)
    run.await_that(lambda: run.num_journaled() >= 2)
    dying.end_ray()
    run.await_that(lambda: run.num_journaled() >= 6)
    cut.cut_off()
    printed, engine = run.end(600)
    assert (tmp_path / "alone" / ACCURACY).read_bytes() == (run.path / ACCURACY).read_bytes()
    verdict = json.loads((run.path / "verdict.json").read_text())
    assert verdict["verdict"] == alone.json["verdict"]
    lost = {event["host"] for event in engine["events"] if event["what"] == "lost"}
    assert lost == {dying.label, cut.label}
    assert engine["device_name"] == "cpu"
    assert "samples were run again" in printed


def test_the_last_replica_lost_ends_the_run_and_resume_finishes_it(
    hosts: list[Host], paceline: Paceline, tmp_path: Path
) -> None:
    """Two hosts have the replicas, and both die: INCOMPLETE, and what was answered is kept."""
    head, *others = hosts
    alone = paceline("run", "--mode", "accuracy", "--engine", "fake", "--out", "alone")
    waits = ("--set", "engine.replicas.dead_timeout_s=3", "--set", "engine.replicas.restarts=0")
    run = Run(head, tmp_path, *FAKE, *waits)
    run.await_that(lambda: run.num_journaled() >= 8)
    for pid in head.replica_pids():
        os.kill(pid, signal.SIGKILL)
    for host in others:
        host.end_ray()
    printed, _ = run.end()
    assert run.process.returncode == 3
    assert "No replica is left" in printed
    kept = run.num_journaled()
    manifest = json.loads((run.path / "manifest.json").read_text())
    assert manifest["status"] == "INCOMPLETE"
    assert 8 <= kept < 96
    resumed = head.command(sys.executable, "-m", "paceline", "run", "--resume", str(run.path))
    finished = subprocess.run(
        resumed, env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=400
    )
    assert finished.returncode == alone.code == 1, finished.stderr  # what a fake answers is no text
    assert f"{kept} samples were finished before and kept" in finished.stderr
    assert (tmp_path / "alone" / ACCURACY).read_bytes() == (run.path / ACCURACY).read_bytes()
    assert json.loads((run.path / "manifest.json").read_text())["status"] == "COMPLETE"


def test_a_host_that_dies_while_its_copy_loads_is_left(
    hosts: list[Host], paceline: Paceline, tmp_path: Path
) -> None:
    """Its copy is held where it loads; Ray has a doubt first, and notices later."""
    head, dying, _ = hosts
    alone = paceline("run", "--mode", "accuracy", "--engine", "fake", "--out", "alone")
    run = Run(head, tmp_path, *FAKE)
    run.await_that(lambda: bool(dying.replica_pids()))
    for pid in dying.replica_pids():
        os.kill(pid, signal.SIGSTOP)
    dying.end_ray()
    _, engine = run.end()
    assert run.process.returncode == alone.code
    assert (tmp_path / "alone" / ACCURACY).read_bytes() == (run.path / ACCURACY).read_bytes()
    events = {(event["what"], event["host"]) for event in engine["events"]}
    assert ("missing", dying.label) in events
    assert {row["host"] for row in engine["replicas"] if row["is_up"]} == {
        host.label for host in hosts if host is not dying
    }


def test_a_host_that_dies_between_two_tests_is_left_by_the_second(
    hosts: list[Host], paceline: Paceline, tmp_path: Path
) -> None:
    """The accuracy test starts at once, while Ray lists the host that is gone."""
    head, dying, _ = hosts
    alone = paceline("run", "--mode", "accuracy", "--engine", "fake", "--out", "alone")
    run = Run(head, tmp_path, *FAKE, mode="all")
    manifest = run.path / "manifest.json"

    def is_measured() -> bool:
        tests = json.loads(manifest.read_text())["tests"] if manifest.exists() else {}
        return bool(tests.get("performance", {}).get("status") == "COMPLETE")

    run.await_that(is_measured)
    dying.end_ray()
    _, engine = run.end()
    assert run.process.returncode == alone.code
    assert (tmp_path / "alone" / ACCURACY).read_bytes() == (run.path / ACCURACY).read_bytes()
    assert ("missing", dying.label) in {(one["what"], one["host"]) for one in engine["events"]}
