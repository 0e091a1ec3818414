"""Ray nodes for the tests: real processes, each node's own, ended by the process group."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

_STORE_BYTES = 80_000_000
_READY_WITHIN_S = 90.0
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0", "RAY_AUTH_MODE": "disabled"}


def start_node(
    log: Path, arguments: Sequence[str], *, prefix: Sequence[str] = (), num_cpus: int
) -> subprocess.Popen[bytes]:
    """`ray start` that stays in front, in a session of its own. The caller ends it."""
    ray = Path(sys.executable).parent / "ray"
    command = [*prefix, str(ray), "start", "--block", f"--num-cpus={num_cpus}"]
    command += [f"--object-store-memory={_STORE_BYTES}", "--disable-usage-stats", *arguments]
    with log.open("wb") as out:
        return subprocess.Popen(
            command,
            env=os.environ | ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def end_node(node: subprocess.Popen[bytes]) -> None:
    """Kill a node's processes: those that Ray put elsewhere end with their raylet."""
    with suppress(ProcessLookupError):
        os.killpg(node.pid, signal.SIGTERM)
    try:
        node.wait(3)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(node.pid, signal.SIGKILL)
        node.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def await_text(log: Path, text: str, node: subprocess.Popen[bytes]) -> None:
    """Wait until a node has said something."""
    end_s = time.monotonic() + _READY_WITHIN_S
    while text not in log.read_text(errors="replace"):
        said = log.read_text(errors="replace")
        assert node.poll() is None, f"ray start ended:\n{said}"
        assert time.monotonic() < end_s, f"ray start is not ready:\n{said}"
        time.sleep(0.1)


@contextmanager
def ray_head(folder: Path, *, num_cpus: int) -> Iterator[str]:
    """A head on this host; its address."""
    os.environ.update(ENVIRONMENT)
    port = free_port()
    log = folder / "head.log"
    arguments = ["--head", f"--port={port}", "--include-dashboard=false"]
    arguments.append("--node-ip-address=127.0.0.1")
    node = start_node(log, arguments, num_cpus=num_cpus)
    try:
        await_text(log, "Ray runtime started", node)
        yield f"127.0.0.1:{port}"
    finally:
        end_node(node)
