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

import dataclasses
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from paceline.engines import CancellingEngine, Completion, Engine, ObservableEngine, Request
from paceline.engines.pace import Slice
from paceline.errors import EngineError, PacelineError

__all__ = ["Probe", "ProbeResult"]

# The ramp is a third of the time, and goes on until the engine is full: most of what it works on
# has begun to answer, or no more sequences than before did for as long. It has an end anyway.
_RAMP, _FULL_PART, _LONGEST_RAMP = 1 / 3, 0.75, 4.0
_NUM_SLICES = 10
# With fewer rounds the answers that ended are the short ones.
_ENOUGH_ROUNDS, _ENOUGH_ANSWERS = 10, 50
# Requests of a probe have ids of their own: a run's begin at 0.
_FIRST_ID = 1 << 40


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeResult:
    """A predicted speed. `relative_error` is one standard error of tokens/s, as a fraction.

    `ramp_s` is what went by before the engine was full; `is_full` whether it came to that.
    """

    samples_per_second: float
    tokens_per_second: float
    tokens_per_sample: float
    relative_error: float
    seconds: float
    answered: int
    ramp_s: float
    is_full: bool

    @property
    def high_samples_per_second(self) -> float:
        """What the speed is hardly above: sized by this, a run is long enough."""
        return self.samples_per_second * (1 + 2 * self.relative_error)


@dataclass(frozen=True, slots=True)
class _Mark:
    """Counts at a moment; `live_area` is in sequences x seconds."""

    moment_s: float
    made: int
    begun_tokens: int
    live_area: float


class _Meter:
    """A Sink that counts, and sends the next request for each one that is answered."""

    def __init__(self, engine: Engine, requests: Sequence[Request]) -> None:
        self._engine = engine
        self._requests = requests
        self._lock = threading.Lock()
        self._sent = 0
        self._open: dict[int, int] = {}
        self._live: set[int] = set()
        self._begun_tokens = 0
        self._live_area = 0.0
        self._changed_s = time.perf_counter()
        self._made = 0
        self.replaces = False
        self.idle = threading.Event()
        self.answered = 0
        self.num_tokens = 0
        self.most_live = 0
        self.rose_s = self._changed_s
        self.most_open = 0
        # By the ids that requests came with.
        self.output_lens: dict[int, int] = {}
        self._own_ids: dict[int, int] = {}
        self.last_s = 0.0
        self.error: PacelineError | None = None

    @property
    def num_live(self) -> int:
        return len(self._live)

    @property
    def open_ids(self) -> list[int]:
        with self._lock:
            return list(self._open)

    def send(self, requests: Sequence[Request]) -> None:
        with self._lock:
            first, self._sent = self._sent, self._sent + len(requests)
            batch = [
                dataclasses.replace(request, request_id=_FIRST_ID + first + place)
                for place, request in enumerate(requests)
            ]
            self._open |= {request.request_id: len(request.token_ids) for request in batch}
            self._own_ids |= {
                sent.request_id: request.request_id
                for sent, request in zip(batch, requests, strict=True)
            }
            self.most_open = max(self.most_open, len(self._open))
            self.idle.clear()
        self._engine.submit(batch, self)

    def send_next(self, count: int) -> None:
        """Requests in their order, over and over."""
        with self._lock:
            total, first = len(self._requests), self._sent
        self.send([self._requests[(first + place) % total] for place in range(count)])

    def mark(self) -> _Mark:
        with self._lock:
            self._advance()
            return _Mark(self._changed_s, self._made, self._begun_tokens, self._live_area)

    def forget(self) -> None:
        """What was in flight was cancelled."""
        with self._lock:
            self._advance()
            self._open.clear()
            self._live.clear()
            self.idle.set()

    def first_token(self, request_id: int, token_id: int) -> None:
        del token_id
        with self._lock:
            self._begin(request_id)

    def progress(self, num_tokens: int) -> None:
        with self._lock:
            self._made += num_tokens

    def done(self, completion: Completion) -> None:
        self.done_all((completion,))

    def done_all(self, completions: Sequence[Completion]) -> None:
        with self._lock:
            known = [one for one in completions if one.request_id in self._open]
            for one in known:
                self._begin(one.request_id)
                self._live.discard(one.request_id)
                del self._open[one.request_id]
                self.output_lens[self._own_ids.pop(one.request_id)] = len(one.token_ids)
            self.answered += len(known)
            self.num_tokens += sum(len(one.token_ids) for one in known)
            self.last_s = time.perf_counter()
            count = len(known) if self.replaces else 0
            if not self._open and not count:
                self.idle.set()
        if count:
            self.send_next(count)

    def failed(self, request_id: int, error: PacelineError) -> None:
        del request_id
        self.error = error
        self.replaces = False
        self.idle.set()

    def _begin(self, request_id: int) -> None:
        """A sequence lives. The lock is held."""
        self._advance()
        if request_id in self._open and request_id not in self._live:
            self._live.add(request_id)
            if len(self._live) > self.most_live:
                self.most_live, self.rose_s = len(self._live), self._changed_s
            self._begun_tokens += self._open[request_id]

    def _advance(self) -> None:
        now_s = time.perf_counter()
        self._live_area += len(self._live) * (now_s - self._changed_s)
        self._changed_s = now_s


class Probe:
    """Measures an engine that was started.

    Each call raises EngineError when a request failed. `slice_s` is the length of a slice.
    """

    def __init__(self, engine: Engine, requests: Sequence[Request], *, slice_s: float) -> None:
        self._engine = engine
        self._meter = _Meter(engine, requests)
        self._slice_s = slice_s
        self._slices: list[Slice] = []

    @property
    def answered(self) -> int:
        return self._meter.answered

    @property
    def tokens_per_answer(self) -> float | None:
        """Of the answers that ended; None before there is one."""
        return self._meter.num_tokens / self._meter.answered if self._meter.answered else None

    @property
    def max_live(self) -> int:
        """Most sequences that lived at once."""
        return self._meter.most_live

    @property
    def most_in_flight(self) -> int:
        return self._meter.most_open

    @property
    def output_lens(self) -> dict[int, int]:
        """Length of the answer to each request that has one, by the request's id."""
        return self._meter.output_lens

    def slices(self, tokens_per_sample: float) -> list[Slice]:
        """What was seen, with `live` as a scheduler counts it.

        A sequence is seen from its first token to its last, one step less than it takes part in.
        """
        whole = tokens_per_sample / max(1.0, tokens_per_sample - 1)
        return [dataclasses.replace(one, live=one.live * whole) for one in self._slices]

    def burst(self, requests: Sequence[Request], *, limit_s: float) -> float | None:
        """Submit all at once; seconds until the last is answered, None if that takes longer."""
        self._meter.replaces = False
        start_s = time.perf_counter()
        self._meter.send(requests)
        if not self._watch(limit_s):
            return None
        return self._meter.last_s - start_s

    def keep_busy(self, *, in_flight: int, seconds: float) -> None:
        """A closed loop of so many requests, kept in slices only."""
        self._meter.replaces = True
        self._meter.send_next(max(0, in_flight - len(self._meter.open_ids)))
        self._watch(seconds)
        self._meter.replaces = False

    def hold(self, *, in_flight: int, seconds: float, tokens_per_sample: float) -> ProbeResult:
        """Keep so many in flight; the speed after the ramp, in two thirds of the time.

        Raises EngineError when nothing was made.
        """
        meter = self._meter
        meter.replaces = True
        begun_s = time.perf_counter()
        meter.send_next(max(0, in_flight - len(meter.open_ids)))
        is_full = self._fill(begun_s, seconds)
        ramp_s = time.perf_counter() - begun_s
        answered, tokens = meter.answered, meter.num_tokens
        rates: list[float] = []
        for _ in range(_NUM_SLICES):
            before = meter.mark()
            self._watch(seconds * (1 - _RAMP) / _NUM_SLICES)
            after = meter.mark()
            rates.append((after.made - before.made) / (after.moment_s - before.moment_s))
        meter.replaces = False
        tokens_per_second = statistics.fmean(rates)
        if tokens_per_second == 0:
            raise EngineError(
                f"The engine made nothing in {seconds:g} s.",
                hint="measure for longer, or ask for less",
            )
        answered, tokens = meter.answered - answered, meter.num_tokens - tokens
        if answered >= max(_ENOUGH_ROUNDS * in_flight, _ENOUGH_ANSWERS):
            tokens_per_sample = tokens / answered
        return ProbeResult(
            samples_per_second=tokens_per_second / tokens_per_sample,
            tokens_per_second=tokens_per_second,
            tokens_per_sample=tokens_per_sample,
            relative_error=statistics.stdev(rates) / len(rates) ** 0.5 / tokens_per_second,
            seconds=seconds,
            answered=answered,
            ramp_s=round(ramp_s, 3),
            is_full=is_full,
        )

    def settle(self, *, limit_s: float) -> None:
        """Cancel what is in flight, or wait for it where the engine cannot forget: tokens that an
        engine tells of when an answer ends are then in a slice as well.

        Raises EngineError when the engine answers nothing more.
        """
        meter = self._meter
        meter.replaces = False
        if isinstance(self._engine, CancellingEngine):
            self._engine.cancel(meter.open_ids)
            meter.forget()
        while meter.open_ids:
            before = meter.answered
            if not self._watch(limit_s) and meter.answered == before:
                raise EngineError(
                    f"The engine answered none of {len(meter.open_ids)} requests in {limit_s:g} s.",
                    hint="see the log; run.stall_timeout_s is how long to wait",
                )

    def _fill(self, begun_s: float, seconds: float) -> bool:
        """Wait for the ramp's end; whether the engine was full then."""
        self._watch(seconds * _RAMP)
        while not (is_full := self._is_full(seconds * _RAMP)):
            if time.perf_counter() - begun_s > seconds * _LONGEST_RAMP:
                break
            self._watch(self._slice_s)
        return is_full

    def _is_full(self, quiet_s: float) -> bool:
        """Prompts of a first wave are worked through: what comes now is the steady state."""
        meter = self._meter
        engine: object = self._engine
        state = engine.state() if isinstance(engine, ObservableEngine) else None
        under_way = None if state is None else state.live_sequences
        if under_way and meter.num_live >= _FULL_PART * under_way:
            return True
        return meter.most_live > 0 and time.perf_counter() - meter.rose_s >= quiet_s

    def _watch(self, seconds: float) -> bool:
        """Cut the time into slices until it is over, or all is answered: True then."""
        meter = self._meter
        end_s = time.perf_counter() + seconds
        is_idle = False
        while not is_idle and (left_s := end_s - time.perf_counter()) > 0:
            before = meter.mark()
            is_idle = meter.idle.wait(min(self._slice_s, left_s))
            if meter.error is not None:
                raise meter.error
            self._keep(before, meter.mark())
        return is_idle

    def _keep(self, before: _Mark, after: _Mark) -> None:
        seconds = after.moment_s - before.moment_s
        self._slices.append(
            Slice(
                seconds=seconds,
                tokens=after.made - before.made,
                prompt_tokens=after.begun_tokens - before.begun_tokens,
                live=(after.live_area - before.live_area) / seconds if seconds else 0.0,
            )
        )
