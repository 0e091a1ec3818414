"""What the replicas engine is made of, without Ray: messages, a process, seats, settings."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline import config
from paceline.config import RunConfig
from paceline.engines import Completion, EngineState, Request
from paceline.engines.fake import FakeConfig
from paceline.engines.managed_settings import ManagedConfig
from paceline.engines.native_settings import NativeConfig
from paceline.engines.replicas_dispatch import Member, Work
from paceline.engines.replicas_host import HostOrder, ReplicaHost, Trouble, model_digest
from paceline.engines.replicas_plan import Node
from paceline.engines.replicas_seat import Seat
from paceline.engines.replicas_settings import ReplicasConfig, capacity_of, devices_of
from paceline.engines.replicas_wire import PlaceState, pack_batch, pack_news
from paceline.errors import InputError, RecipeError

IDS = st.lists(st.integers(0, 2**31 - 1), max_size=6).map(lambda ids: np.asarray(ids, np.int32))


def order_of(tmp_path: Path, *fakes: FakeConfig, streaming: bool = False) -> HostOrder:
    return HostOrder(
        engine="fake",
        configs=fakes,
        first_replica=3,
        model=None,
        context={
            "eos_token_id": 2,
            "vocabulary_size": 100,
            "max_new_tokens": 16,
            "streaming": streaming,
            "longest_prompt_len": 8,
        },
        log_dir=str(tmp_path),
        codec=None,
        environment={},
        batch_s=0.05,
        report_s=0.3,
    )


def batch_of(*places: int, is_streaming: bool = False) -> object:
    requests = [Request(i, np.full(4, 5, np.int32), 16) for i in range(len(places))]
    rows = [(place, i, requests[i]) for i, place in enumerate(places)]
    return pack_batch(rows, is_streaming=is_streaming)


@settings(max_examples=50)
@given(prompts=st.lists(st.tuples(st.integers(0, 9), IDS), max_size=6))
def test_a_batch_of_samples_is_what_it_was_made_of(prompts: list) -> None:
    made = [(p, 7 + i, Request(i, ids, 20 + i, 1)) for i, (p, ids) in enumerate(prompts)]
    got = pack_batch(made, is_streaming=False).requests()
    assert [(p, r.request_id, r.max_new_tokens) for p, r in got] == [
        (p, number, r.max_new_tokens) for p, number, r in made
    ]
    for (_, back), (_, _, sent) in zip(got, made, strict=True):
        assert np.array_equal(back.token_ids, sent.token_ids)


@settings(max_examples=50)
@given(answers=st.lists(st.tuples(st.integers(0, 9), IDS), max_size=6))
def test_news_are_what_they_were_made_of(answers: list) -> None:
    done = [
        (p, Completion(i, ids, ("stop", "length")[i % 2])) for i, (p, ids) in enumerate(answers)
    ]
    news = pack_news(done, [(1, 2, 3)], (), states=(PlaceState(5, EngineState()),), cpu_s=0.5)
    assert news.firsts() == [(1, 2, 3)]
    for (place, back), (sent_place, sent) in zip(news.completions(), done, strict=True):
        assert (place, back.request_id, back.finish_reason) == (
            sent_place, sent.request_id, sent.finish_reason,
        )  # fmt: skip
        assert np.array_equal(back.token_ids, sent.token_ids)


@pytest.mark.timed
def test_a_process_answers_in_batches_and_never_sooner_than_it_may(tmp_path: Path) -> None:
    fake = FakeConfig(tokens_per_second=1000.0, concurrency=4, output_len=10)
    host = ReplicaHost(order_of(tmp_path, fake, fake))
    facts = host.start()
    assert isinstance(facts, dict)
    began_s, num_messages, answered = time.monotonic(), 0, []
    batch = batch_of(*([0, 1] * 40))
    while len(answered) < 80:
        news = host.news(batch, {})
        batch, num_messages = None, num_messages + 1
        answered += [(place, completion.request_id) for place, completion in news.completions()]
    took_s = time.monotonic() - began_s
    host.close()
    assert sorted(answered) == sorted([(i % 2, i) for i in range(80)])
    assert num_messages <= took_s / 0.05 + 1
    assert [state.made for state in news.states] == [400, 400]


def test_first_tokens_travel_only_where_they_are_wanted(tmp_path: Path) -> None:
    for at_start in (False, True):
        host = ReplicaHost(order_of(tmp_path, FakeConfig(output_len=4), streaming=at_start))
        host.start()
        for wanted in (at_start, not at_start, at_start):
            news = host.news(batch_of(0, is_streaming=wanted), {})
            assert len(news.firsts()) == int(wanted)
        host.close()


@pytest.mark.timed
def test_a_process_with_nothing_to_say_says_so_in_time(tmp_path: Path) -> None:
    host = ReplicaHost(order_of(tmp_path, FakeConfig()))
    host.start()
    began_s = time.monotonic()
    news = host.news(None, {})
    host.close()
    assert 0.25 < time.monotonic() - began_s < 3
    assert not len(news.numbers)


def test_a_model_that_is_not_there_is_told_not_raised(tmp_path: Path) -> None:
    import dataclasses

    order = dataclasses.replace(order_of(tmp_path, FakeConfig()), model=str(tmp_path / "none"))
    trouble = ReplicaHost(order).start()
    assert isinstance(trouble, Trouble)
    assert trouble.kind == "CheckpointError"
    assert "has no model at" in trouble.message


def test_half_a_checkpoint_is_another_one(tmp_path: Path) -> None:
    for name, size in (("a", 10), ("b", 20)):
        (tmp_path / name).write_bytes(b"x" * size)
    whole = model_digest(tmp_path)
    (tmp_path / "b").write_bytes(b"x" * 19)
    assert model_digest(tmp_path) != whole


def seat_of() -> Seat:
    node = Node(node_id="n", host="h", address="a", cpus=1, gpus=0)
    seat = Seat(0, ("replica-0",), node, answered=[0], tokens=[0])
    seat.sit([Member("replica-0", capacity=4, reserve=1)], {}, now_s=0.0)
    return seat


def test_a_replica_is_watched_from_when_it_gets_work() -> None:
    """One that idled for an hour has not stalled when it gets its first samples."""
    seat = seat_of()
    works = [Work(i, Request(i, np.zeros(1, np.int32), 4), None) for i in range(2)]  # type: ignore[arg-type]
    seat.members[0].held = {0: (3600.0, 3600.0), 1: (3600.0, 3600.0)}
    seat.send(0, works, now_s=3600.0)
    assert seat.trouble(3605.0, timeout_s=10.0) is None
    assert "made nothing for 11.0 s with 2 samples" in str(seat.trouble(3611.0, timeout_s=10.0))


def test_a_replica_that_makes_tokens_has_not_stalled() -> None:
    seat = seat_of()
    seat.members[0].held = {0: (0.0, 0.0)}
    news = pack_news((), (), (), states=(PlaceState(5, EngineState()),), cpu_s=0.0)
    assert seat.hear(news, now_s=8.0) == 5
    assert seat.trouble(12.0, timeout_s=10.0) is None
    assert seat.hear(news, now_s=16.0) == 0
    assert "stalled" in str(seat.trouble(19.0, timeout_s=10.0))


def test_a_process_that_does_not_return_its_call_is_silent() -> None:
    seat = seat_of()
    seat.is_asked = True
    assert "silent" in str(seat.trouble(11.0, timeout_s=10.0))


def test_a_replica_that_went_silent_while_it_made_nothing_is_called_silent() -> None:
    seat = seat_of()
    seat.members[0].held = {0: (0.0, 0.0)}
    seat.is_asked = True
    seat.heard_s = 1.5
    assert seat.trouble(9.0, timeout_s=10.0) is None
    assert "said nothing for 9.5 s" in str(seat.trouble(11.0, timeout_s=10.0))
    # One that says so is stalled.
    seat.heard_s = 8.0
    assert "stalled" in str(seat.trouble(11.0, timeout_s=10.0))


def test_the_copied_engines_settings_are_its_own_keys() -> None:
    overrides = ("engine.name=replicas", "engine.replicas.engine=fake", "engine.fake.output_len=9")
    resolved = config.resolve(config.read_settings(None, overrides), None)
    assert resolved.engine_config.inner == FakeConfig(output_len=9)
    assert resolved.model_engine == "fake"
    assert "the fake engine runs no model" in resolved.shortfalls
    back = RunConfig.from_json(json.loads(json.dumps(resolved.as_json())))
    assert back.engine_config == resolved.engine_config


def test_settings_of_an_engine_that_is_not_copied_are_refused() -> None:
    overrides = ("engine.name=replicas", "engine.replicas.engine=fake", "engine.native.page_len=9")
    with pytest.raises(RecipeError, match="the engine of this run is 'replicas of fake'"):
        config.read_settings(None, overrides)


def test_a_copy_takes_the_cards_that_its_engine_shares_it_over() -> None:
    native = ReplicasConfig(inner=NativeConfig(tensor_parallel=4))
    assert devices_of(native, has_gpus=True) == 4
    assert devices_of(native, has_gpus=False) == 0
    on_cpu = ReplicasConfig(inner=NativeConfig(device="cpu"))
    assert devices_of(on_cpu, has_gpus=True) == 0
    served = ManagedConfig(tensor_parallel=2, pipeline_parallel=2)
    assert devices_of(ReplicasConfig(engine="managed", inner=served), has_gpus=True) == 4
    llama = ManagedConfig(preset="llamacpp")
    assert devices_of(ReplicasConfig(engine="managed", inner=llama), has_gpus=True) == 0
    asked = ReplicasConfig(gpus_per_replica=3, inner=NativeConfig())
    assert devices_of(asked, has_gpus=True) == 3


def test_how_much_a_copy_holds_is_read_from_its_settings() -> None:
    assert capacity_of(ReplicasConfig(inner=NativeConfig(max_live_sequences=77))) == 77
    assert capacity_of(ReplicasConfig(engine="fake", inner=FakeConfig(concurrency=5))) == 5
    assert capacity_of(ReplicasConfig(outstanding=9)) == 9


def test_a_silence_that_every_message_has_is_no_stall() -> None:
    with pytest.raises(InputError, match="a copy may be silent"):
        ReplicasConfig(stall_timeout_s=1.5)
