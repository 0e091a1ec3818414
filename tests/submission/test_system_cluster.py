"""`paceline system --ray`: each way in which there is no cluster is one sentence, in time."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from ray_nodes import free_port
from support import Outcome, Paceline

pytest.importorskip("ray", reason="Ray is not installed: pip install 'paceline[ray]'")


def described(paceline: Paceline, address: str, **environment: str) -> tuple[Outcome, list[str]]:
    """What `paceline system --ray ADDRESS` says when it fails: the error, and what to do next."""
    began_s = time.monotonic()
    clean = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    outcome = paceline("system", "--ray", address, "--json", env=clean | environment)
    assert time.monotonic() - began_s < 60
    assert outcome.out == ""
    lines = outcome.err.splitlines()
    assert len(lines) == 2, outcome
    assert lines[0].startswith("error: ")
    assert lines[1].startswith("  Next: ")
    return outcome, lines


@pytest.mark.parametrize("is_auto", [False, True])
def test_a_head_that_has_ended_is_named_with_what_to_start(
    paceline: Paceline, is_auto: bool
) -> None:
    address = f"127.0.0.1:{free_port()}"
    if is_auto:
        outcome, lines = described(paceline, "auto", RAY_ADDRESS=address)
    else:
        outcome, lines = described(paceline, address)
    assert outcome.code == 3
    assert "no Ray to reach at" in lines[0]
    assert address.rpartition(":")[2] in lines[0]
    assert "ray start --head" in lines[1]


@pytest.mark.skipif(os.geteuid() != 0, reason="a view without other processes needs root")
def test_a_host_on_which_no_ray_runs_is_told_so(tmp_path: Path, paceline: Paceline) -> None:
    """In a view of its own: other tests may have a Ray, which auto would find."""
    script = 'mkdir -p /tmp/ray; mount --bind "$0" /tmp/ray; exec "$@"'
    words = ["unshare", "--pid", "--mount", "--fork", "--mount-proc", "sh", "-c", script]
    words += [str(tmp_path), sys.executable, "-m", "paceline", "system", "--ray", "auto"]
    clean = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    told = subprocess.run(
        words, capture_output=True, text=True, env=clean, cwd=tmp_path, timeout=60
    )
    assert told.returncode == 3, told
    assert told.stderr.startswith("error: No Ray runs on this host, and RAY_ADDRESS names none")
    assert "ray start --address=HEAD:6379" in told.stderr


def test_ray_that_is_not_installed_is_told_with_how_to_install_it(
    tmp_path: Path, paceline: Paceline
) -> None:
    (tmp_path / "ray.py").write_text("raise ModuleNotFoundError(\"No module named 'ray'\")\n")
    path = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"
    outcome, lines = described(paceline, "auto", PYTHONPATH=path)
    assert outcome.code == 3
    assert "Ray, which cannot be imported here: No module named 'ray'" in lines[0]
    assert "pip install 'paceline[ray]'" in lines[1]


def test_a_port_of_something_else_is_told_at_once(paceline: Paceline) -> None:
    with socket.create_server(("", 0)) as server:

        def answer() -> None:
            link, _ = server.accept()
            with link:
                link.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        _, lines = described(paceline, address)
        thread.join()
    assert lines[0].endswith(f"{address}: ConnectionError: what listens there is no Ray.")


def test_a_head_that_hangs_is_told_in_seconds(paceline: Paceline) -> None:
    """It takes the connection and says nothing: Ray itself would try for many minutes."""
    with socket.create_server(("", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        _, lines = described(paceline, address)
    assert lines[0].endswith(f"{address}: TimeoutError: timed out")


@pytest.mark.parametrize("address", ["", "nonsense", "nowhere.invalid:6379"])
def test_an_address_that_is_none_is_told(paceline: Paceline, address: str) -> None:
    _, lines = described(paceline, address)
    assert address in lines[0]
