"""The highest rate that stays VALID: a bracket by doubling, then by halves, every probe on record.

    Search        which rate to try next, from what was tried; no LoadGen, no clock
    find          the search as real LoadGen tests, written down one by one

A probe is a LoadGen performance test of the scenario, shorter than the run that it is for: of
`probe_s` seconds or `probe_queries` queries, whichever takes longer, its samples drawn one by one.
The search begins at the rate of Offline tests, or at loadgen.target_qps when that is lower: no
server can keep a rate that the same engine does not reach without limits, but for the error of so
short a test, and so the bracket may still open upwards.

A probe is too short to fill up a queue that grows slowly. So a probe that LoadGen calls VALID
counts as too fast when its times to first token grew all through it, at a pace that would break
the limit before 600 s, the shortest run that MLPerf takes, were over.

`probes` keeps the account; a search that was broken off goes on from it.
"""

from __future__ import annotations

import itertools
import math
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paceline.config import FindQps, RunConfig
from paceline.errors import EngineError, RunDirError
from paceline.harness.loadgen import Load, Session
from paceline.harness.performance import judge_log
from paceline.harness.probes import Outcome, Probe, latencies_text, read_probes, write_probes
from paceline.harness.sut import EngineSut
from paceline.mlperf.logs import read_detail

__all__ = ["Search", "find", "growth", "load_of", "run_test"]

_DIGITS = 4
# What LoadGen plans for a probe at a rate that no engine reaches must still fit the memory.
_MOST_QUERIES = 200_000
# An engine that misses its limits at a small part of its own Offline rate misses them at any.
_LEAST_PART = 1 / 40
_MOST_PROBES = 40
# A shorter Offline test measures the engine's start; a longer one is long enough in any case.
_BURST_S, _BURST_SAMPLES, _BURST_GROWTH = (2.0, 120.0), (8, 131_072), 4
_HARDLY_FASTER = 1.5
_HORIZON_S = 600.0
_NUM_BLOCKS, _RISING_PART = 8, 0.75


class Search:
    """Brackets the highest good rate, then halves the bracket until it is narrow enough."""

    def __init__(self, start_qps: float, precision: float) -> None:
        self._start_qps = start_qps
        self._precision = precision
        self._num_tried = 0
        self.best_qps: float | None = None
        self.worst_qps: float | None = None

    def next_qps(self) -> float | None:
        """The rate to try now; None when the search is over."""
        best, worst = self.best_qps, self.worst_qps
        if self._num_tried == 0:
            return _rounded(self._start_qps)
        if self._num_tried == _MOST_PROBES:
            return None
        if worst is None:
            return _rounded(2 * best) if best is not None else None
        if best is None:
            return _rounded(worst / 2) if worst / 2 >= _LEAST_PART * self._start_qps else None
        middle = _rounded((best + worst) / 2)
        narrow = worst <= best * (1 + self._precision) or not best < middle < worst
        return None if narrow else middle

    def record(self, target_qps: float, *, holds: bool) -> None:
        """Take what came of the rate that `next_qps` gave."""
        self._num_tried += 1
        if holds:
            self.best_qps = target_qps
        else:
            self.worst_qps = target_qps


def load_of(target_qps: float, plan: FindQps) -> Load:
    """What a probe at that rate puts on the SUT."""
    seconds = min(plan.probe_s, _MOST_QUERIES / target_qps)
    return Load(
        target_qps=target_qps,
        min_duration_ms=math.floor(1000 * seconds),
        num_queries=plan.probe_queries,
    )


def find(
    plan: FindQps,
    folder: Path,
    *,
    test: Callable[[int, Load], Outcome],
    report: Callable[[Probe], None],
) -> float:
    """The highest rate that stayed VALID. `test` runs one LoadGen test, by its number.

    Goes on from `probes.json` in `folder` when it is there. Raises EngineError when no rate that
    was tried is VALID.
    """
    probes = read_probes(folder)

    def run(load: Load) -> Outcome:
        number = len(probes) + 1
        outcome = test(number, load)
        probe = Probe(
            number=number,
            target_qps=load.target_qps,
            min_duration_ms=load.min_duration_ms,
            min_queries=load.num_queries,
            outcome=outcome,
        )
        probes.append(probe)
        write_probes(folder, probes)
        report(probe)
        return outcome

    offline_qps = _offline_rate(probes, run)
    start_qps = min(plan.start_qps or offline_qps, 2 * offline_qps)
    search = Search(start_qps, plan.precision)
    tried = {p.target_qps: p.outcome.holds for p in probes if p.target_qps is not None}
    while (target_qps := search.next_qps()) is not None:
        known = tried.get(target_qps)
        holds = run(load_of(target_qps, plan)).holds if known is None else known
        search.record(target_qps, holds=holds)
    if search.best_qps is None:
        raise EngineError(_hopeless(probes), hint=f"see {folder / 'probes.txt'}")
    return search.best_qps


def run_test(
    session: Session, config: RunConfig, *, folder: Path, number: int, load: Load, sut: EngineSut
) -> Outcome:
    """One LoadGen test of a search, its logs in a folder of its own. Raises PacelineError."""
    place = folder / f"probe-{number:02}"
    try:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
    except OSError as error:
        raise RunDirError(f"Cannot write {place}: {error.strerror}.") from error
    session.put(load)
    start_s = time.monotonic()
    session.run(place, sut)
    duration_s = time.monotonic() - start_s
    if sut.error is not None:
        raise sut.error
    detail = read_detail(place / "mlperf_log_detail.txt")
    judged: dict[str, Any]
    latencies_ms: dict[str, float | None] = {}
    reason = ""
    if load.target_qps is None:
        judged = {"samples_per_second": detail.get("result_samples_per_second")}
    else:
        judged = judge_log(config, detail)
        names = [f"{name}_p{judged['latency_percentile']}_ms" for name in ("ttft", "tpot")]
        latencies_ms = {name: judged[name] for name in names}
        reason = _why_not(judged, latencies_ms) or _why_not_for_long(sut, load.target_qps, judged)
    rate = judged["samples_per_second"]
    return Outcome(
        result=str(judged.get("result")),
        holds=not reason,
        samples_per_second=float(rate) if isinstance(rate, int | float) else 0.0,
        duration_s=round(duration_s, 3),
        num_queries=sut.counts.issued,
        latencies_ms=latencies_ms,
        reason=reason,
    )


def growth(values_ms: Sequence[float], per_s: float) -> float:
    """By how many ms each second the values rise, `per_s` of them a second; 0 if they do not.

    The first quarter fills the engine. The rest is cut into eight blocks, and three quarters of
    the pairs of their medians must rise. By chance that happens in one of twenty probes; of an
    engine with room left the rise is then too small to matter.
    """
    kept = np.asarray(values_ms)[len(values_ms) // 4 :]
    if len(kept) < 3 * _NUM_BLOCKS:
        return 0.0
    medians = [float(np.median(block)) for block in np.array_split(kept, _NUM_BLOCKS)]
    pairs = list(itertools.combinations(enumerate(medians), 2))
    rises = [(later - earlier) / (j - i) for (i, earlier), (j, later) in pairs]
    is_steady = sum(rise > 0 for rise in rises) >= _RISING_PART * len(rises)
    block_s = len(kept) / _NUM_BLOCKS / per_s
    return max(0.0, statistics.median(rises) / block_s) if is_steady else 0.0


def _why_not(judged: Mapping[str, Any], latencies_ms: Mapping[str, float | None]) -> str:
    """Why LoadGen does not call a probe VALID, in a few words; nothing when it does."""
    over = [
        f"{name.upper()} {found_ms / limit_ms:.2f} times its limit"
        for (name, limit_ms), found_ms in zip(
            judged["latency_limits_ms"].items(), latencies_ms.values(), strict=True
        )
        if found_ms is not None and found_ms >= limit_ms
    ]
    failed = [found["detail"] for found in judged["findings"] if not found["passed"]]
    return "; ".join(over) or (failed[-1] if failed else "")


def _why_not_for_long(sut: EngineSut, target_qps: float, judged: Mapping[str, Any]) -> str:
    """Why a VALID probe would not be VALID for ten minutes; nothing when it would."""
    ttft_ms = sut.first_token_latencies_ms()
    rise = growth(ttft_ms, target_qps)
    left_s = max(0.0, _HORIZON_S - len(ttft_ms) / target_qps)
    end_ms = float(np.median(ttft_ms[-max(1, len(ttft_ms) // 8) :])) + rise * left_s
    if not rise or end_ms < judged["latency_limits_ms"]["ttft"]:
        return ""
    return (
        f"TTFT rises by {rise:.3g} ms each second: {end_ms / 1000:.1f} s after {_HORIZON_S:.0f} s"
    )


def _offline_rate(probes: Sequence[Probe], run: Callable[[Load], Outcome]) -> float:
    """The engine's own rate: that of Offline tests of four times as many samples each, until more
    at once make it hardly faster, or one takes long."""
    done = [probe for probe in probes if probe.target_qps is None]
    outcomes, num_samples = [probe.outcome for probe in done], _BURST_SAMPLES[0]
    if done:
        num_samples = _BURST_GROWTH * done[-1].min_queries
    while not _is_full(outcomes) and num_samples <= _BURST_SAMPLES[1]:
        outcomes.append(run(Load(target_qps=None, min_duration_ms=0, num_queries=num_samples)))
        num_samples *= _BURST_GROWTH
    return max(outcome.samples_per_second for outcome in outcomes)


def _is_full(outcomes: Sequence[Outcome]) -> bool:
    """Whether the engine had all the work it can do at once in the last of these Offline tests."""
    if not outcomes or outcomes[-1].duration_s < _BURST_S[0]:
        return False
    if outcomes[-1].duration_s >= _BURST_S[1]:
        return True
    rates = [outcome.samples_per_second for outcome in outcomes]
    return len(rates) > 1 and rates[-1] < _HARDLY_FASTER * rates[-2]


def _hopeless(probes: Sequence[Probe]) -> str:
    last = probes[-1]
    found = ", ".join(latencies_text(last.outcome)) or "no latencies"
    return (
        f"No rate is VALID: even at {last.target_qps:g} samples/s LoadGen says INVALID "
        f"({found}): {last.outcome.reason}"
    )


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
