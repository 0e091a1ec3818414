"""The native engine with a sink that wants every token, and with requests that are called off."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from paceline.config import embedded_model
from paceline.engines import CancellingEngine, Completion, EngineContext, Request, StreamSink
from paceline.engines.native import NativeConfig, NativeEngine
from paceline.errors import EngineError, PacelineError


class Collector:
    """A StreamSink that keeps everything, in order."""

    def __init__(self) -> None:
        self.made: dict[int, list[int]] = {}
        self.completions: dict[int, Completion] = {}
        self.failures: dict[int, PacelineError] = {}
        self.at_done: dict[int, int] = {}
        self.changed = threading.Condition()

    def first_token(self, request_id: int, token_id: int) -> None:
        assert request_id not in self.made
        self._note(lambda: self.made.setdefault(request_id, [token_id]))

    def tokens(self, pairs: Sequence[tuple[int, int]]) -> None:
        for request_id, token_id in pairs:
            self._note(lambda i=request_id, t=token_id: self.made[i].append(t))

    def done(self, completion: Completion) -> None:
        def note() -> None:
            self.at_done[completion.request_id] = len(self.made[completion.request_id])
            self.completions[completion.request_id] = completion

        self._note(note)

    def done_all(self, completions: Sequence[Completion]) -> None:
        for completion in completions:
            self.done(completion)

    def failed(self, request_id: int, error: PacelineError) -> None:
        self.failures[request_id] = error

    def progress(self, num_tokens: int) -> None:
        del num_tokens

    def _note(self, what: Callable[[], object]) -> None:
        with self.changed:
            what()
            self.changed.notify_all()

    def wait(self, holds: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(holds, 60)


def request(request_id: int, max_new_tokens: int) -> Request:
    prompt = np.arange(500 + request_id, 510 + request_id, dtype=np.int32)
    return Request(request_id, prompt, max_new_tokens, max_new_tokens)


@pytest.fixture(scope="module")
def engine() -> Iterator[NativeEngine]:
    context = EngineContext(
        model=embedded_model(),
        eos_token_id=2,
        vocabulary_size=49152,
        max_new_tokens=40,
        log_dir=Path(),
    )
    engine = NativeEngine(NativeConfig(device="cpu", max_live_sequences=4), context)
    engine.start()
    yield engine
    engine.close()


def test_tokens_come_one_by_one_and_are_those_of_the_completion(engine: NativeEngine) -> None:
    assert isinstance(Collector(), StreamSink)
    sink = Collector()
    engine.submit([request(i, 6 + i) for i in range(3)], sink)
    # Each is there before its request has ended.
    sink.wait(lambda: len(sink.made.get(2, [])) == 3)
    assert 2 not in sink.completions
    engine.drain()
    assert sink.made == {i: c.token_ids.tolist() for i, c in sink.completions.items()}
    assert {i: len(ids) for i, ids in sink.made.items()} == {0: 6, 1: 7, 2: 8}
    assert sink.at_done == {0: 6, 1: 7, 2: 8}


def test_cancelled_requests_give_their_place_and_change_no_other(engine: NativeEngine) -> None:
    assert isinstance(engine, CancellingEngine)
    alone = Collector()
    engine.submit([request(0, 12)], alone)
    engine.drain()
    sink = Collector()
    # Four run, the others wait; 0 and 9 are wanted.
    engine.submit([request(i, 12 if i in (0, 9) else 400) for i in range(10)], sink)
    sink.wait(lambda: len(sink.made) == 4)
    engine.cancel([*range(1, 9), 77])
    start_s = time.monotonic()
    engine.drain()
    assert time.monotonic() - start_s < 30
    assert sink.completions.keys() == {0, 9}
    assert np.array_equal(sink.completions[0].token_ids, alone.completions[0].token_ids)
    copy = engine._copies[0]
    deadline_s = time.monotonic() + 10
    while not copy.is_idle and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert copy.stats()["kv_used_fraction"] == 0.0
    assert engine.describe()["max_context_len"] == 8192


def test_after_a_failure_every_request_is_told_of_it(engine: NativeEngine) -> None:
    """The last test of the engine: it ends it."""
    sink = Collector()
    engine.submit([request(0, 9000)], sink)  # more than the context holds
    sink2 = Collector()
    deadline_s = time.monotonic() + 10
    while not sink.failures and time.monotonic() < deadline_s:
        time.sleep(0.01)
    engine.submit([request(1, 4)], sink2)
    assert isinstance(sink.failures[0], EngineError)
    assert sink2.failures[1] is sink.failures[0]
    engine.drain()
