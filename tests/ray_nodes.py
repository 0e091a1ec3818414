"""Ray nodes for the tests: real processes, each node's own, ended by the process group."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_STORE_BYTES = 80_000_000
_READY_WITHIN_S = 90.0
_STARTED = "Ray runtime started"
_TRIES = 3
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


def start_and_await(start: Callable[[], subprocess.Popen[bytes]], log: Path) -> Any:
    """Ray gives a node half a minute to come up, and a busy machine takes longer at times."""
    for _ in range(_TRIES - 1):
        node = start()
        try:
            await_text(log, _STARTED, node)
        except AssertionError:
            end_node(node)
        else:
            return node
    node = start()
    await_text(log, _STARTED, node)
    return node


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
    node = start_and_await(lambda: start_node(log, arguments, num_cpus=num_cpus), log)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        end_node(node)


class Host:
    """A host: a network namespace with an address, a name, and a folder for its Ray."""

    def __init__(self, folder: Path, name: str, address: str) -> None:
        self.name = name
        self.address = address
        self.folder = folder / name
        self.folder.mkdir()
        self.log = folder / f"{name}.log"
        self.node: subprocess.Popen[bytes]

    @property
    def label(self) -> str:
        return f"{self.name} ({self.address})"

    def command(self, *command: str) -> list[str]:
        """The words that run a command on this host."""
        setup = f'hostname {self.name}; mount --bind {self.folder} /tmp/ray; exec "$@"'
        return [
            "ip",
            "netns",
            "exec",
            self.name,
            "unshare",
            "--uts",
            "sh",
            "-c",
            setup,
            "sh",
            *command,
        ]

    def start_ray(self, head: Host, *, num_cpus: int) -> None:
        """Start its Ray; the first one has to be the head's."""
        port = 6379
        arguments = [f"--node-ip-address={self.address}"]
        if self is head:
            arguments += ["--head", f"--port={port}", "--include-dashboard=false"]
        else:
            arguments.append(f"--address={head.address}:{port}")
        prefix = self.command()
        self.node = start_and_await(
            lambda: start_node(self.log, arguments, prefix=prefix, num_cpus=num_cpus), self.log
        )

    def end_ray(self) -> None:
        """Kill all that runs on this host but the shells that tests started from outside."""
        with suppress(ProcessLookupError):
            os.killpg(self.node.pid, signal.SIGKILL)
        self.node.wait()
        listed = subprocess.run(
            ["ip", "netns", "pids", self.name], capture_output=True, text=True, check=True
        )
        for pid in listed.stdout.split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)

    def replica_pids(self) -> list[int]:
        """Its processes of replicas."""
        listed = subprocess.run(
            ["ip", "netns", "pids", self.name], capture_output=True, text=True, check=True
        )
        return [
            int(pid)
            for pid in listed.stdout.split()
            if "ReplicaHost" in Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
        ]

    def cut_off(self) -> None:
        """Take its link down; its processes live on."""
        _ip("-n", self.name, "link", "set", "eth0", "down")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextmanager
def hosts_on_a_bridge(folder: Path, count: int) -> Iterator[list[Host]]:
    """So many hosts that see each other and nothing else. Needs root."""
    Path("/tmp/ray").mkdir(exist_ok=True)
    tag = f"pl{os.getpid() % 100000}"
    hub = f"{tag}hub"
    names = [f"{tag}n{place}" for place in range(count)]
    try:
        _ip("netns", "add", hub)
        _ip("-n", hub, "link", "add", "bridge", "type", "bridge")
        _ip("-n", hub, "link", "set", "bridge", "up")
        hosts = []
        for place, name in enumerate(names):
            host = Host(folder, name, f"10.77.0.{place + 1}")
            _ip("netns", "add", name)
            _ip("link", "add", "eth0", "netns", name, "type", "veth", "peer", "name",
                f"port{place}", "netns", hub)  # fmt: skip
            _ip("-n", hub, "link", "set", f"port{place}", "master", "bridge", "up")
            _ip("-n", name, "addr", "add", f"{host.address}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
            _ip("-n", name, "link", "set", "lo", "up")
            hosts.append(host)
        yield hosts
    finally:
        for name in (*names, hub):
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)
