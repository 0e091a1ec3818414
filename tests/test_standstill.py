"""A timed test is excused by a machine that stood still, once or twice, and by nothing else."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from standstill import watched

CONFTEST = """
from contextlib import nullcontext
from types import SimpleNamespace

import standstill


def pytest_configure(config):
    config.addinivalue_line("markers", "timed: as in the tests of paceline")
    standstill.watched = lambda: nullcontext(SimpleNamespace(seconds={}))
    config.pluginmanager.register(standstill.Repeater())
"""
TESTS = """
from pathlib import Path

import pytest

COUNT = Path(__file__).with_name("count")


@pytest.fixture
def number():
    COUNT.write_text(COUNT.read_text() + "x" if COUNT.exists() else "x")
    return len(COUNT.read_text())


{}
def test_that_holds_at_some_time(number):
    assert number == {}
"""
MARK = "@pytest.mark.timed"
DRAWN = "@pytest.mark.hypothesis"  # as Hypothesis marks its tests


def ended(folder: Path, *, stood_s: float, mark: str, holds_at: int) -> tuple[int, int, str]:
    """How pytest ended, how often the test was run, and what was printed."""
    (folder / "conftest.py").write_text(CONFTEST.format(stood_s))
    (folder / "test_one.py").write_text(TESTS.format(mark, holds_at))
    words = [sys.executable, "-m", "pytest", "-q", "-c", "/dev/null", "--rootdir", ".", "."]
    environment = {"PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    return done.returncode, len((folder / "count").read_text()), done.stdout


def test_a_block_that_is_slow_is_no_standstill() -> None:
    with watched() as standstill:
        time.sleep(0.3)
    assert standstill.seconds < 0.3


def test_time_that_stood_still_is_told() -> None:
    with watched() as standstill:
        standstill.sleeper.send_signal(signal.SIGSTOP)
        time.sleep(0.4)
        standstill.sleeper.send_signal(signal.SIGCONT)
        time.sleep(0.1)
    assert standstill.seconds >= 0.35


@pytest.mark.parametrize(("mark", "holds_at"), [(MARK, 2), (MARK, 3), (DRAWN, 2)])
def test_what_failed_while_nothing_ran_is_repeated_and_told(
    tmp_path: Path, mark: str, holds_at: int
) -> None:
    code, count, printed = ended(tmp_path, stood_s=0.7, mark=mark, holds_at=holds_at)
    assert (code, count) == (0, holds_at), printed
    times = " and ".join(["0.7 s"] * (holds_at - 1))
    assert f"repeated, as the machine stood still for {times}: test_one.py::test_that" in printed


def test_what_fails_each_time_has_failed(tmp_path: Path) -> None:
    code, count, printed = ended(tmp_path, stood_s=0.7, mark=MARK, holds_at=4)
    assert (code, count) == (1, 3), printed
    assert "1 failed" in printed


@pytest.mark.parametrize(("stood_s", "mark"), [(0.0, MARK), (0.7, "")])
def test_nothing_else_is_repeated(tmp_path: Path, stood_s: float, mark: str) -> None:
    code, count, printed = ended(tmp_path, stood_s=stood_s, mark=mark, holds_at=2)
    assert (code, count) == (1, 1), printed
    assert "stood still" not in printed
