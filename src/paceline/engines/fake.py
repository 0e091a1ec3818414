"""An engine without a model: deterministic, instant or paced.

It ships because three things need it: the ceiling of the harness (how fast would a run be if
the engine cost nothing), rehearsals of whole-length runs at a given speed, and tests of what
happens when an engine stalls or fails. With a pace it is a queue of known capacity: so many
requests at once share the pace evenly, and the others wait in the order they came.

Its output is a function of the prompt alone, so two runs give the same tokens; with `answers` it
replays a dataset's reference answers instead, so that a rehearsal reaches the accuracy gate, and
counts the prompts that the dataset has not, as those of a preflight. A run with it measures nothing
and says so.
"""

from __future__ import annotations

import heapq
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from paceline.engines import Completion, EngineContext, EngineState, Request, Sink, TokenIds
from paceline.engines.knobs import ANSWERS
from paceline.errors import EngineError, InputError

__all__ = ["FakeConfig", "FakeEngine"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class FakeConfig:
    """Settings of the fake engine."""

    tokens_per_second: float = 0.0
    """Pace of output, tokens/s over all requests; 0 answers at once."""

    concurrency: int = 1
    """Requests answered at the same time, each at its share of the pace."""

    output_len: int = field(default=294, metadata=ANSWERS)
    """Tokens of each answer, EOS included; never more than the request's limit."""

    answers: str = field(default="", metadata=ANSWERS)
    """A dataset (parquet: tok_input, tok_output) whose answers are replayed; "" for none."""

    fail_after: int = 0
    """Answer so many requests, then fail the next; 0 for never."""

    stall_after: int = 0
    """Answer so many requests, then fall silent; 0 for never."""

    @property
    def in_flight(self) -> int:
        """Requests that keep the engine full."""
        return 2 * self.concurrency

    def __post_init__(self) -> None:
        if self.tokens_per_second < 0:
            raise InputError("engine.fake.tokens_per_second must be 0 (instant) or more.")
        if self.concurrency < 1:
            raise InputError("engine.fake.concurrency must be 1 or more.")
        if self.output_len < 2:
            raise InputError("engine.fake.output_len must be 2 or more: LoadGen counts from 2.")


class FakeEngine:
    """Answers every request from a table or a formula, in the order of submission."""

    def __init__(self, config: FakeConfig, context: EngineContext) -> None:
        self._config = config
        self._context = context
        # Not SimpleQueue: its get() with a timeout of microseconds can wait for ever.
        self._queue: queue.Queue[tuple[Sequence[Request], Sink] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name="fake-engine", daemon=True)
        self._idle = threading.Condition()
        self._pending = 0
        self._answered = 0
        self._answered_before = 0
        self._due: list[tuple[float, int, Callable[[Completion, Sink], None], Completion, Sink]]
        self._due = []
        self._num_planned = 0
        self._free_s = [0.0] * config.concurrency
        self._answers: dict[bytes, TokenIds] = {}
        self._num_strange = 0
        # Any run of ids that avoids the special ones (0, 1, 2) will do.
        span = context.vocabulary_size - 3
        self._ramp = (np.arange(2 * span, dtype=np.int64) % span + 3).astype(np.int32)
        self._span = span

    def start(self) -> None:
        if self._config.answers:
            self._context.report("reading answers", None)
            self._answers = _read_answers(Path(self._config.answers))
        self._thread.start()

    def submit(self, requests: Sequence[Request], sink: Sink) -> None:
        with self._idle:
            self._pending += len(requests)
        self._queue.put((requests, sink))

    def drain(self) -> None:
        with self._idle:
            self._idle.wait_for(lambda: self._pending == 0)

    def close(self) -> None:
        self._queue.put(None)
        if self._thread.is_alive() and not self._config.stall_after:
            self._thread.join()

    def begin_counting(self) -> None:
        self._answered_before, self._num_strange = self._answered, 0

    def describe(self) -> dict[str, Any]:
        answered = self._answered - self._answered_before
        facts: dict[str, Any] = {"device": "none", "simulated": True, "answered": answered}
        if self._num_strange:
            facts["notes"] = [f"{self._num_strange} prompts are not in {self._config.answers}."]
        return facts

    def state(self) -> EngineState:
        pending = self._pending
        live = min(pending, self._config.concurrency)
        return EngineState(live_sequences=live, waiting_sequences=pending - live)

    def _work(self) -> None:
        """Take requests as they come and do what is due, until the engine closes."""
        while True:
            item = self._next_item()
            if item is None:
                break
            for request in item[0]:
                self._begin(request, item[1])
        self._run_due(math.inf)

    def _next_item(self) -> tuple[Sequence[Request], Sink] | None:
        """The next requests, doing meanwhile what is due; None at the end."""
        while self._due:
            self._run_due(time.perf_counter())
            if not self._due:
                break
            try:
                return self._queue.get(timeout=max(0.0, self._due[0][0] - time.perf_counter()))
            except queue.Empty:
                continue
        return self._queue.get()

    def _begin(self, request: Request, sink: Sink) -> None:
        """Answer at once, or plan when the first token and the answer are due."""
        completion = self._complete(request)
        rate = self._config.tokens_per_second / self._config.concurrency
        now_s = time.perf_counter()
        if not rate:
            self._first_token(completion, sink)
            self._answer(completion, sink)
            return
        start_s = max(now_s, heapq.heappop(self._free_s))
        end_s = start_s + len(completion.token_ids) / rate
        heapq.heappush(self._free_s, end_s)
        for moment_s, what in ((start_s + 1 / rate, self._first_token), (end_s, self._answer)):
            self._num_planned += 1
            heapq.heappush(self._due, (moment_s, self._num_planned, what, completion, sink))

    def _run_due(self, until_s: float) -> None:
        while self._due and self._due[0][0] <= until_s:
            moment_s, _, what, completion, sink = heapq.heappop(self._due)
            _sleep_until(moment_s)
            what(completion, sink)

    def _first_token(self, completion: Completion, sink: Sink) -> None:
        sink.first_token(completion.request_id, int(completion.token_ids[0]))

    def _leave(self) -> None:
        with self._idle:
            self._pending -= 1
            self._idle.notify_all()

    def _answer(self, completion: Completion, sink: Sink) -> None:
        if self._config.stall_after and self._answered >= self._config.stall_after:
            threading.Event().wait()
        self._answered += 1
        if self._config.fail_after and self._answered == self._config.fail_after + 1:
            sink.failed(completion.request_id, EngineError("The fake engine failed, as told to."))
        else:
            sink.progress(len(completion.token_ids))
            sink.done(completion)
        self._leave()

    def _complete(self, request: Request) -> Completion:
        token_ids = self._answers.get(request.token_ids.tobytes()) if self._answers else None
        if token_ids is not None:
            token_ids = token_ids[: request.max_new_tokens]
        else:
            if self._answers and not self._num_strange:
                log.warning("a prompt is not in %s", self._config.answers)
            self._num_strange += bool(self._answers)
            length = min(self._config.output_len, request.max_new_tokens)
            first = int(request.token_ids.sum()) % self._span
            token_ids = np.resize(self._ramp[first : first + self._span], length)
            token_ids[-1] = self._context.eos_token_id
        stopped = token_ids[-1] == self._context.eos_token_id
        return Completion(request.request_id, token_ids, "stop" if stopped else "length")


def _sleep_until(moment_s: float) -> None:
    remaining_s = moment_s - time.perf_counter()
    if remaining_s > 0:
        time.sleep(remaining_s)


def _read_answers(path: Path) -> dict[bytes, TokenIds]:
    """Prompt bytes -> answer ids. Raises InputError when the file is not a dataset of ours."""
    import pyarrow.parquet as pq  # heavy, and only this setting of the engine needs it

    try:
        # Without threads, which may outlive a short command; see mlperf.dataset.
        with pq.ParquetFile(path, pre_buffer=False) as file:
            table = file.read(columns=["tok_input", "tok_output"], use_threads=False)
        prompts, answers = (table[name].to_pylist() for name in ("tok_input", "tok_output"))
    except (OSError, ValueError, KeyError) as error:  # pyarrow errors derive from these
        raise InputError(
            f"engine.fake.answers: cannot read tok_input and tok_output from {path}: {error}"
        ) from error
    return {
        np.asarray(prompt, np.int32).tobytes(): np.asarray(answer, np.int32)
        for prompt, answer in zip(prompts, answers, strict=True)
    }
