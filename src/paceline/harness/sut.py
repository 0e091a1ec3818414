"""The side of the harness that faces LoadGen and the engine, whatever the scenario.

`issue` turns each QuerySample into a Request and hands it to the engine; the engine answers
through this object, which is its Sink. `offline` and `server` have what their scenarios add.

In performance mode an answer goes to LoadGen the moment it exists. In accuracy mode it goes into
the journal first, and to LoadGen in the order of issue: time means nothing there, and the
accuracy log is then the same for any engine, any batch order, and any number of interruptions.
Samples that the journal already holds are answered from it and never reach the engine.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from paceline.engines import Completion, Engine, TokenIds
from paceline.errors import EngineError, PacelineError
from paceline.harness.samples import Samples
from paceline.rundir import Journal

__all__ = ["Counts", "EngineSut", "Respond"]

Respond = Callable[[Sequence[tuple[int, TokenIds]]], None]


@dataclass(slots=True)
class Counts:
    """What has happened so far. `tokens` counts answered ones, `made` also those under way."""

    issued: int = 0
    answered: int = 0
    resumed: int = 0
    tokens: int = 0
    made: int = 0

    def __add__(self, other: Counts) -> Counts:
        """Both together; an engine need not tell of tokens before their answer ends."""
        return Counts(
            issued=self.issued + other.issued,
            answered=self.answered + other.answered,
            resumed=self.resumed + other.resumed,
            tokens=self.tokens + other.tokens,
            made=max(self.made, self.tokens) + max(other.made, other.tokens),
        )


class EngineSut:
    """LoadGen's partner and the engine's Sink, in one object with one lock."""

    def __init__(self, engine: Engine, samples: Samples, *, respond: Respond) -> None:
        self._engine = engine
        self._samples = samples
        self._respond = respond
        self._lock = threading.Lock()
        self._response_ids: list[int] = []
        self._indices: list[int] = []
        self._journal: Journal | None = None
        self._finished: Mapping[int, tuple[str, TokenIds]] = {}
        self._waiting: dict[int, TokenIds] = {}
        self._next = 0
        self._open: set[int] = set()
        self.counts = Counts()
        # What the LoadGen tests of the same process before this one came to.
        self.past = Counts()
        self.error: PacelineError | None = None
        self.failed_event = threading.Event()
        self.last_activity_s = time.monotonic()
        self._first_issue_s: float | None = None

    @property
    def window_s(self) -> tuple[float, float]:
        """From the first query to the last answer so far, on the monotonic clock."""
        end_s = self.last_activity_s
        return (end_s if self._first_issue_s is None else self._first_issue_s), end_s

    def keep_order(self, journal: Journal, finished: Mapping[int, tuple[str, TokenIds]]) -> None:
        """Accuracy mode: journal every answer, and answer `finished` from what was journaled."""
        self._journal = journal
        self._finished = finished

    def issue(self, query: Sequence[tuple[int, int]]) -> None:
        """LoadGen's call. It runs on LoadGen's thread, where an exception would end the process."""
        try:
            self._issue(query)
        except PacelineError as error:
            self.fail(error)
        except Exception as error:  # C++ is above us: report, never unwind into it
            self.fail(EngineError(f"The harness failed: {type(error).__name__}: {error}"))

    def flush(self) -> None:
        """Nothing is held back, so nothing is to be flushed."""

    def first_token(self, request_id: int, token_id: int) -> None:
        """The engine's call: the first token of a request exists."""
        raise NotImplementedError

    def first_token_latencies_ms(self) -> Sequence[float]:
        """Times to first token so far, in the order they came; none where they are not taken."""
        return ()

    def latency_figures(self) -> dict[str, float]:
        """Latencies so far, for the live display; none in a scenario without limits."""
        return {}

    def done(self, completion: Completion) -> None:
        self.done_all((completion,))

    def done_all(self, completions: Sequence[Completion]) -> None:
        try:
            self._answer(completions)
        except PacelineError as error:
            self.fail(error)

    def failed(self, request_id: int, error: PacelineError) -> None:
        sample = self._indices[request_id]
        self.fail(EngineError(f"Sample {sample} failed: {error.message}", hint=error.hint))

    def fail(self, error: PacelineError) -> None:
        """Have the run end with that error; the first one counts."""
        if self.error is None:
            self.error = error
        self.failed_event.set()

    def progress(self, num_tokens: int) -> None:
        self.counts.made += num_tokens
        self.last_activity_s = time.monotonic()

    def in_flight(self) -> list[int]:
        """Sample indices that were issued and not answered, in order of issue."""
        with self._lock:
            return [self._indices[request_id] for request_id in sorted(self._open)]

    def _issue(self, query: Sequence[tuple[int, int]]) -> None:
        if self._first_issue_s is None:
            self._first_issue_s = time.monotonic()
        first = len(self._indices)
        self._response_ids += [response_id for response_id, _ in query]
        self._indices += [sample_index for _, sample_index in query]
        fresh = []
        for request_id, (_, sample_index) in enumerate(query, start=first):
            if sample_index in self._finished:
                continue
            fresh.append(self._samples.request(request_id, sample_index))
        with self._lock:
            self._begin(first, len(query))
            self._open.update(request.request_id for request in fresh)
            self.counts.issued += len(query)
            self.counts.resumed += len(query) - len(fresh)
            self.last_activity_s = time.monotonic()
        if len(fresh) < len(query):
            self._answer_resumed(range(first, len(self._indices)))
        if fresh:
            self._engine.submit(fresh, self)

    def _answer_resumed(self, request_ids: range) -> None:
        with self._lock:
            for request_id in request_ids:
                kept = self._finished.get(self._indices[request_id])
                if kept is not None:
                    self._count(kept[1])
                    self._waiting[request_id] = kept[1]
            self._hand_over(self._ready())

    def _answer(self, completions: Sequence[Completion]) -> None:
        self._check(completions)
        if self._journal is not None:
            self._journal.append(
                [(self._indices[c.request_id], c.finish_reason, c.token_ids) for c in completions]
            )
        with self._lock:
            for completion in completions:
                self._open.discard(completion.request_id)
                self._count(completion.token_ids)
            if self._journal is None:
                ready = [(self._response_ids[c.request_id], c.token_ids) for c in completions]
                self._end(completions)
            else:
                self._waiting |= {c.request_id: c.token_ids for c in completions}
                ready = self._ready()
            self.last_activity_s = time.monotonic()
            self._hand_over(ready)

    def _begin(self, first_request_id: int, num_requests: int) -> None:
        """Requests begin, with consecutive ids. The lock is held."""

    def _end(self, completions: Sequence[Completion]) -> None:
        """Requests are answered, in performance mode. The lock is held."""

    def _hand_over(self, ready: Sequence[tuple[int, TokenIds]]) -> None:
        """Give LoadGen its answers. The lock is held."""
        self._respond(ready)

    def _check(self, completions: Sequence[Completion]) -> None:
        for completion in completions:
            length = len(completion.token_ids)
            assert completion.token_ids.dtype == np.int32
            if completion.request_id not in self._open:
                raise EngineError(
                    f"The engine answered sample {self._indices[completion.request_id]} twice."
                )
            if not 2 <= length <= self._samples.max_new_tokens:
                raise EngineError(
                    f"The engine answered sample {self._indices[completion.request_id]} with "
                    f"{length} tokens; LoadGen counts from 2, the benchmark allows "
                    f"{self._samples.max_new_tokens}."
                )

    def _count(self, token_ids: TokenIds) -> None:
        self.counts.answered += 1
        self.counts.tokens += len(token_ids)

    def _ready(self) -> list[tuple[int, TokenIds]]:
        """Take the answers that are next in order of issue. The lock is held."""
        ready = []
        while self._next in self._waiting:
            ready.append((self._response_ids[self._next], self._waiting.pop(self._next)))
            self._next += 1
        return ready
