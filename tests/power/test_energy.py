"""Energy of known shapes, and what is part of a host's sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.power import summarise


def rows(
    points: Sequence[tuple[float, float]],
    device: str = "gpu 0",
    *,
    host: str = "a",
    scope: str = "card",
) -> list[dict[str, Any]]:
    return [
        {"t_s": t_s, "power_w": watts, "device": device, "host": host, "scope": scope}
        for t_s, watts in points
    ]


def figures(found: list[dict[str, Any]], start_s: float, end_s: float) -> Mapping[str, Any]:
    result = summarise(found, start_s, end_s)
    assert result is not None
    return result


def test_a_trapezoid_has_its_area() -> None:
    """Up from 100 to 300 W in 2 s, 4 s of it, down in 2 s: 400 + 1200 + 400 J."""
    found = figures(rows([(0, 100), (2, 300), (6, 300), (8, 100)]), 0, 8)
    assert found["energy_joules"] == 2000
    assert found["mean_w"] == 250
    assert found["peak_w"] == 300


def test_a_window_between_readings_has_its_own_part_of_the_ramp() -> None:
    """From 1 to 3 s of a ramp of 100 W a second: 200 W in the mean, never 400 W."""
    found = figures(rows([(0, 0), (4, 400)]), 1, 3)
    assert found["energy_joules"] == 400
    assert found["peak_w"] == 300


def test_loading_before_the_window_is_not_in_its_energy() -> None:
    found = figures(rows([(-300, 5000), (-1, 5000), (0, 100), (10, 100)]), 0, 10)
    assert found["energy_joules"] == 1000
    assert found["peak_w"] == 100


@given(
    st.lists(st.floats(0, 1500), min_size=2, max_size=30),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_parts_of_a_window_add_up(watts: list[float], one: float, other: float) -> None:
    found = rows([(float(place), value) for place, value in enumerate(watts)])
    end_s = float(len(watts) - 1)
    middle_s = max(0.01, min(0.99, one * 0.9 + other * 0.1)) * end_s
    first = figures(found, 0, middle_s)["energy_joules"]
    second = figures(found, middle_s, end_s)["energy_joules"]
    assert figures(found, 0, end_s)["energy_joules"] == pytest.approx(first + second, abs=0.03)


def test_the_peak_of_the_sum_is_of_one_moment() -> None:
    """Two cards that take turns never draw the sum of their peaks."""
    found = rows([(0, 700), (1, 700), (2, 100), (3, 100)], "gpu 0")
    found += rows([(0, 100), (1, 100), (2, 700), (3, 700)], "gpu 1")
    assert figures(found, 0, 3)["peak_w"] == 800


def test_a_node_that_is_read_as_a_whole_is_not_counted_with_its_parts() -> None:
    flat = [(0.0, 1.0), (10.0, 1.0)]
    found = rows([(t, 700.0) for t, _ in flat], "gpu 0")
    found += rows([(t, 200.0) for t, _ in flat], "cpu 0", scope="cpu")
    assert figures(found, 0, 10)["mean_w"] == 900
    found += rows([(t, 1100.0) for t, _ in flat], "node", scope="node")
    whole = figures(found, 0, 10)
    assert whole["mean_w"] == 1100
    assert {one["device"]: one["in_sum"] for one in whole["devices"]} == {
        "gpu 0": False,
        "cpu 0": False,
        "node": True,
    }


def test_hosts_add_up_each_by_what_it_has() -> None:
    found = rows([(0, 1100), (10, 1100)], "node", scope="node", host="a")
    found += rows([(0, 700), (10, 700)], "gpu 0", host="a")
    found += rows([(0, 650), (10, 650)], "gpu 0", host="b")
    assert figures(found, 0, 10)["mean_w"] == 1750


def test_seconds_without_a_reading_are_counted() -> None:
    found = figures(rows([(0, 100), (1, 100), (41, 100), (42, 100)]), 0, 42)
    assert found["devices"][0]["gap_s"] == 40


def test_a_device_that_was_read_long_before_only_is_no_part_of_it() -> None:
    assert summarise(rows([(-90, 700), (-80, 700)]), 0, 10) is None
    assert summarise([], 0, 10) is None
