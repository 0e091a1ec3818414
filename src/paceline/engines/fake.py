"""An engine without a model: deterministic, instant or paced.

It ships because three things need it: the ceiling of the harness (how fast would a run be if
the engine cost nothing), rehearsals of whole-length runs at a given speed, and tests of what
happens when an engine stalls or fails. Its output is a function of the prompt alone, so two runs
give the same tokens; with `answers` it replays a dataset's reference answers instead, so that a
rehearsal reaches the accuracy gate. A run with it measures nothing and says so.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paceline.engines import Completion, EngineContext, Request, Sink, TokenIds
from paceline.errors import EngineError, InputError

__all__ = ["FakeConfig", "FakeEngine"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class FakeConfig:
    """Settings of the fake engine."""

    tokens_per_second: float = 0.0
    """Pace of output, tokens/s over all requests; 0 answers at once."""

    output_len: int = 294
    """Tokens of each answer, EOS included; never more than the request's limit."""

    answers: str = ""
    """A dataset (parquet: tok_input, tok_output) whose answers are replayed; "" for none."""

    fail_after: int = 0
    """Answer so many requests, then fail the next; 0 for never."""

    stall_after: int = 0
    """Answer so many requests, then fall silent; 0 for never."""

    def __post_init__(self) -> None:
        if self.tokens_per_second < 0:
            raise InputError("engine.fake.tokens_per_second must be 0 (instant) or more.")
        if self.output_len < 2:
            raise InputError("engine.fake.output_len must be 2 or more: LoadGen counts from 2.")


class FakeEngine:
    """Answers every request from a table or a formula, in the order of submission."""

    def __init__(self, config: FakeConfig, context: EngineContext) -> None:
        self._config = config
        self._context = context
        self._queue: queue.SimpleQueue[tuple[Sequence[Request], Sink] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="fake-engine", daemon=True)
        self._idle = threading.Condition()
        self._pending = 0
        self._answered = 0
        self._answers: dict[bytes, TokenIds] = {}
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

    def describe(self) -> dict[str, Any]:
        return {"device": "none", "simulated": True, "answered": self._answered}

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            requests, sink = item
            start_s, made = time.perf_counter(), 0
            for request in requests:
                try:
                    completion = self._complete(request)
                except InputError as error:
                    sink.failed(request.request_id, error)
                    continue
                self._pace(start_s, made, sink=sink, completion=completion)
                made += len(completion.token_ids)
                self._answer(completion, sink)
            with self._idle:
                self._pending -= len(requests)
                self._idle.notify_all()

    def _pace(self, start_s: float, made: int, *, sink: Sink, completion: Completion) -> None:
        rate = self._config.tokens_per_second
        if rate:
            _sleep_until(start_s + (made + 1) / rate)
        sink.first_token(completion.request_id, int(completion.token_ids[0]))
        if rate:
            _sleep_until(start_s + (made + len(completion.token_ids)) / rate)

    def _answer(self, completion: Completion, sink: Sink) -> None:
        if self._config.stall_after and self._answered >= self._config.stall_after:
            threading.Event().wait()
        if self._config.fail_after and self._answered == self._config.fail_after:
            self._answered += 1
            sink.failed(completion.request_id, EngineError("The fake engine failed, as told to."))
            return
        self._answered += 1
        sink.progress(len(completion.token_ids))
        sink.done(completion)

    def _complete(self, request: Request) -> Completion:
        if self._answers:
            token_ids = self._answers.get(request.token_ids.tobytes())
            if token_ids is None:
                raise InputError(f"{self._config.answers} has no answer to one of the prompts.")
            token_ids = token_ids[: request.max_new_tokens]
        else:
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
        table = pq.read_table(path, columns=["tok_input", "tok_output"])
    except (OSError, ValueError, KeyError) as error:  # pyarrow errors derive from these
        raise InputError(
            f"engine.fake.answers: cannot read tok_input and tok_output from {path}: {error}"
        ) from error
    prompts = table["tok_input"].to_pylist()
    return {
        np.asarray(prompt, np.int32).tobytes(): np.asarray(answer, np.int32)
        for prompt, answer in zip(prompts, table["tok_output"].to_pylist(), strict=True)
    }
