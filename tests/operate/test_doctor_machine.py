"""Machines that stop a run before it starts: each made for real, each found with its way out."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cards import finding, machine
from support import Outcome, Paceline

LARGE = ("doctor", "--benchmark", "llama2-70b-99.9", "--json")
MANAGED = (*LARGE, "--engine", "managed", "--set")
NATIVE = (*LARGE, "--engine", "native", "--set", "engine.native.device=cuda")


def namespaced(folder: Path, kind: str, before: str, *words: str, **env: str) -> Outcome:
    """`paceline` in a namespace of its own, in which `before` was done first."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("a machine of its own is a namespace, which needs root")
    command = shlex.join([sys.executable, "-m", "paceline", *words])
    done = subprocess.run(
        ["unshare", kind, "sh", "-c", f"{before} || exit 77\nexec {command}"],
        cwd=folder,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode == 77 or "unshare failed" in done.stderr:
        pytest.skip(f"this root may not: {done.stderr.strip()}")
    return Outcome(done)


def mounted(size: str, place: object) -> str:
    return f"mount -t tmpfs -o {size} tmpfs {shlex.quote(str(place))}"


@pytest.mark.parametrize(("size", "level"), [("64m", "blocker"), ("1g", "warning"), ("9g", "ok")])
def test_little_shared_memory_stops_servers_of_several_cards(
    tmp_path: Path, size: str, level: str
) -> None:
    cards = machine(tmp_path / "driver")
    words = (*MANAGED, "engine.managed.preset=vllm")
    small = mounted(f"size={size}", "/dev/shm")
    told = finding(namespaced(tmp_path, "-m", small, *words, **cards), "shared memory")
    assert told["level"] == level
    assert "/dev/shm: " in told["seen"]
    if level != "ok":
        assert "mount -o remount,size=32G /dev/shm" in told["mend"]
        assert "--shm-size=32g" in told["mend"]


def test_little_shared_memory_is_no_fault_where_nobody_shares_it(tmp_path: Path) -> None:
    small = mounted("size=64m", "/dev/shm")
    words = (*LARGE, "--engine", "fake")
    alone = namespaced(tmp_path, "-m", small, *words, LD_LIBRARY_PATH="")
    assert finding(alone, "shared memory")["level"] == "ok"


def test_a_folder_for_temporary_files_must_take_them(tmp_path: Path) -> None:
    place, file = tmp_path / "scratch", tmp_path / "file"
    place.mkdir()
    file.touch()
    for folder, before in (
        (place, mounted("ro,size=2g", place)),
        (tmp_path / "gone", "true"),
        (file, "true"),
    ):
        ended = namespaced(tmp_path, "-m", before, "doctor", "--json", TMPDIR=str(folder))
        assert ended.code == 1, ended
        told = finding(ended, "temporary files")
        assert told["level"] == "blocker"
        assert told["seen"].startswith(f"{folder} ")
        assert told["mend"] == "export TMPDIR=DIR_YOU_CAN_WRITE"
    small = mounted("size=64m", place)
    told = finding(
        namespaced(tmp_path, "-m", small, "doctor", "--json", TMPDIR=str(place)),
        "temporary files",
    )
    assert (told["level"], told["mend"]) == ("warning", "export TMPDIR=DIR_ON_A_LARGER_DISK")
    assert "67.11 MB free" in told["seen"]


FOUR = (*MANAGED, "engine.managed.preset=llamacpp", "--set", "engine.managed.servers=4")
RANGE = "echo '40000 40007' > /proc/sys/net/ipv4/ip_local_port_range"
HOLD = """
import socket, subprocess, sys
held = [socket.create_server(("127.0.0.1", 40000 + i)) for i in range(int(sys.argv[1]))]
sys.exit(subprocess.call([sys.executable, "-m", "paceline", *sys.argv[2:]]))
"""


@pytest.mark.parametrize("num_held", [0, 5])
def test_ports_that_others_hold_are_missed_by_servers(tmp_path: Path, num_held: int) -> None:
    """Of eight ports there are three left, and four servers to start."""
    if shutil.which("ip") is None:
        pytest.skip("needs `ip` to bring a loopback up")
    holding = shlex.join([sys.executable, "-c", HOLD, str(num_held), *FOUR])
    # What follows it in the namespace, the same doctor with nobody in the way, says nothing here.
    before = f"ip link set lo up && {RANGE} && {{ {holding}; exit $?; }}"
    told = finding(namespaced(tmp_path, "-n", before, "--version"), "ports")
    if num_held:
        assert told["level"] == "blocker"
        assert told["seen"] == "4 ports of 127.0.0.1 cannot be had: Address already in use"
        assert "ss -ltn" in told["mend"]
    else:
        assert (told["level"], told["seen"]) == ("ok", "4 of 127.0.0.1 can be had")


def test_a_loopback_that_is_down_is_said(tmp_path: Path) -> None:
    told = finding(namespaced(tmp_path, "-n", "true", *FOUR), "ports")
    assert told["level"] == "blocker"
    assert "4 ports of 127.0.0.1 cannot be had: Network is unreachable" in told["seen"]
    assert "ip addr show lo" in told["mend"]


def a_torch(folder: Path, cuda: str | None) -> str:
    """A PyTorch built for that CUDA, as far as its files tell; the value of PYTHONPATH for it."""
    facts = folder / "torch-2.9.0.dist-info"
    for place in (folder / "torch", facts):
        place.mkdir(parents=True)
    (folder / "torch/__init__.py").touch()
    (folder / "torch/version.py").write_text(f"cuda: Optional[str] = {cuda!r}\n")
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.9.0\n")
    return os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])


@pytest.mark.parametrize(
    ("driver", "cuda", "seen"),
    [
        (
            "470.57.02",
            "12.8",
            "torch 2.9.0 has CUDA 12.8, which needs driver 525 or newer; here is",
        ),
        (
            "570.86.15",
            "13.0",
            "torch 2.9.0 has CUDA 13.0, which needs driver 580 or newer; here is",
        ),
        ("570.86.15", "12.8", None),
        ("580.65.06", "13.0", None),
        ("580.65.06", None, "torch 2.9.0 is built without CUDA"),
    ],
)
def test_a_driver_older_than_pytorchs_cuda_is_a_blocker(
    paceline: Paceline, tmp_path: Path, driver: str, cuda: str | None, seen: str | None
) -> None:
    environment = machine(tmp_path / "driver", DRIVER=f'"{driver}"')
    environment["PYTHONPATH"] = a_torch(tmp_path / "site", cuda)
    told = finding(paceline(*NATIVE, env=environment), "torch")
    if seen is None:
        assert told["level"] == "ok"
        assert told["seen"] == f"torch 2.9.0, CUDA {cuda}, as the driver allows"
        return
    assert told["level"] == "blocker"
    assert told["seen"].startswith(seen)
    assert (driver in told["seen"]) is (cuda is not None)
    assert ("newer driver" in told["mend"]) is (cuda is not None)


@pytest.mark.parametrize(
    ("preset", "program"),
    [("vllm", "vllm"), ("trtllm", "trtllm-serve"), ("llamacpp", "llama-server")],
)
def test_a_server_whose_program_is_missing_cannot_be_started(
    quick: Paceline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preset: str, program: str
) -> None:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    words = (*MANAGED[1:], f"engine.managed.preset={preset}")
    lost = quick(*words)
    assert lost.code == 1, lost
    told = finding(lost, "server program")
    assert (told["level"], told["seen"]) == ("blocker", f"{program}: not on PATH")
    assert f"--set engine.managed.executable=PATH of {preset}'s program" in told["mend"]
    found = tmp_path / "bin" / program
    found.write_text("#!/bin/sh\n")
    assert finding(quick(*words), "server program")["level"] == "blocker"
    found.chmod(0o755)
    told = finding(quick(*words), "server program")
    assert (told["level"], told["seen"]) == ("ok", str(found))


@pytest.mark.parametrize(
    ("preset", "module"), [("sglang", "sglang"), ("llama-cpp-python", "llama_cpp")]
)
def test_a_server_that_is_a_module_must_be_in_its_python(
    paceline: Paceline, tmp_path: Path, preset: str, module: str
) -> None:
    words = (*MANAGED, f"engine.managed.preset={preset}")
    told = finding(paceline(*words), "server program")
    assert told["level"] == "blocker"
    assert told["seen"] == f"{sys.executable} has no package {module}"
    assert "engine.managed.executable=THAT/bin/python" in told["mend"]
    (tmp_path / "site" / module).mkdir(parents=True)
    (tmp_path / "site" / module / "__init__.py").touch()
    paths = os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])
    told = finding(paceline(*words, env={**os.environ, "PYTHONPATH": paths}), "server program")
    assert (told["level"], told["seen"]) == ("ok", sys.executable)
