"""Prompts into the engine, and its tokens out to the event loop.

A Generation is one prompt on its way: waiting, in the engine, ended. At most `max_in_flight` are
in the engine, at most `max_queue` wait, and more are refused. A place is given back when the
engine has answered, or at once when the client has left: the engine is told to forget the prompt
if it can, and what it still says of it is dropped.

The engine speaks from threads of its own. What it says is put on a list, and the loop is woken
once for all that gathered, however many tokens that are.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from paceline.engines import Completion, Engine, EngineState, ObservableEngine, Request
from paceline.errors import PacelineError
from paceline.serve.metrics import Metrics
from paceline.serve.protocol import ApiError

__all__ = ["Dispatcher", "Generation"]


class Generation:
    """One prompt on its way; `token_ids` grows, and `changed` is set when something happened.

    The prompts of a request share one event.
    """

    def __init__(
        self, prompt_ids: list[int], *, max_tokens: int, min_tokens: int, changed: asyncio.Event
    ) -> None:
        self.prompt_ids = prompt_ids
        self.max_tokens = max_tokens
        self.min_tokens = min_tokens
        self.token_ids: list[int] = []
        self.finish_reason: str | None = None
        self.error: PacelineError | None = None
        self.request_id: int | None = None
        self.is_over = False
        self.arrived_s = time.perf_counter()
        self.changed = changed


class Dispatcher:
    """The engine's Sink, and the queue before it. Its methods but the Sink's are the loop's."""

    def __init__(
        self, engine: Engine, metrics: Metrics, *, max_in_flight: int, max_queue: int
    ) -> None:
        self._engine = engine
        self._metrics = metrics
        self._max_in_flight = max_in_flight
        self._max_queue = max_queue
        self._loop: asyncio.AbstractEventLoop | None = None
        self._queue: deque[Generation] = deque()
        self._num_queued = 0
        self._in_flight: dict[int, Generation] = {}
        self._ids = itertools.count()
        self._said: deque[Callable[[], None]] = deque()
        self._is_woken = False
        # The engine's last word on any prompt; None while it answers.
        self.failure: PacelineError | None = None

    @property
    def num_in_flight(self) -> int:
        return len(self._in_flight)

    @property
    def num_queued(self) -> int:
        return self._num_queued

    def engine_state(self) -> EngineState | None:
        """What the engine says of itself; None of one that cannot say."""
        engine: object = self._engine
        return engine.state() if isinstance(engine, ObservableEngine) else None

    def add(self, generations: Sequence[Generation]) -> None:
        """Queue the prompts of a request, all or none. Raises ApiError (400, 429)."""
        self._loop = asyncio.get_running_loop()
        most = self._max_in_flight + self._max_queue
        if len(generations) > most:
            raise ApiError(
                400, f"{len(generations)} prompts in one request; this server takes {most}."
            )
        if self.num_in_flight + self._num_queued + len(generations) > most:
            raise ApiError(
                429,
                f"{self.num_in_flight} prompts are in flight and {self._num_queued} wait; this "
                f"server holds {most}. Try again later.",
                code="queue_full",
                retry_after_s=1,
            )
        self._queue.extend(generations)
        self._num_queued += len(generations)
        self._pump()

    def leave(self, generation: Generation, outcome: str) -> None:
        """Nobody wants the rest of this answer: give its place to another."""
        if generation.is_over:
            return
        self._end(generation, outcome)
        if generation.request_id is None:
            self._num_queued -= 1  # it stays in the queue, where `_pump` steps over it
            return
        del self._in_flight[generation.request_id]
        cancel = getattr(self._engine, "cancel", None)
        if cancel is not None:
            cancel([generation.request_id])
        self._pump()

    def leave_all(self) -> None:
        """The server ends."""
        for generation in [*self._queue, *self._in_flight.values()]:
            self.leave(generation, "dropped")

    def _pump(self) -> None:
        """Hand waiting prompts to the engine while there are places."""
        requests = []
        now_s = time.perf_counter()
        while self._queue and len(self._in_flight) < self._max_in_flight:
            generation = self._queue.popleft()
            if generation.is_over:
                continue
            self._num_queued -= 1
            generation.request_id = next(self._ids)
            self._in_flight[generation.request_id] = generation
            self._metrics.queue_time.observe(now_s - generation.arrived_s)
            requests.append(
                Request(
                    generation.request_id,
                    np.asarray(generation.prompt_ids, dtype=np.int32),
                    generation.max_tokens,
                    generation.min_tokens,
                )
            )
        if not requests:
            return
        try:
            self._engine.submit(requests, self)
        except PacelineError as error:
            for request in requests:
                self.failed(request.request_id, error)

    def _end(self, generation: Generation, outcome: str) -> None:
        generation.is_over = True
        generation.changed.set()
        self._metrics.prompts[outcome] += 1
        self._metrics.prompt_tokens += len(generation.prompt_ids)
        self._metrics.generation_tokens += len(generation.token_ids)
        if generation.finish_reason is not None:
            self._metrics.duration.observe(time.perf_counter() - generation.arrived_s)

    # The Sink, called from the engine's threads.

    def first_token(self, request_id: int, token_id: int) -> None:
        self._say(lambda: self._grow(request_id, [token_id], is_first=True))

    def tokens(self, pairs: Sequence[tuple[int, int]]) -> None:
        def grow_all() -> None:
            for request_id, token_id in pairs:
                self._grow(request_id, [token_id], is_first=False)

        self._say(grow_all)

    def done(self, completion: Completion) -> None:
        self._say(lambda: self._finish(completion))

    def done_all(self, completions: Sequence[Completion]) -> None:
        for completion in completions:
            self.done(completion)

    def failed(self, request_id: int, error: PacelineError) -> None:
        self._say(lambda: self._fail(request_id, error))

    def progress(self, num_tokens: int) -> None:
        del num_tokens  # the tokens themselves are counted

    def _say(self, what: Callable[[], None]) -> None:
        self._said.append(what)
        # A wake-up that is under way takes this along; at worst there is one too many.
        if not self._is_woken:
            self._is_woken = True
            assert self._loop is not None
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody is left to tell
                self._loop.call_soon_threadsafe(self._listen)

    # What the engine said, on the loop.

    def _listen(self) -> None:
        self._is_woken = False
        while self._said:
            self._said.popleft()()
        self._pump()

    def _grow(self, request_id: int, token_ids: Sequence[int], *, is_first: bool) -> None:
        generation = self._in_flight.get(request_id)
        if generation is None or (is_first and generation.token_ids):
            return
        if not generation.token_ids:
            self._metrics.ttft.observe(time.perf_counter() - generation.arrived_s)
        generation.token_ids += token_ids
        generation.changed.set()

    def _finish(self, completion: Completion) -> None:
        self.failure = None
        generation = self._in_flight.pop(completion.request_id, None)
        if generation is None:
            return
        if not generation.token_ids:
            self._metrics.ttft.observe(time.perf_counter() - generation.arrived_s)
        generation.token_ids = completion.token_ids.tolist()
        generation.finish_reason = completion.finish_reason
        self._end(generation, completion.finish_reason)

    def _fail(self, request_id: int, error: PacelineError) -> None:
        self.failure = error
        generation = self._in_flight.pop(request_id, None)
        if generation is not None:
            generation.error = error
            self._end(generation, "failed")
