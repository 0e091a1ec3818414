"""What a minute with a started engine says of the run: how long each of its tests will take.

A query that ends in the time is measured whole, its end included. One that does not is played
through the engine's pace (`engines.pace`), which is fitted to what was seen with few sequences
live and with many.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from paceline import engines
from paceline.config import RunConfig
from paceline.engines import pace
from paceline.engines.pace import Slice
from paceline.engines.probe import Probe, ProbeResult
from paceline.harness import preflight, verdict
from paceline.harness.query_size import query_len
from paceline.harness.samples import Samples

__all__ = ["Survey", "survey"]

_NUM_SLICES = 24
_MOST_BURSTS = 3
# Of the time that is left: what may go to few sequences, at first and later, and to the ramp of
# many.
_FIRST_PART, _FEW_PART, _RAMP_PART = 0.05, 0.2, 0.25
# And to a query as it is guessed; less of an engine that cannot forget one that does not end.
_WHOLE_PART, _WHOLE_PART_KEPT = 0.9, 0.6
# Of all the time: what is kept for many sequences until every test was measured whole.
_HOLD_PART = 0.4
_FEW, _LEAST_S = 8, 1.0
# From so many on of those that a step's room for prompts lets live, it is what limits them.
_FILLED_PART = 0.75
# A query is long that lasts as long as MLPerf's shortest, or has so many samples.
_LONG_S, _LONG_SAMPLES = 600.0, 100_000
# What a model is off by on an engine of known costs, which is never unsteady.
_MODEL_ERROR = 0.015


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """`tests` holds for each what `described` gives; `held` is the speed with the engine full, in
    `held_unix_s`, from and to by the clock."""

    tests: Mapping[str, Mapping[str, Any]]
    held: ProbeResult | None
    held_unix_s: tuple[float, float] | None
    pace: pace.Pace
    slices: Sequence[Slice]
    config: RunConfig
    sizing: str
    seconds: float


class _Surveyor:
    """One engine, surveyed once."""

    def __init__(
        self,
        config: RunConfig,
        engine: engines.Engine,
        samples: Samples,
        *,
        drawn: Sequence[int],
        seconds: float,
    ) -> None:
        self._config = config
        self._engine = engine
        self._requests = requests = samples.requests(range(len(samples.prompts)))
        self._samples, self._drawn = samples, drawn
        self._start_s = time.perf_counter()
        self._seconds = seconds
        # The origins of the prompts lie one after another: any part of these is spread over all.
        order = np.random.default_rng(0).permutation(len(requests)).tolist()
        self.probe = Probe(engine, [requests[i] for i in order], slice_s=seconds / _NUM_SLICES)
        self.held: ProbeResult | None = None
        self.held_unix_s: tuple[float, float] | None = None
        self._wholes: dict[str, list[float]] = {}
        self._windows: dict[str, list[tuple[float, float]]] = {}
        self._full = preflight.in_flight(config, engine)
        self._step_tokens = getattr(config.engine_config, "step_tokens", None)
        self._cache_tokens: int | None = None

    @property
    def left_s(self) -> float:
        return self._seconds - (time.perf_counter() - self._start_s)

    def indices(self, test: str) -> list[int]:
        """The samples of a test's query; a performance query draws its samples over and over."""
        if test == "accuracy":
            return list(range(len(self._requests)))
        target_qps = self._config.loadgen.target_qps
        assert target_qps is not None
        times = query_len(self._config.loadgen, target_qps) // len(self._drawn)
        return list(self._drawn) * times

    def lengths(self, test: str) -> list[tuple[int, int]]:
        """(prompt_len, output_len) of a test's samples, in the order in which the engine takes
        them; output_len as seen, else as expected."""
        seen = self.probe.output_lens
        found = [
            (len(self._samples.prompts[i]), seen.get(i, self._samples.expected_lens[i]))
            for i in self.indices(test)
        ]
        return self._in_order(found)

    def _in_order(self, lengths: list[tuple[int, int]]) -> list[tuple[int, int]]:
        if getattr(self._config.engine_config, "is_longest_first", False):
            lengths.sort(key=lambda one: -one[0])
        return lengths

    def pace(self) -> pace.Pace:
        return pace.fit(self.probe.slices, **self._limits())

    def _limits(self) -> dict[str, int | None]:
        """What keeps sequences from living: places, room in a step, room in the cache."""
        return {
            "max_live": self._max_live(),
            "step_tokens": self._step_tokens,
            "cache_tokens": self._cache_tokens,
        }

    def try_whole(self, test: str) -> None:
        """Measure the query of a test, where it is not too long for what is left of the time.

        A query that does not even fill the engine is tried. Of another one the time is guessed
        first: an engine that cannot forget would have to answer all of it.
        """
        indices, kept_s = self.indices(test), self._seconds * _HOLD_PART
        if not self._wholes:
            self.hold_few(self._full, part=_FIRST_PART)
        if self.probe.slices and (len(indices) > self._full or self._wholes):
            limit = self._max_live() or self._full
            guess = dataclasses.replace(self.pace(), max_live=limit)
            can_forget = isinstance(self._engine, engines.CancellingEngine)
            part = _WHOLE_PART if can_forget else _WHOLE_PART_KEPT
            if guess.seconds(self.lengths(test)) > self.left_s * part:
                return
            kept_s = 0.0
        if (room_s := self.left_s - kept_s) > 0:
            self._burst(test, room_s)

    def repeat(self, test: str) -> None:
        """Measure once more what was measured whole, as long as there is time for it."""
        while 0 < len(self._wholes.get(test, ())) < _MOST_BURSTS:
            if self.left_s <= max(self._wholes[test]) or not self._burst(test, self.left_s):
                return

    def _burst(self, test: str, limit_s: float) -> bool:
        self.settle()
        query = [self._requests[i] for i in self.indices(test)]
        output_tokens = sum(output_len for _, output_len in self.lengths(test))
        took_s = self.probe.burst(query, limit_s=limit_s, output_tokens=output_tokens)
        if took_s is None:  # what is in flight may go on: the engine is as full as it came to be
            return False
        end_s = time.time()
        self._wholes.setdefault(test, []).append(took_s)
        self._windows.setdefault(test, []).append((end_s - took_s, end_s))
        return True

    def is_whole(self, test: str) -> bool:
        return test in self._wholes

    def hold_few(self, many: int, *, part: float) -> None:
        """Part of the time with one sequence and on to few."""
        few = max(1, many // _FEW)
        if few < many:
            seconds = max(self.left_s * part, self._seconds * _HOLD_PART * part)
            seconds = max(min(_LEAST_S, self.left_s * _FEW_PART), seconds)
            limit_s = self._config.stall_timeout_s
            self.probe.climb(most=few, seconds=seconds, limit_s=limit_s)
            self.settle()

    def hold(self, most: int | None) -> None:
        """The time that is left with many sequences: what is in flight of a query that did not end,
        and others in place of those that do; else after part of it with few."""
        count = many = min(self._full, most or self._full)
        if is_fresh := self.probe.is_idle:
            self.hold_few(many, part=_FEW_PART)
        # A query that did not end may have left too little.
        seconds = max(_LEAST_S, self.left_s, self._seconds * _HOLD_PART * (1 - _FEW_PART))
        fitted = self.pace()
        prompt_s = statistics.fmean(fitted.prompt_s(len(one)) for one in self._samples.prompts)
        if is_fresh and prompt_s > 0:  # so many that their prompts are done within the ramp
            count = max(1, min(many, int(seconds * _RAMP_PART / prompt_s)))
        start_s = time.time()
        held = self.probe.hold(
            in_flight=count,
            seconds=seconds,
            tokens_per_sample=self._mean_len(),
            is_bounded=True,
        )
        self._cache_tokens = self.probe.cache_tokens
        self.held = held if held.is_full and count == many else self._filled(held)
        self.held_unix_s = (start_s + held.ramp_s, time.time())

    def _filled(self, held: ProbeResult) -> ProbeResult:
        """The speed of an engine that has all that it can take on: of a query that is long."""
        pace, lengths = self.pace(), self.lengths("accuracy")
        times = min(_LONG_S / pace.seconds(lengths), _LONG_SAMPLES / len(lengths))
        query = self._in_order(lengths * math.ceil(times))
        rate = len(query) / pace.seconds(query)
        mean = self._mean_len()
        return dataclasses.replace(
            held,
            samples_per_second=rate,
            tokens_per_second=rate * mean,
            tokens_per_sample=mean,
            relative_error=self._error_of_model(query),
            is_modelled=True,
        )

    def settle(self) -> None:
        self.probe.settle(limit_s=self._config.stall_timeout_s)

    def size(self) -> str:
        """Make the run as long as the speed needs, where it is left open; that in words."""
        if self._config.loadgen.probe_s <= 0 or self.held is None:
            return ""
        self._config, words = preflight.size(self._config, self.held)
        return words

    @property
    def config(self) -> RunConfig:
        return self._config

    def described(self, test: str) -> dict[str, Any]:
        """How long a test's query takes, and how that is known."""
        lengths, times = self.lengths(test), self._wholes.get(test)
        tokens = sum(output_len for _, output_len in lengths)
        if times:
            seconds, error = statistics.fmean(times), self._error_of_whole(times)
            how = f"measured whole, {_count(len(times))}"
        else:
            seconds, error = self.pace().seconds(lengths), self._error_of_model(lengths)
            how = "modelled"
        return {
            "num_samples": len(lengths),
            "seconds": seconds,
            "relative_error": error,
            "how": how,
            "tokens": tokens,
            "tokens_per_second": tokens / seconds if seconds else None,
            "samples_per_second": len(lengths) / seconds if seconds else None,
            "windows_unix_s": self._windows.get(test, []),
        }

    def _error_of_whole(self, times: Sequence[float]) -> float:
        """One standard error, as a fraction, of the next time: the mean's and its own. By how much
        the engine was unsteady in all, or these times were apart if that is more."""
        mean, more = statistics.fmean(times), 1 + 1 / len(times)
        error = math.sqrt(pace.noise_s(self.probe.slices, self.pace()) / mean * more)
        if len(times) > 1:
            error = max(error, statistics.stdev(times) / mean * math.sqrt(more))
        return error

    def _error_of_model(self, lengths: Sequence[tuple[int, int]]) -> float:
        slices, fitted = self.probe.slices, self.pace()
        spread = pace.spread(slices, lengths, **self._limits())
        own = pace.noise_s(slices, fitted) / fitted.seconds(lengths)
        return math.sqrt(spread**2 + own + _MODEL_ERROR**2)

    def _mean_len(self) -> float:
        return float(np.mean([length for _, length in self.lengths("accuracy")]))

    def _max_live(self) -> int | None:
        """How many live at once, as the engine's settings know it or else the probe, where places
        are short and not room in the steps for their prompts."""
        places: int | None = getattr(self._config.engine_config, "places", None)
        if places is None and self.probe.is_limited:
            places = self.probe.max_live
        if places is None:
            return None
        if self._step_tokens is not None:
            filled = preflight.steady_live(self._step_tokens, self._samples)
            if places > _FILLED_PART * filled:
                return None
        return places


def survey(
    config: RunConfig,
    engine: engines.Engine,
    samples: Samples,
    *,
    drawn: Sequence[int],
    seconds: float,
    full: Callable[[], None],
) -> Survey:
    """Survey a started engine for about `seconds`; nothing is in flight at the end.

    A performance query draws the samples `drawn`. `full` is called while the engine is full.
    Raises EngineError.
    """
    found = _Surveyor(config, engine, samples, drawn=drawn, seconds=seconds)
    streams = engine if isinstance(engine, engines.StreamingEngine) else None
    if streams is not None:
        streams.set_streaming(True)
    tests = _tests_of(config)
    is_open = config.loadgen.probe_s > 0
    if "performance" in tests and not is_open:
        found.try_whole("performance")
    if "accuracy" in tests:
        found.try_whole("accuracy")
    for test in tests:
        found.repeat(test)
    if not tests or not all(found.is_whole(test) for test in tests):
        sizes = [len(found.indices(test)) for test in tests]
        found.hold(None if is_open or not sizes else max(sizes))
    full()
    found.settle()
    if streams is not None:
        streams.set_streaming(None)
    words = found.size()
    return Survey(
        tests={test: found.described(test) for test in tests},
        held=found.held,
        held_unix_s=found.held_unix_s,
        pace=found.pace(),
        slices=found.probe.slices,
        config=found.config,
        sizing=words,
        seconds=seconds - found.left_s,
    )


def _count(times: int) -> str:
    return "once" if times == 1 else f"{times} times"


def _tests_of(config: RunConfig) -> tuple[str, ...]:
    """The tests whose queries are played: those that come at once. TEST06 draws a hundred
    samples, and is left out."""
    if config.scenario != "Offline":
        return ()
    return tuple(test for test in verdict.tests_of(config.mode) if test != "compliance")
