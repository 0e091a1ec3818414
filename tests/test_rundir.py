"""The run directory: whole files, a journal that survives a kill, one worker at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.errors import RunDirError
from paceline.rundir import Journal, RunDir, write_atomically

ids = st.lists(st.integers(0, 49151), min_size=1, max_size=20)
groups = st.lists(st.lists(st.tuples(st.integers(0, 1000), ids), min_size=1, max_size=4))


def entry(sample_index: int, token_ids: list[int]) -> tuple[int, str, np.ndarray]:
    return sample_index, "stop", np.array(token_ids, np.int32)


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "verdict.json"
    write_atomically(target, "old")
    write_atomically(target, "new")
    assert target.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["verdict.json"]


def test_a_taken_directory_is_refused_with_the_way_to_finish_it(tmp_path: Path) -> None:
    with RunDir.create(tmp_path / "run") as run:
        run.write_manifest({"status": "RUNNING"})
    with pytest.raises(RunDirError, match="--resume"):
        RunDir.create(tmp_path / "run")


def test_a_directory_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match="not a run directory"):
        RunDir.open(tmp_path)


def test_a_second_worker_is_refused(tmp_path: Path) -> None:
    with RunDir.create(tmp_path / "run"), pytest.raises(RunDirError, match="Another process"):
        RunDir(tmp_path / "run").lock()


def test_a_manifest_of_another_schema_is_refused(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run")
    run.write_json("manifest.json", {"schema": 99})
    with pytest.raises(RunDirError, match="schema 99"):
        run.read_manifest()
    run.close()


def test_a_changed_file_is_named(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run")
    run.write_json("verdict.json", {"verdict": "FAIL"})
    manifest = {"files": run.file_hashes()}
    assert run.changed_files(manifest) == []
    run.write_json("verdict.json", {"verdict": "PASS"})
    assert run.changed_files(manifest) == ["verdict.json"]
    run.close()


@given(groups)
def test_a_journal_gives_back_what_was_appended(
    tmp_path_factory: pytest.TempPathFactory, content: list[list[tuple[int, list[int]]]]
) -> None:
    journal = Journal(tmp_path_factory.mktemp("j") / "journal.jsonl")
    expected: dict[int, list[int]] = {}
    for group in content:
        journal.append([entry(*sample) for sample in group])
        for sample_index, token_ids in group:
            expected.setdefault(sample_index, token_ids)
    journal.close()
    found = {index: kept.tolist() for index, (_, kept) in journal.read().items()}
    assert found == expected
    assert journal.torn_lines == 0


@given(st.data())
def test_a_journal_cut_anywhere_keeps_whole_groups_only(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("j") / "journal.jsonl"
    journal = Journal(path)
    sizes = []
    for group in range(4):
        journal.append([entry(2 * group, [5, group]), entry(2 * group + 1, [6, group])])
        sizes.append(path.stat().st_size)
    journal.close()
    cut = data.draw(st.integers(0, sizes[-1]))
    path.write_bytes(path.read_bytes()[:cut])
    # The line's own newline may be missing: its checksum still proves it whole.
    whole = sum(size - 1 <= cut for size in sizes)
    reopened = Journal(path)
    assert set(reopened.read()) == set(range(2 * whole))
    reopened.append([entry(100, [9, 2])])
    reopened.close()
    assert set(reopened.read()) == {*range(2 * whole), 100}


def test_a_flipped_byte_in_the_journal_is_counted_not_used(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.append([entry(1, [3, 4])])
    journal.append([entry(2, [5, 6])])
    journal.close()
    damaged = bytearray(path.read_bytes())
    damaged[20] ^= 1
    path.write_bytes(damaged)
    assert set(journal.read()) == {2}
    assert journal.torn_lines == 1
