"""A good tree damaged at random: the checker always ends, and always finds what matters."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paceline.submission.check import check_tree
from paceline.submission.check.findings import TreeFinding
from paceline.submission.check.sample_tree import SampleTree, write_sample_tree

# A result cannot do without these, whatever is done to them.
NEEDED = (
    "mlperf_log_detail.txt",
    "accuracy.txt",
    "verify_accuracy.txt",
    "measurements.json",
    "example-0000.json",
    "user.conf",
)
JUNK = {
    "nothing": b"",
    "binary": bytes(range(256)) * 50,
    "zeros": b"\0" * 5000,
    "bad utf-8": b'{"a": "\xff\xfe\xc3("}',
    "deep": b"[" * 200_000,
    "deep object": b'{"a":' * 100_000,
    "huge number": b'{"number_of_nodes": ' + b"9" * 6000 + b"}",
    "large exponent": b'{"number_of_nodes": 1e999}',
    "NaN": b'{"status": NaN}',
    "a list": b"[1, 2, 3]",
    "keys twice": b'{"status": "available", "status": "preview"}',
    "braces": b"{}" * 40_000,
    "spaces": b" " * 60_000,
    "marker only": b":::MLLOG ",
    "huge time": b':::MLLOG {"key": "a", "value": 1, "time_ms": ' + b"9" * 400 + b"}\n",
    "values of other types": b':::MLLOG {"key": "effective_scenario", "value": [[{}]]}\n' * 3,
    "figures of dots": b"Samples per second: 1.2.3\nhash=...\n'rouge1': ......\n",
    "one byte": b"\x00",
}
TREES = {
    "v6.1 closed": SampleTree(),
    "v6.1 open": SampleTree(division="open", scenarios=("Offline",)),
    "v5.1 closed": SampleTree(round_name="v5.1"),
}
fuzz = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module", params=sorted(TREES))
def good(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample_tree(tmp_path_factory.mktemp("good") / "tree", TREES[request.param])


def files_of(tree: Path) -> list[Path]:
    return sorted(path.relative_to(tree) for path in tree.rglob("*") if path.is_file())


def damaged(good: Path, folder: str) -> Path:
    tree = Path(folder) / "tree"
    shutil.copytree(good, tree)
    return tree


def is_needed(path: Path) -> bool:
    in_open = path.parts[0] == "open" and path.name == "verify_accuracy.txt"
    return path.name in NEEDED and not in_open


def fails(found: list[TreeFinding]) -> bool:
    json.dumps([finding.as_json() for finding in found])
    return any(not finding.passed for finding in found)


@pytest.mark.parametrize("kind", sorted(JUNK))
def test_junk_in_the_place_of_any_file(good: Path, kind: str) -> None:
    """Every file that a result needs, replaced by this junk, is a failing finding."""
    with tempfile.TemporaryDirectory() as folder:
        tree = damaged(good, folder)
        for path in files_of(good):
            original = (tree / path).read_bytes()
            (tree / path).write_bytes(JUNK[kind])
            assert fails(check_tree(tree)) or not is_needed(path) or path.name == "user.conf", path
            (tree / path).write_bytes(original)


def test_every_file_removed_is_found_when_a_result_needs_it(good: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tree = damaged(good, folder)
        for path in files_of(good):
            original = (tree / path).read_bytes()
            (tree / path).unlink()
            assert fails(check_tree(tree)) or not is_needed(path), path
            (tree / path).write_bytes(original)


@given(data=st.data())
@fuzz
def test_a_file_cut_anywhere_never_stops_the_checker(good: Path, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tree = damaged(good, folder)
        path = data.draw(st.sampled_from(files_of(good)))
        size = (tree / path).stat().st_size
        os.truncate(tree / path, data.draw(st.integers(0, size)))
        fails(check_tree(tree))


@given(data=st.data())
@fuzz
def test_bytes_changed_anywhere_never_stop_the_checker(good: Path, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tree = damaged(good, folder)
        for _ in range(data.draw(st.integers(1, 4))):
            path = tree / data.draw(st.sampled_from(files_of(good)))
            content = bytearray(path.read_bytes())
            at = data.draw(st.integers(0, len(content)))
            content[at : at + data.draw(st.integers(0, 40))] = data.draw(st.binary(max_size=60))
            path.write_bytes(content)
        fails(check_tree(tree))


@given(data=st.data())
@fuzz
def test_any_value_in_any_record_never_stops_the_checker(good: Path, data: st.DataObject) -> None:
    values = st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(max_size=20)
        | st.just(10**400),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=6,
    )
    with tempfile.TemporaryDirectory() as folder:
        tree = damaged(good, folder)
        path = data.draw(st.sampled_from(sorted(tree.rglob("mlperf_log_detail.txt"))))
        lines = path.read_text().splitlines()
        for _ in range(data.draw(st.integers(1, 5))):
            at = data.draw(st.integers(0, len(lines) - 1))
            record = json.loads(lines[at].partition(" ")[2])
            record["value"] = data.draw(values)
            lines[at] = f":::MLLOG {json.dumps(record)}"
        path.write_text("\n".join(lines) + "\n")
        system = next(tree.rglob("systems/*.json"))
        described = json.loads(system.read_text())
        described[data.draw(st.sampled_from(sorted(described)))] = data.draw(values)
        system.write_text(json.dumps(described))
        fails(check_tree(tree))


@given(data=st.data())
@fuzz
def test_two_files_swapped_never_stop_the_checker(good: Path, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tree = damaged(good, folder)
        one, other = (tree / data.draw(st.sampled_from(files_of(good))) for _ in range(2))
        first, second = one.read_bytes(), other.read_bytes()
        one.write_bytes(second)
        other.write_bytes(first)
        found = fails(check_tree(tree))
        needed = is_needed(one.relative_to(tree)) or is_needed(other.relative_to(tree))
        assert (
            found or not needed or one.name == other.name or "user.conf" in (one.name, other.name)
        )
