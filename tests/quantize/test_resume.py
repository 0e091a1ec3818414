"""A run of `quantize` that ends early is gone on with, to the same bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import calibration_of, save_llama

from paceline.quantize import QuantizeOptions, quantize

# A block of the toy fills a shard.
SHARD_BYTES = 40_000
OPTIONS: dict[str, Any] = {
    "format": "w4a8",
    "is_kv_fp8": True,
    "uses_gptq": True,
    "smooth_alpha": 0.5,
}
CHILD = """
import sys
sys.path[:0] = [sys.argv[3], sys.argv[3] + "/.."]
from pathlib import Path
from test_resume import SHARD_BYTES, run
import torch
torch.set_num_threads(1)
import paceline.quantize.store
paceline.quantize.store.SHARD_BYTES = SHARD_BYTES
run(Path(sys.argv[1]), Path(sys.argv[2]))
"""


class Stopped(Exception):
    """Stands for Ctrl-C and a full disk."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums are in another order with another number of threads, and tests before may set it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("toy"), num_hidden_layers=6)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paceline.quantize.store.SHARD_BYTES", SHARD_BYTES)


def run(
    toy: Path,
    out: Path,
    *,
    stop_at: int | None = None,
    begun: list[int] | None = None,
    **other: Any,
) -> list[str]:
    """Quantise; `begun` gets the blocks that were begun. Returns the sentences told."""
    told: list[str] = []

    def progress(what: str, part: float) -> None:
        block = round(6 * part)
        if begun is not None and block < 6:
            begun.append(block)
        if block == stop_at:
            raise Stopped

    try:
        options = QuantizeOptions(**{**OPTIONS, **other})
        samples = calibration_of(toy)
        quantize(toy, out, options, samples=samples, progress=progress, tell=told.append)
    except Stopped:
        assert not out.exists()
    return told


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a run that nothing stops writes."""
    out = tmp_path_factory.mktemp("whole") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("paceline.quantize.store.SHARD_BYTES", SHARD_BYTES)
        run(toy, out)
    return contents(out)


def test_a_run_killed_on_the_spot_goes_on_where_it_stood(
    toy: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    """kill -9 as soon as two blocks are noted, then the same command."""
    command = [sys.executable, "-c", CHILD, str(toy), str(tmp_path / "out")]
    process = subprocess.Popen([*command, str(Path(__file__).parent)], env=os.environ)
    noted = tmp_path / "out.partial.progress" / "progress.json"
    deadline = time.monotonic() + 120
    while not (noted.is_file() and json.loads(noted.read_text())["next_block"] >= 2):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    begun: list[int] = []
    told = run(toy, tmp_path / "out", begun=begun)
    assert begun[0] >= 2
    assert told == [f"{tmp_path / 'out.partial'}: goes on at block {begun[0] + 1}."]
    assert contents(tmp_path / "out") == whole
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("block", [1, 3, 5])
def test_a_run_stopped_at_any_block_gives_the_same_bytes(
    toy: Path, tmp_path: Path, whole: dict[str, bytes], block: int
) -> None:
    told = run(toy, tmp_path / "out", stop_at=block)
    assert "keeps what is finished" in told[-1]
    begun: list[int] = []
    run(toy, tmp_path / "out", begun=begun)
    assert begun == list(range(block, 6))
    assert contents(tmp_path / "out") == whole


def test_a_run_that_died_while_shards_got_their_names_only_names_them(
    toy: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    run(toy, tmp_path / "out")
    partial, noted = tmp_path / "out.partial", tmp_path / "out.partial.progress"
    (tmp_path / "out").rename(partial)
    # As it is on disk in that moment: every block noted, some shards named.
    run(toy, tmp_path / "other", stop_at=5)
    (tmp_path / "other.partial.progress").rename(noted)
    found = json.loads((noted / "progress.json").read_text())
    assert found["next_block"] == 5
    (partial / "model-00001-of-00007.safetensors").rename(partial / "shard-00000.safetensors")
    begun: list[int] = []
    run(toy, tmp_path / "out", begun=begun)
    assert begun == [5]
    found = contents(tmp_path / "out")
    assert {name: found[name] for name in whole} == whole


def damage_shard(folder: Path) -> None:
    path = folder / "out.partial" / "shard-00001.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def damage_states(folder: Path) -> None:
    (path,) = (folder / "out.partial.progress").glob("states-*")
    path.write_bytes(path.read_bytes()[:-1])


def damage_note(folder: Path) -> None:
    (folder / "out.partial.progress" / "progress.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_shard, "shard 2 has not the bytes"),
        (damage_states, "has not the bytes that were noted"),
        (damage_note, "progress.json cannot be read"),
    ],
)
def test_damaged_work_is_thrown_away_and_the_run_says_so(
    toy: Path, tmp_path: Path, whole: dict[str, bytes], damage: Any, words: str
) -> None:
    run(toy, tmp_path / "out", stop_at=3)
    damage(tmp_path)
    begun: list[int] = []
    told = run(toy, tmp_path / "out", begun=begun)
    assert words in told[0]
    assert begun[0] == 0
    assert contents(tmp_path / "out") == whole


def test_work_of_other_options_is_not_gone_on_with(
    toy: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    run(toy, tmp_path / "out", stop_at=3, smooth_alpha=0.4)
    told = run(toy, tmp_path / "out")
    assert "another model, calibration set or options" in told[0]
    assert contents(tmp_path / "out") == whole
