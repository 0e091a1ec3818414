"""`paceline forecast`: what a minute with the real engine and the real prompts says of a run.

    make_forecast(config, ...)     the facts, as plain values

How long each test takes is `harness.survey`'s to say; here is what follows for the run: whether it
will be VALID, how many samples it needs, what room is left in memory, what energy it takes.

What is not measured is None, with the reason beside it.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from paceline.config import RunConfig
from paceline.engines.probe import ProbeResult
from paceline.harness import verdict
from paceline.harness.query_size import query_len, stated_qps
from paceline.harness.trial import Job, crowding, run_trial
from paceline.mlperf import rules
from paceline.operate.forecast_energy import Watts
from paceline.submission import system_nvml

__all__ = ["make_forecast"]

Observer = Callable[[Mapping[str, Any]], None]

# Beside the measurement: to load the model, and to answer what is in flight at the end.
_LOAD_LIMIT_S = 7200.0
# Two standard errors on either side; where a query was measured once, this part of it.
_SIGMAS, _UNKNOWN_ERROR = 2.0, 0.05


def make_forecast(
    config: RunConfig, *, seconds: float, folder: Path, observer: Observer
) -> dict[str, Any]:
    """Measure for `seconds` in a process of its own and say what follows. Raises PacelineError."""
    cards: list[dict[str, Any]] = []

    def observe(event: Mapping[str, Any]) -> None:
        if event["event"] == "full":
            cards.extend(_cards())
        observer(event)

    limit_s = _LOAD_LIMIT_S + 2 * seconds + config.stall_timeout_s
    job = Job(config=config, kind="survey", seconds=seconds, limit_s=limit_s)
    with Watts(config.power) as watts:
        facts = run_trial(job, folder, observer=observe).require()
    surveyed = facts["survey"]
    held = ProbeResult(**surveyed["held"]) if surveyed["held"] else None
    tests = {name: _bounded(test) for name, test in surveyed["tests"].items()}
    if config.scenario != "Offline":
        tests = _at_a_rate(config)
    speed = _speed(tests, held)
    return {
        "benchmark": config.benchmark,
        "scenario": config.scenario,
        "mode": config.mode,
        "engine": config.engine,
        "measured_for_s": surveyed["seconds"],
        "load_s": facts["load_s"],
        "num_loads": _num_loads(facts, tests),
        "speed": speed,
        "pace": surveyed["pace"],
        "slices": surveyed["slices"],
        "tests": tests,
        "not_foretold": [one for one in verdict.tests_of(config.mode) if one not in tests],
        "wall_s": _wall_s(config, facts, tests),
        "sizing": _sizing(config, speed, surveyed["sizing"]),
        "validity": _validity(config, tests, speed, is_sized="target_qps" in surveyed["sizing"]),
        "submission_shortfalls": list(config.shortfalls),
        "samples_note": facts["samples_note"],
        "machine": facts.get("machine"),
        "crowding": crowding(facts),
        "memory": _memory(facts, cards),
        **watts.energy(tests, held_unix_s=surveyed["held_unix_s"]),
    }


def _bounded(test: Mapping[str, Any]) -> dict[str, Any]:
    """With the times that it will hardly be below or above."""
    error = test["relative_error"]
    part = _SIGMAS * (_UNKNOWN_ERROR / _SIGMAS if error is None or math.isnan(error) else error)
    return {
        **test,
        "relative_error": None if error is None or math.isnan(error) else error,
        "low_s": test["seconds"] * max(0.0, 1 - part),
        "high_s": test["seconds"] * (1 + part),
    }


def _at_a_rate(config: RunConfig) -> dict[str, dict[str, Any]]:
    """Tests whose samples come at a rate take as long as the rate makes them."""
    loadgen, target_qps = config.loadgen, config.loadgen.target_qps
    if target_qps is None:
        return {}
    least_s = loadgen.min_duration_ms / 1000
    counts = {
        "performance": max(loadgen.min_query_count, math.ceil(least_s * target_qps)),
        "accuracy": config.num_samples,
    }
    return {
        name: {
            "num_samples": count,
            "seconds": count / target_qps,
            "relative_error": None,
            "how": "by the rate",
            "low_s": count / target_qps,
            "high_s": count / target_qps,
        }
        for name, count in counts.items()
        if name in verdict.tests_of(config.mode)
    }


def _speed(tests: Mapping[str, Mapping[str, Any]], held: ProbeResult | None) -> dict[str, Any]:
    """Of the performance run, its start and end included, where there is one; else when full."""
    unsure = ""
    if held is not None and not held.is_full and not held.is_modelled:
        unsure = f"; the engine was not yet full after {held.ramp_s:.0f} s: give more --seconds"
    of_run = tests.get("performance") or tests.get("accuracy") or {}
    if "tokens_per_second" in of_run:
        error = of_run["relative_error"]
        speed = {name: of_run[name] for name in ("tokens_per_second", "samples_per_second")}
        speed |= {"relative_error": error, "how": of_run["how"] + unsure}
        # The rate with the engine full, where the run has an end that is slower.
        full = held.samples_per_second if held else of_run["samples_per_second"]
        high = held.high_samples_per_second if held else full * (1 + _SIGMAS * (error or 0.0))
        return speed | {"full_samples_per_second": full, "high_samples_per_second": high}
    assert held is not None
    return {
        "tokens_per_second": held.tokens_per_second,
        "samples_per_second": held.samples_per_second,
        "relative_error": held.relative_error,
        "how": "with the engine full" + (", modelled" if held.is_modelled else "") + unsure,
        "full_samples_per_second": held.samples_per_second,
        "high_samples_per_second": held.high_samples_per_second,
    }


def _num_loads(facts: Mapping[str, Any], tests: Mapping[str, Any]) -> int:
    """Each test loads the model for itself, but for servers that all of them share."""
    is_shared = "cannot_be_kept" in facts["engine"] and not facts["engine"]["cannot_be_kept"]
    return min(1, len(tests)) if is_shared else len(tests)


def _wall_s(
    config: RunConfig, facts: Mapping[str, Any], tests: Mapping[str, Mapping[str, Any]]
) -> float:
    """The measurement that sizes the run comes on top."""
    is_sized = config.loadgen.probe_s if "performance" in tests else 0.0
    loads_s = facts["load_s"] * _num_loads(facts, tests)
    return float(loads_s + sum(test["seconds"] for test in tests.values()) + is_sized)


def _sizing(config: RunConfig, speed: Mapping[str, Any], said: str) -> dict[str, Any]:
    """Samples for the minimum duration of the benchmark. LoadGen's unit is samples/s."""
    least_ms = rules.benchmark(config.benchmark).min_duration_ms or config.loadgen.min_duration_ms
    whole = dataclasses.replace(config.loadgen, min_duration_ms=least_ms)
    high, is_offline = speed["high_samples_per_second"], config.scenario == "Offline"
    target_qps = stated_qps(whole, high) if is_offline else float(f"{high:.4g}")
    return {
        "min_duration_s": least_ms / 1000,
        "samples_needed": math.ceil(speed["full_samples_per_second"] * least_ms / 1000),
        "target_qps": target_qps,
        "query_samples": query_len(whole, target_qps) if is_offline else None,
        "said": said or None,
    }


def _validity(
    config: RunConfig,
    tests: Mapping[str, Mapping[str, Any]],
    speed: Mapping[str, Any],
    *,
    is_sized: bool,
) -> dict[str, Any]:
    """LoadGen's word on the performance run as configured, and what to change."""
    least_s, target_qps = config.loadgen.min_duration_ms / 1000, config.loadgen.target_qps
    high = speed["high_samples_per_second"]
    if "performance" not in tests and config.scenario == "Offline":
        return _word("UNKNOWN", "the run has no performance test", None)
    if config.scenario != "Offline":
        if target_qps is not None and target_qps > high:
            return _word(
                "INVALID",
                f"{target_qps:g} samples/s are asked for, and the engine makes "
                f"{speed['full_samples_per_second']:.4g} with no limit on latencies",
                "--find-qps",
            )
        return _word(
            "UNKNOWN",
            "latencies at a rate are not measured by a forecast; the engine's "
            f"{speed['full_samples_per_second']:.4g} samples/s without limits bound the rate",
            "--find-qps",
        )
    test = tests["performance"]
    took = f"{test['seconds']:.4g} s (from {test['low_s']:.4g} to {test['high_s']:.4g})"
    seen = f"{test['num_samples']:,} samples take {took}, the minimum is {least_s:g} s"
    if test["low_s"] >= least_s:
        return _word("VALID", seen, None)
    if is_sized:
        return _word("UNCERTAIN", seen, f"--set loadgen.target_qps={high * 1.1:.4g}")
    needed = stated_qps(config.loadgen, high)
    change = f"--set loadgen.target_qps={needed:g}, or leave target_qps and run.probe_s out"
    return _word("INVALID" if test["high_s"] < least_s else "UNCERTAIN", seen, change)


def _word(result: str, reason: str, change: str | None) -> dict[str, Any]:
    return {"result": result, "reason": reason, "change": change}


def _memory(facts: Mapping[str, Any], cards: list[dict[str, Any]]) -> dict[str, Any]:
    """What was in use with the engine full, as far as it or the machine says."""
    copies = facts.get("full", {}).get("copies", ())
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "kv_pages": sum(copy["kv_pages"] for copy in copies) or None,
        "kv_used_fraction": max((copy["kv_used_fraction"] for copy in copies), default=None),
        "live_sequences": sum(copy["live_sequences"] for copy in copies) or None,
        "preemptions": sum(copy["preemptions"] for copy in copies) if copies else None,
        "cards": cards or None,
        "process_peak_bytes": facts["peak_rss_bytes"],
        "host_bytes": total,
    }


def _cards() -> list[dict[str, Any]]:
    return [
        {"index": card.index, "memory_bytes": card.memory_bytes, "free_bytes": card.free_bytes}
        for card in system_nvml.health()
    ]
