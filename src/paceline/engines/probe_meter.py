"""What an engine is seen to do while it is probed: a Sink that counts, and knows where steps end.

An engine tells of a step when it is over: first tokens, answers and tokens made come in one go, and
then nothing for a while. Counts are therefore taken at the ends of steps. Cut anywhere else, a
stretch of time holds the first half of a step and nothing of what it did; where prompts take long
that makes them look as if they cost next to nothing.
"""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from paceline.engines import Completion, Engine, Request
from paceline.engines.pace import before
from paceline.errors import PacelineError

__all__ = ["Mark", "Meter"]

# What is told within so short a time is told of one step.
_QUIET_S = 0.002
# Where so many steps let no further sequence live, and one waits for more of them than it takes to
# be seen and to have a prompt computed, there are no more places.
_FULL_STEPS, _WAITED_STEPS = 8, 3
# Requests of a probe have ids of their own: a run's begin at 0.
_FIRST_ID = 1 << 40
# Its multiples fill the unit evenly, whichever part of them is taken.
_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True, slots=True)
class Mark:
    """Counts at a moment: tokens made, prompt tokens of sequences that began, steps, and the tokens
    that stood before each token made and before each token of those prompts, summed over them.

    A step makes one token of every live sequence, so a token is one step divided by these. Of an
    engine that steps by itself that counts its steps; of servers that stream it counts rounds.
    """

    moment_s: float
    made: int = 0
    begun_tokens: int = 0
    steps: float = 0.0
    context: float = 0.0
    begun_context: float = 0.0


class _Sent(NamedTuple):
    """A request that is not answered."""

    prompt_len: int
    steps: float  # how many there had been when it was sent


class Meter:
    """Counts, and sends the next request for each one that is answered while it `replaces`."""

    def __init__(self, engine: Engine, requests: Sequence[Request]) -> None:
        self._engine = engine
        self._requests = requests
        self._lock = threading.Lock()
        self._sent = 0
        self._open: dict[int, _Sent] = {}  # by the probe's own ids
        # The step with which each live sequence began; sums over them of prompts and those steps.
        self._live: dict[int, float] = {}
        self._live_prompts = 0
        self._live_begun = 0.0
        self._mean_context = 0.0
        # Most that lived in the step that is being told of.
        self._step_live = 0
        self._made = 0
        self._begun_tokens, self._begun_context = 0, 0.0
        self._steps = 0.0
        self._context = 0.0
        # As of the last time that anything was told, and of the last time before a pause.
        self._told = self._edge = Mark(time.perf_counter())
        self.replaces = False
        self.idle = threading.Event()
        self.answered = 0
        # Answers that were not cut short, and their tokens.
        self.num_whole = 0
        self.num_tokens = 0
        self.most_live = 0
        # Most that lived since `rise_anew`, and when they became so many.
        self._peak = 0
        self.rose_s = self._told.moment_s
        self._rose_steps = 0.0
        self.is_limited = False
        # By the ids that requests came with.
        self.output_lens: dict[int, int] = {}
        self._own_ids: dict[int, int] = {}
        self.last_s = 0.0
        self.error: PacelineError | None = None

    @property
    def num_live(self) -> int:
        return len(self._live)

    @property
    def context(self) -> float:
        """Tokens of all live sequences, those of their prompts included."""
        with self._lock:
            return self._live_prompts + len(self._live) * self._steps - self._live_begun

    @property
    def open_ids(self) -> list[int]:
        with self._lock:
            return list(self._open)

    def send(self, requests: Sequence[Request], *, are_whole: bool = True) -> None:
        """`are_whole` False: their answers are cut short, and their lengths say nothing."""
        with self._lock:
            first, self._sent = self._sent, self._sent + len(requests)
            batch = [
                dataclasses.replace(request, request_id=_FIRST_ID + first + place)
                for place, request in enumerate(requests)
            ]
            self._open |= {
                request.request_id: _Sent(len(request.token_ids), self._steps) for request in batch
            }
            if are_whole:
                self._own_ids |= {
                    sent.request_id: request.request_id
                    for sent, request in zip(batch, requests, strict=True)
                }
            self.idle.clear()
        self._engine.submit(batch, self)

    def send_next(self, count: int, *, cut_to: float | None = None) -> None:
        """Requests in their order, over and over.

        With `cut_to`, the tokens of an answer, these are cut to lengths from one to that: an engine
        that is full of them is at once as one that has worked for long, where answers of all ages
        live, and does not go from one wave of prompts to the next.
        """
        with self._lock:
            total, first = len(self._requests), self._sent
        wanted = [self._requests[(first + place) % total] for place in range(count)]
        if cut_to is not None:
            ages = (np.arange(count) * _GOLDEN + 0.5 / max(1, count)) % 1.0
            wanted = [
                _cut(one, math.ceil(age * cut_to)) for one, age in zip(wanted, ages, strict=True)
            ]
        self.send(wanted, are_whole=cut_to is None)

    def send_shortest(self) -> None:
        """A request for a token, of the shortest prompt."""
        shortest = min(self._requests, key=lambda one: len(one.token_ids))
        self.send([_cut(shortest, 1)], are_whole=False)

    def rise_anew(self) -> None:
        """From now on it is looked for how many live at most, and since when."""
        with self._lock:
            self._peak, self.rose_s = len(self._live), time.perf_counter()
            self._rose_steps = self._steps

    def begin(self) -> Mark:
        """Nothing is under way: the work of the next step begins now."""
        with self._lock:
            self._tell()
            self._edge = self._told
            return self._edge

    def mark(self) -> Mark:
        """Counts as of now."""
        with self._lock:
            return dataclasses.replace(self._told, moment_s=time.perf_counter())

    def edge(self) -> Mark:
        """Counts as of the last end of a step."""
        with self._lock:
            is_over = not self._open or time.perf_counter() - self._told.moment_s > _QUIET_S
            return self._told if is_over else self._edge

    def forget(self) -> None:
        """What was in flight was cancelled."""
        with self._lock:
            self._open.clear()
            self._live.clear()
            self._live_prompts, self._live_begun = 0, 0.0
            self.idle.set()

    def first_token(self, request_id: int, token_id: int) -> None:
        del token_id
        with self._lock:
            self._hear()
            self._begin(request_id)
            self._tell()

    def progress(self, num_tokens: int) -> None:
        with self._lock:
            self._hear()
            self._made += num_tokens
            if self._live:
                begun = self._live_begun / len(self._live)
                self._mean_context = self._live_prompts / len(self._live) + self._steps - begun
            self._context += num_tokens * self._mean_context
            self._steps += num_tokens / max(1, self._step_live)
            self._look_for_places()
            self._tell()

    def done(self, completion: Completion) -> None:
        self.done_all((completion,))

    def done_all(self, completions: Sequence[Completion]) -> None:
        with self._lock:
            self._hear()
            known = [one for one in completions if one.request_id in self._open]
            for one in known:
                self._begin(one.request_id)
            for one in known:
                self._live_begun -= self._live.pop(one.request_id)
                self._live_prompts -= self._open.pop(one.request_id).prompt_len
                if (own_id := self._own_ids.pop(one.request_id, None)) is not None:
                    self.output_lens[own_id] = len(one.token_ids)
                    self.num_whole += 1
                    self.num_tokens += len(one.token_ids)
            self.answered += len(known)
            self._tell()
            self.last_s = self._told.moment_s
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

    def _hear(self) -> None:
        """Something is told. The lock is held."""
        if time.perf_counter() - self._told.moment_s > _QUIET_S:
            self._edge, self._step_live = self._told, len(self._live)

    def _tell(self) -> None:
        """It was told. The lock is held."""
        now_s = time.perf_counter()
        self._told = Mark(
            now_s,
            self._made,
            self._begun_tokens,
            self._steps,
            self._context,
            self._begun_context,
        )

    def _look_for_places(self) -> None:
        """The lock is held."""
        is_steady = self._peak > 0 and self._steps - self._rose_steps >= _FULL_STEPS
        if is_steady and not self.is_limited and len(self._open) > len(self._live):
            waiting = next(sent for one, sent in self._open.items() if one not in self._live)
            self.is_limited = self._steps - waiting.steps >= _WAITED_STEPS

    def _begin(self, request_id: int) -> None:
        """A sequence lives. The lock is held."""
        if request_id in self._open and request_id not in self._live:
            self._live[request_id] = self._steps
            self._live_begun += self._steps
            prompt_len = self._open[request_id].prompt_len
            self._live_prompts += prompt_len
            self._step_live = max(self._step_live, len(self._live))
            self.most_live = max(self.most_live, len(self._live))
            if len(self._live) > self._peak:
                self._peak, self.rose_s = len(self._live), time.perf_counter()
                self._rose_steps = self._steps
            self._begun_tokens += prompt_len
            self._begun_context += before(prompt_len)


def _cut(request: Request, most: int) -> Request:
    most = max(1, min(most, request.max_new_tokens))
    least = min(request.min_new_tokens, most)
    return dataclasses.replace(request, max_new_tokens=most, min_new_tokens=least)
