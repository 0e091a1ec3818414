"""The native engine under a stream of requests: joined while running, first tokens, idle."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from paceline.engines import Completion, EngineContext, Request
from paceline.engines.native import NativeConfig, NativeEngine
from paceline.errors import PacelineError

pytest.importorskip("torch")


class Diary:
    """A Sink that writes down what came, in order."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, int]] = []
        self.first: dict[int, int] = {}
        self.completions: dict[int, Completion] = {}
        self.began = threading.Event()

    def first_token(self, request_id: int, token_id: int) -> None:
        assert request_id not in self.first
        self.first[request_id] = token_id
        self.lines.append(("first", request_id))
        self.began.set()

    def done(self, completion: Completion) -> None:
        self.completions[completion.request_id] = completion
        self.lines.append(("done", completion.request_id))

    def done_all(self, completions: Sequence[Completion]) -> None:
        for completion in completions:
            self.done(completion)

    def failed(self, request_id: int, error: PacelineError) -> None:
        raise AssertionError(f"request {request_id} failed: {error}")

    def progress(self, num_tokens: int) -> None:
        del num_tokens


def request(request_id: int, *, num_tokens: int, prompt_len: int = 5) -> Request:
    ids = np.arange(3, 3 + prompt_len, dtype=np.int32)
    return Request(request_id, ids, num_tokens, num_tokens)


def started(tmp_path: Path, **options: int) -> NativeEngine:
    config = NativeConfig(device="cpu", max_live_sequences=8, max_step_tokens=32, **options)
    context = EngineContext(
        model=Path("random:tiny"),
        eos_token_id=2,
        vocabulary_size=128,
        max_new_tokens=1024,
        log_dir=tmp_path,
    )
    engine = NativeEngine(config, context)
    engine.start()
    return engine


def test_a_request_joins_a_running_engine_and_its_first_token_does_not_wait_for_the_others(
    tmp_path: Path,
) -> None:
    engine, diary = started(tmp_path), Diary()
    engine.submit([request(0, num_tokens=400)], diary)
    assert diary.began.wait(60)
    engine.submit([request(1, num_tokens=3)], diary)
    engine.drain()
    assert diary.lines == [("first", 0), ("first", 1), ("done", 1), ("done", 0)]
    for request_id, completion in diary.completions.items():
        assert completion.token_ids[0] == diary.first[request_id]
    assert len(diary.completions[0].token_ids) == 400
    engine.close()


@pytest.mark.parametrize("copies", [1, 2])
def test_every_request_gives_one_first_token_and_then_one_answer(
    tmp_path: Path, copies: int
) -> None:
    engine, diary = started(tmp_path, data_parallel=copies, kv_pages=8), Diary()
    for start in range(0, 40, 4):  # more than fit at once: some are preempted and begin again
        engine.submit(
            [
                request(i, num_tokens=2 + 7 * (i % 9), prompt_len=3 + i)
                for i in range(start, start + 4)
            ],
            diary,
        )
    engine.drain()
    engine.close()
    assert sorted(diary.first) == sorted(diary.completions) == list(range(40))
    for request_id in range(40):
        assert diary.lines.index(("first", request_id)) < diary.lines.index(("done", request_id))


def test_an_idle_engine_costs_no_time_and_still_wakes_up(tmp_path: Path) -> None:
    engine, diary = started(tmp_path), Diary()
    engine.submit([request(0, num_tokens=2)], diary)
    engine.drain()
    before_s = time.process_time()
    time.sleep(1.0)
    assert time.process_time() - before_s < 0.2
    engine.submit([request(1, num_tokens=2)], diary)
    engine.drain()
    engine.close()
    assert len(diary.completions) == 2
