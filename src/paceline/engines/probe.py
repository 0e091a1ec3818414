"""How fast an engine is, from a minute or less of it: any engine, before any run.

    probe = Probe(engine, requests)
    probe.burst(...)      a query as Offline gives it, whole, if it ends in the time
    probe.hold(...)       a closed loop: so many in flight, each answer replaced by a request
    probe.settle(...)     nothing is in flight any more

What the engine does meanwhile is kept in slices of time, from which `pace` has the cost of a
step. Tokens come steadily where answers do not: in the first minute only short answers end, so
samples/s are tokens/s divided by the tokens of a sample, which are those of the benchmark unless
enough answers ended to know better.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np

from paceline.engines import CancellingEngine, Engine, ObservableEngine, Request
from paceline.engines.pace import Slice
from paceline.engines.probe_meter import Meter
from paceline.engines.probe_result import ProbeResult, error_of_mean, rate
from paceline.errors import EngineError

__all__ = ["Probe", "ProbeResult"]

# The ramp is a third of the time, and goes on until the engine is full: most of what it works on
# has begun to answer, or no more sequences than before did for as long. It has an end anyway.
_RAMP, _FULL_PART, _LONGEST_RAMP = 1 / 3, 0.75, 4.0
# Slices go into so many blocks, whose rates differ by the error of the whole.
_BLOCKS = 10
# With fewer rounds the answers that ended are the short ones.
_ENOUGH_ROUNDS, _ENOUGH_ANSWERS = 10, 50
# What got less far in this part of its time than that part is given up: by so much, as the first
# steps of a query are not like the others.
_TRIED_PART, _HOPELESS = 0.2, 1.5
# Up to so many requests at once are sent with long prompts as well as with short ones; and so many
# steps have to come of them, of which the first is one of prompts.
_BOTH_ENDS, _RUNG_STEPS = 4, 4
# With less of the cache in use, what is half computed counts for too much.
_TELLING_USE = 0.05
# A slice that met no end of a step is cut anyway after so many times its length.
_LONGEST_SLICE = 4.0


class Probe:
    """Measures an engine that was started.

    Each call raises EngineError when a request failed. `slice_s` is the length of a slice.
    """

    def __init__(self, engine: Engine, requests: Sequence[Request], *, slice_s: float) -> None:
        self._engine = engine
        self._requests = requests
        self._meter = Meter(engine, requests)
        self._slice_s = slice_s
        self._slices: list[Slice] = []
        self._cut = self._meter.edge()

    @property
    def answered(self) -> int:
        return self._meter.answered

    @property
    def max_live(self) -> int:
        """Most sequences that lived at once."""
        return self._meter.most_live

    @property
    def is_idle(self) -> bool:
        """Whether nothing is in flight."""
        return not self._meter.open_ids

    @property
    def cache_tokens(self) -> int | None:
        """Tokens of sequences that the engine's cache holds when full, by the part of it that those
        which live now fill; None where that is not known, or too little to tell."""
        engine: object = self._engine
        state = engine.state() if isinstance(engine, ObservableEngine) else None
        used = None if state is None else state.kv_used_fraction
        if used is None or used < _TELLING_USE:
            return None
        return int(self._meter.context / used)

    @property
    def is_limited(self) -> bool:
        """Whether requests waited for a place: `max_live` is then all the places that there are."""
        return self._meter.is_limited

    @property
    def output_lens(self) -> dict[int, int]:
        """Length of the answer to each request that has one, by the request's id."""
        return self._meter.output_lens

    @property
    def slices(self) -> list[Slice]:
        """What was seen, each from the end of a step to the end of another."""
        return list(self._slices)

    def burst(
        self, requests: Sequence[Request], *, limit_s: float, output_tokens: int
    ) -> float | None:
        """Submit all at once; seconds until the last is answered, None if that takes longer. Given
        up early where little of the prompts and of the `output_tokens` that are expected is done.
        """
        meter = self._meter
        meter.replaces = False
        start_s = time.perf_counter()
        self._begin()
        before = meter.mark()
        meter.send(requests)
        end_s = start_s + limit_s
        all_tokens = output_tokens + sum(len(one.token_ids) for one in requests)
        is_done = self._watch_steps(limit_s * _TRIED_PART, end_s)
        if not is_done and (left_s := end_s - time.perf_counter()) > 0:
            now = meter.mark()
            done = now.made - before.made + now.begun_tokens - before.begun_tokens
            if done * _HOPELESS < all_tokens * (1 - left_s / limit_s):
                return None
            is_done = self._watch(left_s)
        return meter.last_s - start_s if is_done else None

    def climb(self, *, most: int, seconds: float, limit_s: float) -> None:
        """One request alone, then two, four and on to `most` at once; kept in slices only. Each
        goes on to their ends, or as its part of the time is where the engine can forget.

        Prompts, steps with many sequences and steps with few come apart in that, so that the cost
        of each is known; with every answer replaced by a request they come together. So do tokens
        and what stands before them: few at once are the longest prompts, then the shortest.

        Raises EngineError as `settle` does.
        """
        end_s = time.perf_counter() + seconds
        can_forget = isinstance(self._engine, CancellingEngine)
        self._meter.replaces = False
        rungs = self._rungs(most)
        while (left_s := end_s - time.perf_counter()) > 0:
            self._begin()
            if isinstance(rungs[0], int):
                self._meter.send_next(rungs[0])
            else:
                self._meter.send(rungs[0])
            if not self._watch_steps(left_s / len(rungs) if can_forget else left_s, end_s):
                if not can_forget:
                    return
                self.settle(limit_s=limit_s)
            rungs = rungs[1:] or rungs

    def _watch_steps(self, seconds: float, end_s: float) -> bool:
        """Watch for a time, and on until there were some steps; not beyond `end_s`."""
        first = self._meter.mark().steps
        is_idle = self._watch(seconds)
        while not is_idle and self._meter.mark().steps - first < _RUNG_STEPS:
            if (left_s := end_s - time.perf_counter()) <= 0:
                break
            is_idle = self._watch(min(seconds, left_s))
        return is_idle

    def _rungs(self, most: int) -> list[int | Sequence[Request]]:
        """Of a climb: the requests, or how many of those that come next."""
        by_len = sorted(self._requests, key=lambda one: len(one.token_ids))
        counts = [2**place for place in range(math.ceil(math.log2(most)))]
        few = [count for count in counts if count <= _BOTH_ENDS]
        ends = [part for count in few for part in (by_len[-count:], by_len[:count])]
        return [*ends, *counts[len(few) :], most]

    def hold(
        self,
        *,
        in_flight: int,
        seconds: float,
        tokens_per_sample: float,
        is_bounded: bool = False,
    ) -> ProbeResult:
        """Keep so many in flight, of them what already is; the speed after the ramp, in two thirds
        of the time. A ramp longer than a third comes on top, up to four times the time; with
        `is_bounded` it ends with half of the time, and the rest is measured.

        Raises EngineError when nothing was made.
        """
        meter = self._meter
        meter.replaces = True
        meter.rise_anew()
        begun_s = time.perf_counter()
        self._begin()
        wanted = max(0, in_flight - len(meter.open_ids))
        is_cut = isinstance(self._engine, CancellingEngine)
        meter.send_next(wanted, cut_to=tokens_per_sample if is_cut else None)
        is_full = self._fill(seconds, begun_s + seconds * (0.5 if is_bounded else _LONGEST_RAMP))
        ramp_s = time.perf_counter() - begun_s
        answered, tokens = meter.num_whole, meter.num_tokens
        rates, tokens_per_second = self._rates(
            seconds - ramp_s if is_bounded else seconds * (1 - _RAMP)
        )
        meter.replaces = False
        if tokens_per_second == 0:
            raise EngineError(
                f"The engine made nothing in {seconds:g} s.",
                hint="measure for longer, or ask for less",
            )
        answered, tokens = meter.num_whole - answered, meter.num_tokens - tokens
        if answered >= max(_ENOUGH_ROUNDS * in_flight, _ENOUGH_ANSWERS):
            tokens_per_sample = tokens / answered
        return ProbeResult(
            samples_per_second=tokens_per_second / tokens_per_sample,
            tokens_per_second=tokens_per_second,
            tokens_per_sample=tokens_per_sample,
            relative_error=error_of_mean(rates) / tokens_per_second,
            seconds=seconds,
            answered=answered,
            ramp_s=round(ramp_s, 3),
            is_full=is_full,
        )

    def _rates(self, seconds: float) -> tuple[list[float], float]:
        """Tokens/s of blocks of slices, and of all of them, from now on; from the end of a step to
        the end of another, as half a step would be a token of every sequence too few or too many.
        """
        self._cut, first = self._meter.edge(), len(self._slices)
        self._watch(seconds)
        self._cut_slice(is_last=True)
        seen = self._slices[first:]
        blocks = np.array_split(np.arange(len(seen)), min(_BLOCKS, max(1, len(seen))))
        parts = [[seen[place] for place in block] for block in blocks if len(block)]
        return [rate(part) for part in parts], rate(seen)

    def settle(self, *, limit_s: float) -> None:
        """Cancel what is in flight, or wait for it where the engine cannot forget: tokens that an
        engine tells of when an answer ends are then in a slice as well.

        Raises EngineError when the engine answers nothing more.
        """
        meter = self._meter
        meter.replaces = False
        if meter.open_ids and isinstance(self._engine, CancellingEngine):
            self._engine.cancel(meter.open_ids)
            meter.forget()
            # A step that is under way may yet be told, and its time is none of what comes: it is
            # over when another request is answered.
            meter.send_shortest()
            if not meter.idle.wait(limit_s):
                raise self._stalled(limit_s)
            if meter.error is not None:
                raise meter.error
        while meter.open_ids:
            before = meter.answered
            if not self._watch(limit_s) and meter.answered == before:
                raise self._stalled(limit_s)

    def _stalled(self, limit_s: float) -> EngineError:
        return EngineError(
            f"The engine answered none of {len(self._meter.open_ids)} requests in {limit_s:g} s.",
            hint="see the log; run.stall_timeout_s is how long to wait",
        )

    def _fill(self, seconds: float, end_s: float) -> bool:
        """Wait for the ramp's end; whether the engine was full then."""
        self._watch(seconds * _RAMP)
        while not (is_full := self._is_full(seconds * _RAMP)):
            if time.perf_counter() > end_s:
                break
            self._watch(self._slice_s)
        return is_full

    def _is_full(self, quiet_s: float) -> bool:
        """Prompts of a first wave are worked through: what comes now is the steady state."""
        meter = self._meter
        engine: object = self._engine
        state = engine.state() if isinstance(engine, ObservableEngine) else None
        under_way = None if state is None else state.taken_on
        if state is not None and under_way and meter.num_live >= _FULL_PART * under_way:
            # Those that wait may yet be taken on, by an engine that deals requests to itself.
            waiting = state.waiting_sequences or 0
            return waiting <= (1 - _FULL_PART) * under_way or self._is_quiet(quiet_s)
        return self._is_quiet(quiet_s)

    def _is_quiet(self, quiet_s: float) -> bool:
        """No more sequences than before have lived for so long."""
        meter = self._meter
        return meter.num_live > 0 and time.perf_counter() - meter.rose_s >= quiet_s

    def _watch(self, seconds: float) -> bool:
        """Cut the time into slices until it is over, or all is answered: True then."""
        meter = self._meter
        end_s = time.perf_counter() + seconds
        is_idle = False
        while not is_idle and (left_s := end_s - time.perf_counter()) > 0:
            is_idle = meter.idle.wait(min(self._slice_s, left_s))
            if meter.error is not None:
                raise meter.error
            self._cut_slice()
        return is_idle

    def _begin(self) -> None:
        """The next slice begins now, unless the engine is at work."""
        if not self._meter.open_ids:
            self._cut = self._meter.begin()

    def _cut_slice(self, *, is_last: bool = False) -> None:
        """A slice ends with a step: only then is its work told, and all of it. Half a step of
        prompts that is told in the next slice would make prompts look as if they cost nothing.

        A last one ends now if nothing was told for long: an engine that stopped is slow.
        """
        before, after = self._cut, self._meter.edge()
        if after.moment_s <= before.moment_s:
            now = self._meter.mark()
            is_told = now.made > before.made or now.begun_tokens > before.begun_tokens
            is_long = now.moment_s - before.moment_s >= _LONGEST_SLICE * self._slice_s
            if not is_long or not (is_told or is_last):
                return
            after = now
        self._cut = after
        self._slices.append(
            Slice(
                seconds=after.moment_s - before.moment_s,
                tokens=after.made - before.made,
                prompt_tokens=after.begun_tokens - before.begun_tokens,
                steps=after.steps - before.steps,
                context_tokens=after.context - before.context,
                prompt_context_tokens=after.begun_context - before.begun_context,
            )
        )
