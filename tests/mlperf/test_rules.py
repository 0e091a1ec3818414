"""The rule book against a record of its sources."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from paceline.errors import InputError
from paceline.mlperf import rules

OFFICIAL = tomllib.loads((Path(__file__).parent / "official_values.toml").read_text())
LLAMA2 = ("llama2-70b-99", "llama2-70b-99.9")


@pytest.mark.parametrize("name", sorted(OFFICIAL["seeds"]))
def test_the_seeds_of_a_round_are_the_checkers(name: str) -> None:
    seeds = rules.ROUNDS[name].seeds
    found = [str(seeds.qsl), str(seeds.sample_index), str(seeds.schedule)]
    assert found == OFFICIAL["seeds"][name]


@pytest.mark.parametrize("name", sorted(OFFICIAL["models"]))
def test_a_round_lists_the_benchmarks_that_its_checker_lists(name: str) -> None:
    assert list(rules.ROUNDS[name].benchmarks) == OFFICIAL["models"][name]


@pytest.mark.parametrize("name", sorted(rules.ROUNDS))
def test_a_round_names_a_wheel_that_carries_its_seeds(name: str) -> None:
    assert OFFICIAL["wheels"][rules.ROUNDS[name].wheel] == name


@pytest.mark.parametrize(("name", "fraction"), [(LLAMA2[0], 0.99), (LLAMA2[1], 0.999)])
def test_accuracy_targets_are_the_reference_times_the_fraction(name: str, fraction: float) -> None:
    accuracy = rules.benchmark(name).accuracy
    assert set(accuracy) == set(rules.ACCURACY_METRICS)
    for metric in ("rouge1", "rouge2", "rougeL"):
        reference = OFFICIAL["accuracy"][metric]["reference"]
        assert accuracy[metric].low == pytest.approx(reference * fraction, rel=1e-12)
        assert accuracy[metric].high is None
    tokens = accuracy["tokens_per_sample"]
    assert tokens.low == pytest.approx(OFFICIAL["accuracy"]["tokens_per_sample"]["low"], rel=1e-12)
    assert tokens.high == pytest.approx(
        OFFICIAL["accuracy"]["tokens_per_sample"]["high"], rel=1e-12
    )


@pytest.mark.parametrize("name", LLAMA2)
def test_counts_and_limits_are_the_sources(name: str) -> None:
    found = rules.benchmark(name)
    assert found.num_samples == OFFICIAL["counts"]["performance_samples"]
    assert found.performance_samples == OFFICIAL["counts"]["performance_samples"]
    assert found.min_duration_ms == OFFICIAL["counts"]["min_duration_ms"]
    for scenario, (ttft_ms, tpot_ms) in OFFICIAL["latency_ms"].items():
        limits = found.latency[scenario]
        assert (limits.ttft_ms, limits.tpot_ms) == (ttft_ms, tpot_ms)


def test_every_constant_names_its_source() -> None:
    sources = [r.source for r in rules.ROUNDS.values()]
    sources += [r.seeds.source for r in rules.ROUNDS.values()]
    for found in rules.BENCHMARKS.values():
        sources += [found.source, *(b.source for b in found.accuracy.values())]
        sources += [limit.source for limit in found.latency.values()]
    for source in sources:
        assert source.repository
        assert source.commit
        assert source.path
        assert source.symbol


def test_a_bound_never_holds_for_what_is_no_number() -> None:
    bound = rules.benchmark(LLAMA2[0]).accuracy["rouge1"]
    assert not bound.hold(float("nan"))
    assert bound.hold(bound.low)


def test_a_wrong_benchmark_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"did you mean 'llama2-70b-99\.9'"):
        rules.benchmark("llama2-70b-99.99")


def test_a_short_run_takes_samples_from_the_whole_dataset() -> None:
    assert rules.sample_rows(8, 8) == list(range(8))
    assert rules.sample_rows(24576, 4) == [0, 6144, 12288, 18432]
    with pytest.raises(InputError, match="96 samples"):
        rules.sample_rows(96, 97)
