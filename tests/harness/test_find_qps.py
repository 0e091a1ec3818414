"""The search for a rate: it ends near the truth whatever the engine's speed, and says how."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.config import FindQps
from paceline.errors import EngineError, RunDirError
from paceline.harness import find_qps, probes
from paceline.harness.loadgen import Load

PLAN = FindQps(
    start_qps=None, probe_s=60.0, probe_queries=662, precision=0.02, margin=0.02, attempts=4
)


def outcome(load: Load, capacity_qps: float) -> probes.Outcome:
    """What an engine that holds exactly `capacity_qps` comes to."""
    rate = min(load.target_qps or capacity_qps, capacity_qps)
    holds = load.target_qps is None or load.target_qps <= capacity_qps
    return probes.Outcome(
        result="VALID" if holds else "INVALID",
        holds=holds,
        samples_per_second=rate,
        duration_s=load.num_queries / rate,
        num_queries=load.num_queries,
        latencies_ms={"ttft_p99_ms": 5.0 if holds else 5000.0, "tpot_p99_ms": None},
        reason="" if holds else "TTFT 2.50 times its limit",
    )


@given(st.floats(0.5, 500), st.floats(0.05, 16), st.sampled_from([0.005, 0.02, 0.1]))
def test_a_search_ends_within_its_precision_below_the_truth(
    capacity: float, error: float, precision: float
) -> None:
    search = find_qps.Search(capacity * error, precision)
    num_probes = 0
    while (rate := search.next_qps()) is not None:
        search.record(rate, holds=rate <= capacity)
        num_probes += 1
    assert search.best_qps is not None
    # Rates have four digits.
    assert capacity / (1 + precision) * 0.999 <= search.best_qps <= capacity
    assert num_probes <= 18


def test_an_engine_that_holds_no_rate_is_given_up_soon(tmp_path: Path) -> None:
    tried = []

    def test(number: int, load: Load) -> probes.Outcome:
        tried.append(load.target_qps)
        return outcome(load, 10.0) if load.target_qps is None else outcome(load, 0.01)

    with pytest.raises(EngineError, match=r"No rate is VALID: even at .* 2\.50 times"):
        find_qps.find(PLAN, tmp_path, test=test, report=lambda _: None)
    assert sum(rate is not None for rate in tried) <= 6
    account = (tmp_path / "probes.txt").read_text()
    assert account.count("INVALID") == sum(rate is not None for rate in tried)


@pytest.mark.parametrize("capacity", [0.5, 40.0, 500.0])
def test_a_search_that_was_broken_off_repeats_no_probe(tmp_path: Path, capacity: float) -> None:
    numbers: list[int] = []

    def test(number: int, load: Load) -> probes.Outcome:
        if len(numbers) == 5 and number == 6:
            numbers.append(0)
            raise EngineError("killed")
        numbers.append(number)
        return outcome(load, capacity)

    with pytest.raises(EngineError, match="killed"):
        find_qps.find(PLAN, tmp_path, test=test, report=lambda _: None)
    found = find_qps.find(PLAN, tmp_path, test=test, report=lambda _: None)
    assert capacity / 1.021 <= found <= capacity
    assert numbers == [*range(1, 6), 0, *range(6, len(numbers))]
    assert [probe.number for probe in probes.read_probes(tmp_path)] == [
        number for number in numbers if number
    ]


def test_the_engines_own_rate_is_taken_with_as_many_samples_as_it_can_use_at_once(
    tmp_path: Path,
) -> None:
    """Eight of 512 slots in use would make the search begin at a hundredth of the truth."""
    asked = []

    def test(number: int, load: Load) -> probes.Outcome:
        if load.target_qps is not None:
            asked.append(load.target_qps)
            return outcome(load, 95.0)
        rate = 100.0 * min(1.0, load.num_queries / 512)
        return dataclasses.replace(outcome(load, rate), duration_s=load.num_queries / rate)

    find_qps.find(PLAN, tmp_path, test=test, report=lambda _: None)
    assert asked[0] == 100.0
    assert len(asked) < 10


def test_a_damaged_account_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "probes.json").write_text(json.dumps({"probes": [{"number": 1}]}))
    with pytest.raises(RunDirError, match=r"probes\.json"):
        probes.read_probes(tmp_path)


def test_the_first_rate_is_the_one_given_when_the_engine_could_reach_it(tmp_path: Path) -> None:
    def first(start_qps: float, folder: str) -> float | None:
        tried: list[float] = []

        def test(number: int, load: Load) -> probes.Outcome:
            tried.extend([load.target_qps] if load.target_qps else [])
            return outcome(load, 100.0)

        place = tmp_path / folder
        place.mkdir()
        plan = FindQps(
            start_qps=start_qps,
            probe_s=1,
            probe_queries=5,
            precision=0.1,
            margin=0.0,
            attempts=1,
        )
        find_qps.find(plan, place, test=test, report=lambda _: None)
        return tried[0]

    assert first(30.0, "low") == 30.0
    assert first(1e9, "high") == 200.0


def test_a_probe_lasts_as_long_as_asked_but_never_plans_millions_of_queries() -> None:
    assert find_qps.load_of(80.0, PLAN).min_duration_ms == 60_000
    assert find_qps.load_of(100_000.0, PLAN).min_duration_ms == 2_000


def test_a_queue_that_grows_is_seen_and_one_that_wanders_is_not() -> None:
    rng = random.Random(7)
    rising = [100 + 0.2 * i + rng.gauss(0, 30) for i in range(2000)]
    assert find_qps.growth(rising, 50.0) == pytest.approx(10.0, rel=0.1)
    wandering = [100 + rng.gauss(0, 30) for _ in range(2000)]
    assert find_qps.growth(wandering, 50.0) == 0.0
    assert find_qps.growth(rising[:20], 50.0) == 0.0
    # Falling, and rising in the first quarter alone, are no growth either.
    assert find_qps.growth(rising[::-1], 50.0) == 0.0
    assert find_qps.growth([*rising[:500], *[200.0] * 1500], 50.0) == 0.0
