"""What a run's scenario decides: LoadGen's settings, the search for a rate, the network.

Offline has a rate too, but it only sizes the run: 1 is as good as any other for one whose length
is its count. In Server and Interactive the rate is the load itself, and no value is right by
default; it is given, or searched for (`run.find_qps`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from paceline.config.settings import AUTO
from paceline.engines import NETWORK_ENGINES
from paceline.errors import RecipeError
from paceline.mlperf import rules

__all__ = ["FindQps", "LoadGenSettings", "resolve_find_qps", "resolve_loadgen", "resolve_network"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadGenSettings:
    """What user.conf will say, already decided. Durations in ms, counts in samples.

    `target_qps` is None until a search has found it. `probe_s` is how long to measure for the
    target_qps of an Offline run, 0 where it is given or sizes nothing. `ttft_ms`, `tpot_ms` and
    their percentile are the limits of paceline's own benchmarks; None where the round's limits
    stand, which LoadGen has in itself.
    """

    target_qps: float | None
    min_duration_ms: int
    min_query_count: int
    performance_samples: int
    ttft_ms: int | None = None
    tpot_ms: int | None = None
    latency_percentile: int | None = None
    probe_s: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class FindQps:
    """How the highest rate is searched that stays VALID.

    `start_qps` is the first rate tried, None for the rate of a short Offline test.
    """

    start_qps: float | None
    probe_s: float
    probe_queries: int
    precision: float
    margin: float
    attempts: int


def resolve_loadgen(
    value: Mapping[str, Any], benchmark: rules.Benchmark, num_samples: int
) -> LoadGenSettings:
    """LoadGen's settings. Raises RecipeError when one is impossible, or a rate is missing."""

    def chosen(name: str, default: Any) -> Any:
        return default if value[name] == AUTO else value[name]

    scenario = value["run.scenario"]
    is_offline, limits = scenario == "Offline", benchmark.latency.get(scenario)
    own = limits if not benchmark.is_mlperf else None
    min_duration_ms = chosen("loadgen.min_duration_ms", benchmark.min_duration_ms)
    # A run that no duration holds is as long as its count makes it.
    is_sized = is_offline and min_duration_ms > 0 and value["loadgen.target_qps"] == AUTO
    loaded = min(num_samples, benchmark.performance_samples)
    asked = chosen("loadgen.target_qps", 1.0 if is_offline else None)
    if asked is None and not value["run.find_qps"]:
        raise RecipeError(
            f"The {scenario} scenario needs the rate at which LoadGen is to issue samples: "
            "loadgen.target_qps is auto.",
            hint="--find-qps searches the highest rate that stays VALID; or "
            "--set loadgen.target_qps=N",
        )
    settings = LoadGenSettings(
        target_qps=None if value["run.find_qps"] else float(asked),
        min_duration_ms=min_duration_ms,
        min_query_count=chosen(
            "loadgen.min_query_count", max(loaded, limits.enough_queries) if limits else loaded
        ),
        performance_samples=loaded,
        ttft_ms=own.ttft_ms if own else None,
        tpot_ms=own.tpot_ms if own else None,
        latency_percentile=own.percentile if own else None,
        probe_s=float(value["run.probe_s"]) if is_sized else 0.0,
    )
    too_small = asked is not None and asked <= 0
    too_small = too_small or settings.probe_s < 0
    if too_small or settings.min_duration_ms < 0 or settings.min_query_count < 1:
        raise RecipeError(
            "loadgen: a value is too small.",
            hint="target_qps is above 0, min_duration_ms and run.probe_s at least 0, "
            "min_query_count at least 1",
        )
    return settings


def resolve_find_qps(value: Mapping[str, Any], benchmark: rules.Benchmark) -> FindQps | None:
    """How to search for the rate; None when it is given. Raises RecipeError."""
    if not value["run.find_qps"]:
        return None
    if value["run.scenario"] == "Offline":
        raise RecipeError(
            "run.find_qps is true in the Offline scenario, which has no rate to find.",
            hint="--scenario Server or --scenario Interactive, or --set run.find_qps=false",
        )
    if value["run.mode"] not in ("performance", "all", "submission"):
        raise RecipeError(
            f"run.find_qps is true in a run of mode {value['run.mode']}: a rate is found for a "
            "performance test.",
            hint="--mode performance, all or submission",
        )
    start = value["loadgen.target_qps"]
    queries = value["find_qps.probe_queries"]
    found = FindQps(
        start_qps=None if start == AUTO else float(start),
        probe_queries=benchmark.latency[value["run.scenario"]].enough_queries
        if queries == AUTO
        else queries,
        **{
            name: value[f"find_qps.{name}"]
            for name in ("probe_s", "precision", "margin", "attempts")
        },
    )
    if found.probe_s < 0 or found.probe_queries < 1 or found.attempts < 1:
        raise RecipeError(
            "find_qps: a value is too small.",
            hint="probe_s is at least 0, probe_queries and attempts at least 1",
        )
    if not 0.001 <= found.precision <= 0.5 or not 0 <= found.margin <= 0.5:
        raise RecipeError(
            "find_qps: precision or margin is out of range.",
            hint="precision is from 0.001 to 0.5, margin from 0 to 0.5",
        )
    return found


def resolve_network(value: Mapping[str, Any]) -> bool:
    """Whether the run is of the network division. Raises RecipeError when it cannot be."""
    if value["run.network"] and value["engine.name"] not in NETWORK_ENGINES:
        raise RecipeError(
            f"run.network is true, but the {value['engine.name']} engine runs on this host: in "
            "the network division the system under test is reached over a network.",
            hint=f"--engine {' or '.join(sorted(NETWORK_ENGINES))}, or leave run.network out",
        )
    return bool(value["run.network"])
