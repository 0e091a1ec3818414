"""Servers that a run owns: they start together, and none outlives it, whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from support import wait_until

from paceline.engines import servers as servers_module
from paceline.engines.server_process import Listener, ServerCommand, free_ports, without_secrets
from paceline.engines.servers import ServerGroup
from paceline.errors import EngineError

pytestmark = pytest.mark.timed

STAND_IN = Path(__file__).with_name("stand_in_server.py")


@pytest.fixture
def pids(tmp_path: Path) -> Path:
    """Where every process of the stand-ins writes its number."""
    return tmp_path / "pids"


def command(pids: Path, name: str, *options: str, **more: Any) -> ServerCommand:
    (port,) = free_ports(1)
    argv = (sys.executable, str(STAND_IN), "--port", str(port), "--pids", str(pids), *options)
    return ServerCommand(name=name, argv=argv, port=port, **more)


def group(tmp_path: Path, *commands: ServerCommand, **more: Any) -> ServerGroup:
    more.setdefault("start_timeout_s", 30.0)
    told = {"report": lambda what, fraction: None}
    told |= {name: more.pop(name) for name in ("report", "on_lost") if name in more}
    more["listener"] = Listener(**told)
    return ServerGroup(commands, log_dir=tmp_path / "log", **more)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def running(pids: Path) -> list[int]:
    return [pid for pid in map(int, pids.read_text().split()) if is_running(pid)]


def test_servers_start_together_and_all_are_gone_after_close(
    tmp_path: Path, pids: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers_module, "_REPORT_EVERY_S", 0.1)
    said: list[str] = []
    commands = [
        command(pids, f"server-{i}", "--delay", "1", environment={"CUDA_VISIBLE_DEVICES": str(i)})
        for i in range(3)
    ]
    servers = group(tmp_path, *commands, report=lambda what, fraction: said.append(what))
    start_s = time.monotonic()
    urls = servers.start()
    # One after the other they would take three seconds and three starts.
    assert time.monotonic() - start_s < 3.0
    seen = [urllib.request.urlopen(url).read().decode() for url in urls]
    assert seen == ["0", "1", "2"]
    assert len(running(pids)) == 3
    servers.close()
    servers.close()
    assert running(pids) == []
    assert any("0 of 3 servers ready" in line and "loading weights: 100%" in line for line in said)


def test_a_server_that_dies_at_its_start_is_told_with_its_last_lines(
    tmp_path: Path, pids: Path
) -> None:
    fine = command(pids, "fine", "--delay", "60")
    dying = command(pids, "dying", "--delay", "60", "--die-after", "1")
    with pytest.raises(EngineError) as caught:
        group(tmp_path, fine, dying).start()
    assert "dying ended (exit 7) before it was ready" in caught.value.message
    assert "out of memory, said the stand-in" in caught.value.message
    assert str(tmp_path / "log" / "dying.log") in str(caught.value)
    assert running(pids) == []


def test_a_later_start_adds_to_the_log_and_is_told_by_its_own_lines(
    tmp_path: Path, pids: Path
) -> None:
    log = tmp_path / "log" / "one.log"
    log.parent.mkdir()
    log.write_text("an earlier test's last words\n")
    with pytest.raises(EngineError) as caught:
        group(tmp_path, command(pids, "one", "--delay", "60", "--die-after", "0")).start()
    assert "earlier" not in caught.value.message
    assert log.read_text().startswith("an earlier test's last words\nloading weights")


def test_a_program_that_is_not_there_is_told(tmp_path: Path) -> None:
    missing = ServerCommand(name="server-0", argv=("/no/such/server",), port=free_ports(1)[0])
    with pytest.raises(EngineError, match="/no/such/server cannot be started"):
        group(tmp_path, missing).start()


def test_a_server_that_hangs_on_its_health_check_is_given_up(tmp_path: Path, pids: Path) -> None:
    fine, hanging = command(pids, "fine"), command(pids, "hanging", "--hang")
    with pytest.raises(EngineError, match="hanging was not ready after 2 s"):
        group(tmp_path, fine, hanging, start_timeout_s=2.0).start()
    assert running(pids) == []


def test_a_server_that_ignores_sigterm_is_killed(tmp_path: Path, pids: Path) -> None:
    servers = group(tmp_path, command(pids, "deaf", "--ignore-sigterm"), stop_timeout_s=0.5)
    servers.start()
    start_s = time.monotonic()
    servers.close()
    assert 0.4 < time.monotonic() - start_s < 5.0
    assert running(pids) == []


def test_workers_that_left_the_group_or_lost_their_parent_end_too(
    tmp_path: Path, pids: Path
) -> None:
    servers = group(tmp_path, command(pids, "many", "--spawn"))
    servers.start()
    assert len(running(pids)) == 4
    servers.close()
    assert running(pids) == []


def test_workers_of_a_server_that_crashed_end_too(tmp_path: Path, pids: Path) -> None:
    servers = group(tmp_path, command(pids, "many", "--spawn", "--die-after", "2"))
    servers.start()
    try:
        wait_until(lambda: servers.failures() != {}, within_s=15)
        assert "many ended (exit 7) while it served" in servers.failures()["many"]
        assert servers.describe()[0]["exit_code"] == 7
        assert running(pids) == []
    finally:
        servers.close()


def test_a_server_that_dies_once_is_started_again_at_the_same_address(
    tmp_path: Path, pids: Path
) -> None:
    lost: list[str] = []
    servers = group(
        tmp_path,
        command(pids, "one", "--die-after", "1", "--deaths", "1"),
        restarts=2,
        on_lost=lost.append,
    )
    (url,) = servers.start()
    try:
        wait_until(lambda: len(pids.read_text().split()) == 2, within_s=15)
        wait_until(lambda: servers.describe()[0]["ready_after_s"] is not None, within_s=15)
        assert urllib.request.urlopen(url).status == 200
        (described,) = servers.describe()
        assert (described["ended"], described["is_lost"]) == (1, False)
        assert lost == []
        assert "one ended (exit 7) while it served" in servers.failures()["one"]
    finally:
        servers.close()
    assert running(pids) == []


def test_the_owner_hears_when_the_last_server_has_no_start_left(tmp_path: Path, pids: Path) -> None:
    lost: list[str] = []
    servers = group(
        tmp_path,
        command(pids, "one", "--die-after", "1"),
        restarts=1,
        on_lost=lost.append,
    )
    servers.start()
    try:
        wait_until(lambda: lost != [], within_s=15)
        assert lost[0].count("one ended (exit 7)") == 2
        assert servers.describe()[0]["is_lost"]
    finally:
        servers.close()
    assert running(pids) == []


OWNER = """
import signal, sys, time
# A job in the background inherits that Ctrl-C is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path[:0] = {path!r}
from pathlib import Path
from test_servers import command, group
servers = group(Path({tmp!r}), command(Path({pids!r}), "one", "--spawn", "--ignore-sigterm"),
                command(Path({pids!r}), "two"), stop_timeout_s=0.5)
servers.start()
print("up", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left_when_the_owner_is_ended(
    tmp_path: Path, pids: Path, number: signal.Signals
) -> None:
    path = [str(Path(__file__).parent), *filter(None, sys.path)]
    code = OWNER.format(path=path, tmp=str(tmp_path), pids=str(pids))
    owner = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert owner.stdout is not None
    assert owner.stdout.readline() == "up\n"
    assert len(running(pids)) == 5
    owner.send_signal(number)
    owner.wait(timeout=60)
    wait_until(lambda: running(pids) == [], within_s=15)
    owner.stdout.close()


def test_a_server_ends_with_its_launcher(tmp_path: Path, pids: Path) -> None:
    servers = group(tmp_path, command(pids, "one"))
    servers.start()
    (server,) = running(pids)
    launcher = int(Path(f"/proc/{server}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(launcher, signal.SIGKILL)
    wait_until(lambda: running(pids) == [], within_s=15)
    servers.close()


def test_the_record_holds_versions_and_command_lines_and_no_secret(
    tmp_path: Path, pids: Path
) -> None:
    servers = group(
        tmp_path,
        command(
            pids,
            "one",
            "--api-key",
            "sesame",
            version_argv=(sys.executable, "-c", "print('noise'); print('7.1')"),
            environment={"HF_TOKEN": "sesame", "MODE": "fast"},
        ),
        command(pids, "two", "--api-key=sesame", version_pattern=r"weights: +(\d+)%"),
    )
    servers.start()
    try:
        wait_until(lambda: servers.describe()[0]["version"] is not None, within_s=15)
        one, two = servers.describe()
        assert (one["version"], two["version"]) == ("7.1", "100")
        assert one["environment"] == {"HF_TOKEN": "***", "MODE": "fast"}
        assert f"--port {one['url'].rpartition(':')[2]}" in one["command"]
        assert "sesame" not in str(servers.describe())
        assert one["ready_after_s"] > 0
    finally:
        servers.close()


def test_flags_that_only_sound_secret_are_shown() -> None:
    argv = ["vllm", "--max-num-batched-tokens", "2048", "--api-key", "K", "--hf-token=H", "-x"]
    assert without_secrets(argv) == [*argv[:4], "***", "--hf-token=***", "-x"]
