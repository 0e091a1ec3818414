"""The watch on a cap, other nodes' files, and the sum of what is known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paceline.errors import RecipeError
from paceline.power import Board, CapWatch, NodeFiles, parse_watts


@pytest.mark.parametrize(
    ("text", "watts"), [("10kW", 10000), ("9.5 kw", 9500), ("800W", 800), (" 1.25KW ", 1250)]
)
def test_watts_are_read_as_people_write_them(text: str, watts: float) -> None:
    assert parse_watts(text) == watts


@pytest.mark.parametrize("text", ["10", "kW", "-5kW", "0W", "10 kWh", "1e4W", "ten kW"])
def test_a_power_without_a_unit_or_a_sense_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="is no power"):
        parse_watts(text)


def watched(cap: CapWatch, watts: list[float | None], step_s: float = 1.0) -> list[str]:
    said = [cap.look(place * step_s, value) for place, value in enumerate(watts)]
    return [text for text in said if text is not None]


def test_crossing_95_percent_is_said_once_and_above_is_said_again() -> None:
    cap = CapWatch(1000)
    said = watched(cap, [900, 949, 950, 960, 970, 1001, 1002, 960, 951])
    assert said == [
        "power: 950 W, 95% of the cap of 1,000 W",
        "power: 1,001 W, ABOVE the cap of 1,000 W",
    ]
    assert (cap.near_s, cap.above_s, cap.peak_w) == (5, 2, 1002)


def test_a_wave_about_95_percent_is_one_warning() -> None:
    cap = CapWatch(1000)
    assert len(watched(cap, [951, 945, 952, 940, 955, 931, 953])) == 1
    assert cap.look(8, 900) is None
    assert cap.look(9, 951) is not None


def test_exactly_the_cap_is_not_above_it() -> None:
    cap = CapWatch(1000)
    watched(cap, [1000, 1000, 1000])
    assert (cap.near_s, cap.above_s) == (2, 0)


def test_a_lasting_excess_is_said_once_a_minute() -> None:
    assert len(watched(CapWatch(1000), [1100.0] * 130)) == 3


def test_seconds_without_a_sum_are_counted_apart() -> None:
    cap = CapWatch(1000)
    watched(cap, [None, None, None, 1001, 1001])
    assert (cap.unknown_s, cap.above_s) == (2, 2)


def row(unix_s: float, watts: float, device: str = "gpu 0", **more: object) -> str:
    facts = {"unix_s": unix_s, "device": device, "power_w": watts, "scope": "card", **more}
    return json.dumps(facts) + "\n"


def test_files_of_other_nodes_are_read_as_they_grow(tmp_path: Path) -> None:
    other = tmp_path / "power-node2.jsonl"
    other.write_text(row(90, 1) + row(100, 700) + row(101, 710)[:20])
    (tmp_path / "power-node1.jsonl").write_text(row(100, 5))
    nodes = NodeFiles(tmp_path, own_host="node1", since_unix_s=95)
    assert [(one["host"], one["power_w"]) for one in nodes.poll()] == [("node2", 700)]
    assert nodes.poll() == []
    with other.open("a") as file:
        file.write(row(101, 710)[20:] + "damaged\n" + row(102, float("nan")) + row(103, 720))
    assert [one["power_w"] for one in nodes.poll()] == [710, 720]
    assert nodes.num_bad_lines == 2


def test_the_sum_is_of_the_newest_reading_of_each_device_of_each_host() -> None:
    board = Board()
    for host, device, watts, unix_s in (
        ("a", "gpu 0", 600.0, 100.0),
        ("a", "gpu 0", 650.0, 101.0),
        ("a", "gpu 1", 640.0, 101.0),
        ("b", "gpu 0", 630.0, 100.5),
    ):
        board.put(host, unix_s, {"device": device, "power_w": watts, "scope": "card"})
    assert board.total_w(102) == 1920
    board.put("b", 101, {"device": "node", "power_w": 1500.0, "scope": "node"})
    assert board.total_w(102) == 2790


def test_a_host_that_fell_silent_is_named_and_not_in_the_sum() -> None:
    board = Board()
    board.put("a", 100, {"device": "gpu 0", "power_w": 600.0})
    board.put("b", 120, {"device": "gpu 0", "power_w": 630.0})
    assert board.total_w(121) == 630
    assert board.silent(121) == ["a"]
    assert board.total_w(200) is None
