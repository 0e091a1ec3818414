"""A Slurm of a test's own: munged, slurmctld and slurmd for a few nodes, all on this host."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol")
_STARTED_WITHIN_S = 30.0
_CONFIG = """
ClusterName=test
SlurmctldHost={host}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/m.sock
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmctldPort={ports[0]}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
KillWait=5
PlugStackConfig=/dev/null
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class SlurmCluster:
    """Nodes n1, n2, ... of two cores each. `environment` is what a user of it has."""

    def __init__(self, folder: Path, num_nodes: int) -> None:
        self.folder = folder
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._nodes = [f"n{number + 1}" for number in range(num_nodes)]

    def start(self) -> None:
        (self.folder / "state").mkdir()
        (self.folder / "key").write_bytes(os.urandom(1024))
        (self.folder / "key").chmod(0o400)
        host, ports = socket.gethostname(), _free_ports(1 + len(self._nodes))
        lines = [
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2"
            for name, port in zip(self._nodes, ports[1:], strict=True)
        ]
        config = _CONFIG.format(host=host, folder=self.folder, ports=ports, nodes="\n".join(lines))
        (self.folder / "slurm.conf").write_text(config)
        own = {"socket": "m.sock", "key-file": "key", "pid-file": "m.pid", "seed-file": "m.seed"}
        options = [f"--{name}={self.folder / value}" for name, value in own.items()]
        self._daemon("munged", "--foreground", "--force", *options)
        self._await("munged", lambda: (self.folder / "m.sock").exists())
        self._daemon("slurmctld", "-D")
        for name in self._nodes:
            self._daemon("slurmd", "-D", "-N", name)
        idle = ["sinfo", "--noheader", "--states=idle", "--format=%D"]
        self._await("slurmd", lambda: self.ask(*idle).strip() == str(len(self._nodes)))

    def stop(self) -> None:
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in reversed(self._daemons):
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def ask(self, *command: str) -> str:
        """What a command of Slurm prints."""
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60
        ).stdout

    def wait_for(self, what: str, is_so: Callable[[], Any], *, within_s: float = 120.0) -> None:
        ends_s = time.monotonic() + within_s
        while not is_so():
            assert time.monotonic() < ends_s, f"{what}: not within {within_s:g} s\n{self._logs()}"
            time.sleep(0.2)

    def _await(self, what: str, is_so: Callable[[], Any]) -> None:
        self.wait_for(f"{what} starts", is_so, within_s=_STARTED_WITHIN_S)

    def _daemon(self, *command: str) -> None:
        with (self.folder / f"{command[0]}.out").open("ab") as out:
            self._daemons.append(
                subprocess.Popen(
                    command, env=self.environment, stdout=out, stderr=out, start_new_session=True
                )
            )

    def _logs(self) -> str:
        texts = [path.read_text(errors="replace")[-600:] for path in self.folder.glob("*.out")]
        return "\n".join([*texts, self.ask("squeue"), self.ask("sinfo")])


def skip_without_slurm() -> None:
    """Skip, saying so, where a Slurm cannot be started."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        pytest.skip(f"needs Slurm (Debian's slurm-wlm); {', '.join(missing)} not on this machine")
    if os.getuid() != 0:
        pytest.skip("needs root: slurmd starts jobs for other users")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
