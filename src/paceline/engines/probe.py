"""How fast an engine is, from half a minute of it: any engine, before any run.

A closed loop: as many requests are kept in flight as the engine can use, and the tokens that it
makes are counted between the ramp and the end. Tokens come steadily where answers do not: in the
first minute only short answers end, so samples/s are tokens/s divided by the tokens of a sample,
which are those of the benchmark unless enough answers ended to know better.
"""

from __future__ import annotations

import dataclasses
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from paceline.engines import Completion, Engine, Request
from paceline.errors import EngineError, PacelineError

__all__ = ["ProbeResult", "probe"]

_RAMP = 1 / 3
_NUM_SLICES = 10
# With fewer rounds the answers that ended are the short ones.
_ENOUGH_ROUNDS, _ENOUGH_ANSWERS = 10, 50


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeResult:
    """A predicted speed. `relative_error` is one standard error of tokens/s, as a fraction."""

    samples_per_second: float
    tokens_per_second: float
    tokens_per_sample: float
    relative_error: float
    seconds: float
    answered: int

    @property
    def high_samples_per_second(self) -> float:
        """What the speed is hardly above: sized by this, a run is long enough."""
        return self.samples_per_second * (1 + 2 * self.relative_error)


class _Loop:
    """A Sink that sends the next request for each one that is answered."""

    def __init__(self, engine: Engine, requests: Sequence[Request]) -> None:
        self._engine = engine
        self._requests = requests
        self._lock = threading.Lock()
        self._sent = 0
        self.over = threading.Event()
        self.made = 0
        self.answered = 0
        self.tokens = 0
        self.error: PacelineError | None = None

    def send(self, count: int) -> None:
        with self._lock:
            first, self._sent = self._sent, self._sent + count
        batch = [
            dataclasses.replace(self._requests[place % len(self._requests)], request_id=place)
            for place in range(first, first + count)
        ]
        self._engine.submit(batch, self)

    def first_token(self, request_id: int, token_id: int) -> None: ...

    def progress(self, num_tokens: int) -> None:
        with self._lock:
            self.made += num_tokens

    def done(self, completion: Completion) -> None:
        self.done_all((completion,))

    def done_all(self, completions: Sequence[Completion]) -> None:
        with self._lock:
            self.answered += len(completions)
            self.tokens += sum(len(one.token_ids) for one in completions)
        if not self.over.is_set():
            self.send(len(completions))

    def failed(self, request_id: int, error: PacelineError) -> None:
        del request_id
        self.error = error
        self.over.set()


def probe(
    engine: Engine,
    requests: Sequence[Request],
    *,
    seconds: float,
    in_flight: int,
    tokens_per_sample: float,
) -> ProbeResult:
    """Measure an engine that was started. What is in flight at the end is left there: close it.

    `tokens_per_sample` is what an answer is expected to have. Raises EngineError when a request
    fails, or when nothing was made in the time.
    """
    loop = _Loop(engine, requests)
    loop.send(in_flight)
    rates = []
    if not loop.over.wait(seconds * _RAMP):
        slice_s = seconds * (1 - _RAMP) / _NUM_SLICES
        mark_s, made = time.perf_counter(), loop.made
        for _ in range(_NUM_SLICES):
            if loop.over.wait(slice_s):
                break
            now_s, now_made = time.perf_counter(), loop.made
            rates.append((now_made - made) / (now_s - mark_s))
            mark_s, made = now_s, now_made
    loop.over.set()
    answered, tokens = loop.answered, loop.tokens
    if loop.error is not None:
        raise loop.error
    tokens_per_second = statistics.fmean(rates)
    if tokens_per_second == 0:
        raise EngineError(
            f"The engine made nothing in {seconds:g} s.", hint="measure for longer, or ask for less"
        )
    if answered >= max(_ENOUGH_ROUNDS * in_flight, _ENOUGH_ANSWERS):
        tokens_per_sample = tokens / answered
    return ProbeResult(
        samples_per_second=tokens_per_second / tokens_per_sample,
        tokens_per_second=tokens_per_second,
        tokens_per_sample=tokens_per_sample,
        relative_error=statistics.stdev(rates) / len(rates) ** 0.5 / tokens_per_second,
        seconds=seconds,
        answered=answered,
    )
