"""What engines say of themselves while they work."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np

from paceline.engines import EngineContext, EngineState, ObservableEngine, Part, Request
from paceline.engines.endpoint_dispatch import Dispatcher
from paceline.engines.endpoint_state import Policy, Server
from paceline.engines.fake import FakeConfig, FakeEngine


class Quiet:
    """A sink that counts answers."""

    def __init__(self) -> None:
        self.answered = threading.Semaphore(0)

    def first_token(self, *_: object) -> None: ...

    def progress(self, *_: object) -> None: ...

    def done(self, *_: object) -> None:
        self.answered.release()


def test_what_is_under_way_and_what_waits_are_told_apart(tmp_path: Path) -> None:
    context = EngineContext(
        model=None, eos_token_id=2, vocabulary_size=32000, max_new_tokens=8, log_dir=tmp_path
    )
    config = FakeConfig(tokens_per_second=100, concurrency=4, output_len=8)
    engine, sink = FakeEngine(config, context), Quiet()
    assert isinstance(engine, ObservableEngine)
    engine.start()
    engine.submit([Request(i, np.array([i + 3], np.int32), 8) for i in range(10)], sink)
    assert engine.state() == EngineState(live_sequences=4, waiting_sequences=6)
    engine.drain()
    assert engine.state() == EngineState(live_sequences=0, waiting_sequences=0)
    engine.close()


def test_each_server_is_told_with_what_is_in_flight_there() -> None:
    async def never(*_: object) -> None: ...

    servers = [
        Server(name=name, limit=8, ask=never, is_back=never, in_flight=flying, is_up=flying > 0)
        for name, flying in (("http://a", 3), ("http://b", 0))
    ]
    policy = Policy(retries=0, backoff_s=1, dead_timeout_s=1)
    state = Dispatcher(servers, policy, answered=lambda _: None).state()
    assert (state.live_sequences, state.waiting_sequences) == (3, 0)
    assert [(part.name, part.live_sequences, part.is_up) for part in state.parts] == [
        ("http://a", 3, True),
        ("http://b", 0, False),
    ]


def test_a_line_of_the_timeline_has_what_is_known_and_parts_only_when_there_are_several() -> None:
    alone = (Part(name="copy 0", live_sequences=1, tokens=5),)
    assert EngineState(live_sequences=1, parts=alone).as_json() == {"live_sequences": 1}
    two = (*alone, Part(name="copy 1", live_sequences=0))
    assert EngineState(kv_used_fraction=0.5, parts=two).as_json() == {
        "kv_used_fraction": 0.5,
        "parts": [
            {"name": "copy 0", "live_sequences": 1, "tokens": 5, "is_up": True},
            {"name": "copy 1", "live_sequences": 0, "is_up": True},
        ],
    }
