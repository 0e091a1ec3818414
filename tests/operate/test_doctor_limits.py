"""Limits, disks, memory and clocks that end a run, each found with its way out."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cards import finding
from support import Paceline

from paceline.config import read_settings
from paceline.operate import Asked, asked
from paceline.operate.access import clock_finding
from paceline.operate.limits import available_memory, host_memory
from paceline.submission.system_host import Host

CHRONY = """Reference ID    : C0A80001 (ntp)
System time     : {} seconds fast of NTP time
Leap status     : {}
"""


# Its tokenizer is not there, so that none is put together from the embedded model.
LARGE = ("--benchmark", "llama2-70b-99.9")
REPOSITORY = Path(__file__).parents[2]


def asked_of(recipe: Path) -> Asked:
    return asked(read_settings(recipe), recipe=recipe, wheel_round=None)


@pytest.mark.parametrize(
    ("tool", "text", "level", "seen"),
    [
        ("chronyc", CHRONY.format("0.000012", "Normal"), "ok", "0.000012 s off"),
        ("chronyc", CHRONY.format("0.000012", "Not synchronised"), "warning", "Not synch"),
        ("chronyc", CHRONY.format("3.500000", "Normal"), "warning", "3.500000 s off"),
        ("timedatectl", "yes\n", "ok", "synchronised"),
        ("timedatectl", "no\n", "warning", "not synchronised"),
        ("ntpq", "     remote   refid\n====\n*10.0.0.1  .GPS.  1 u\n", "ok", "followed"),
        ("ntpq", "     remote   refid\n====\n 10.0.0.1  .INIT. 16 u\n", "warning", "no peer"),
        ("none", "", "warning", "unknown"),
    ],
)
def test_the_clock_is_told_by_the_tool_that_is_there(
    tool: str, text: str, level: str, seen: str
) -> None:
    host = Host(name="node", run=lambda *command: text if command[0] == tool else "")
    told = clock_finding(host)
    assert (told.level, told.is_known) == (level, tool != "none")
    assert seen in told.seen


def test_a_jobs_memory_limit_counts_when_it_is_lower(tmp_path: Path) -> None:
    for path, text in {
        "proc/meminfo": "MemTotal: 64000000 kB\nMemAvailable:   60000000 kB\n",
        "proc/self/cgroup": "0::/slurm/job_7\n",
        "sys/fs/cgroup/slurm/job_7/memory.max": "4000000000\n",
        "sys/fs/cgroup/slurm/job_7/memory.current": "1000000000\n",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    host = Host(name="node", root=tmp_path)
    assert available_memory(host) == (3_000_000_000, "the limit of this container or job")
    asking = asked_of(REPOSITORY / "recipes/laptop-demo.toml")
    told = host_memory(host, asked=asking, cards=[], model_bytes=4_000_000_000)
    assert told.level == "blocker"
    assert "--mem=0" in (told.mend or "")
    (tmp_path / "sys/fs/cgroup/slurm/job_7/memory.max").write_text("max\n")
    assert available_memory(host) == (60_000_000 * 1024, "/proc/meminfo")


def limited(which: int, value: int) -> Any:
    """A child's limit, lowered before it starts."""
    return lambda: resource.setrlimit(which, (value, value))


def test_few_open_files_are_too_few_for_many_servers(paceline: Paceline) -> None:
    arguments = ("doctor", *LARGE, "--engine", "endpoint", "--json", "--set")
    urls = "engine.endpoint.urls=http://127.0.0.1:1,http://127.0.0.1:2"
    few = limited(resource.RLIMIT_NOFILE, 900)
    told = finding(paceline(*arguments, urls, preexec_fn=few), "open files")
    assert told["level"] == "blocker"
    assert "ulimit -n: 900; the run opens up to 1024" in told["seen"]
    assert "limits.d/nofile.conf" in told["mend"]
    assert finding(paceline("doctor", "--json", preexec_fn=few), "open files")["level"] == "warning"


def test_locked_memory_blocks_a_server_that_speaks_ucx(paceline: Paceline) -> None:
    low = limited(resource.RLIMIT_MEMLOCK, 8 << 20)
    wanted = (*LARGE, "--engine", "managed", "--set", "engine.managed.preset=trtllm")
    told = finding(paceline("doctor", *wanted, "--json", preexec_fn=low), "locked memory")
    assert told["level"] == "blocker"
    assert told["seen"] == "ulimit -l: 8192 KiB; the recipe runs TensorRT-LLM"
    assert "memlock unlimited" in told["mend"]
    alone = finding(paceline("doctor", "--json", preexec_fn=low), "locked memory")
    assert alone["level"] == "ok"


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 3 MB."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("a tiny disk is a mount, which needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("this root may not mount")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_small_disk_blocks_the_run_that_would_fill_it(quick: Paceline, tiny_disk: Path) -> None:
    (tiny_disk / "full").write_bytes(b"\0" * (2 << 20))
    outcome = quick(*LARGE, "--engine", "fake", "--out", tiny_disk / "runs")
    room = finding(outcome, "disk room")
    assert room["level"] == "blocker"
    assert "1.049 MB of 3.146 MB free; the recipe's run writes at most" in room["seen"]
    assert f"du -xh {tiny_disk}" in room["mend"]
    (tiny_disk / "fuller").write_bytes(b"\0" * (1 << 20))
    speed = finding(quick("--out", tiny_disk), "disk speed")
    assert speed["level"] == "blocker"
    assert "No space left" in speed["seen"]
    assert sorted(path.name for path in tiny_disk.iterdir()) == ["full", "fuller"]
