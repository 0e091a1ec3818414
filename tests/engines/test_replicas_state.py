"""A run of replicas shows as one engine does, and each replica as a part of it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stand_in_cluster import StandInCluster, node_of

from paceline.engines import EngineContext, EngineState, ObservableEngine, Part, Request
from paceline.engines.probe import Probe
from paceline.engines.replicas import ReplicasEngine
from paceline.engines.replicas_dispatch import Member, Pool, PoolPolicy
from paceline.engines.replicas_plan import Node
from paceline.engines.replicas_seat import Seat
from paceline.engines.replicas_settings import ReplicasConfig
from paceline.engines.replicas_state import state_of
from paceline.engines.replicas_wire import PlaceState, pack_news


def requests_of(count: int) -> list[Request]:
    return [Request(i, np.full(8, 5, np.int32), 64) for i in range(count)]


class Quiet:
    def first_token(self, *_: object) -> None: ...

    def progress(self, *_: object) -> None: ...

    def done_all(self, *_: object) -> None: ...


def seat_of(index: int, *, held: int) -> Seat:
    """A seat whose replica has so many samples."""
    node = Node(node_id="n", host=f"h{index}", address="a", cpus=1, gpus=0)
    seat = Seat(index, (f"replica-{index}",), node, answered=[0], tokens=[0])
    member = Member(f"replica-{index}", capacity=64, reserve=1)
    member.held = dict.fromkeys(range(held), (0.0, 0.0))
    seat.sit([member], {}, now_s=0.0)
    return seat


def hear(seat: Seat, made: int, **known: Any) -> None:
    states = (PlaceState(made, EngineState(**known)),)
    seat.hear(pack_news((), (), (), states=states, cpu_s=0.0), now_s=1.0)


def made_by(state: EngineState) -> int:
    return sum(part.tokens or 0 for part in state.parts)


def pool_of(count: int) -> Pool:
    pool = Pool(PoolPolicy(retries=1, is_offline=True, may_double=False))
    pool.add(requests_of(count), Quiet())  # type: ignore[arg-type]
    return pool


def test_live_sequences_are_summed_and_all_other_samples_wait() -> None:
    """One replica has said how many live, of the other one only what it holds is known."""
    seats = [seat_of(0, held=9), seat_of(1, held=4)]
    hear(seats[0], 70, live_sequences=6, waiting_sequences=3)
    state = state_of(seats, pool_of(20))
    assert (state.live_sequences, state.waiting_sequences) == (10, 10)
    assert state.parts == (
        Part(name="replica-0 on h0", live_sequences=6, tokens=70, answered=0),
        Part(name="replica-1 on h1", live_sequences=4, tokens=0, answered=0),
    )
    assert state.kv_used_fraction is None
    assert state.preemptions is None


def test_caches_are_one_cache_in_which_a_large_one_weighs_more() -> None:
    seats = [seat_of(0, held=1), seat_of(1, held=1)]
    hear(seats[0], 1, live_sequences=1, kv_used_fraction=1.0, kv_slots=1000, preemptions=3)
    hear(seats[1], 1, live_sequences=1, kv_used_fraction=0.2, kv_slots=3000, preemptions=4)
    state = state_of(seats, pool_of(2))
    assert (state.kv_used_fraction, state.kv_slots) == (0.4, 4000)
    assert state.preemptions == 7


def test_a_replica_that_is_lost_stays_a_part_with_what_it_made() -> None:
    seats = [seat_of(0, held=1), seat_of(1, held=1)]
    for seat in seats:
        hear(seat, 50, live_sequences=1, kv_used_fraction=0.5, kv_slots=100, preemptions=2)
    seats[1].members[0].answered = 3
    seats[1].rise(now_s=2.0)
    state = state_of(seats, pool_of(8))
    assert state.parts[1] == Part(
        name="replica-1 on h1", live_sequences=0, tokens=50, answered=3, is_up=False
    )
    assert (state.live_sequences, state.waiting_sequences, state.preemptions) == (1, 7, 4)
    seats[1].sit([Member("replica-1", capacity=64, reserve=1)], {}, now_s=3.0)
    hear(seats[1], 5, live_sequences=0, preemptions=1)
    state = state_of(seats, pool_of(8))
    assert (state.parts[1].tokens, state.parts[1].is_up, state.preemptions) == (55, True, 5)


def test_what_lies_in_the_queues_of_servers_is_summed_and_waits() -> None:
    seats = [seat_of(index, held=9) for index in range(3)]
    hear(seats[0], 1, live_sequences=6, waiting_sequences=3, queued_at_servers=2)
    hear(seats[1], 1, live_sequences=5, waiting_sequences=4, queued_at_servers=4)
    hear(seats[2], 1, live_sequences=9)
    state = state_of(seats, pool_of(30))
    assert (state.live_sequences, state.waiting_sequences) == (20, 10)
    assert state.queued_at_servers == 6
    assert state.taken_on == 26
    assert state_of([seats[2]], pool_of(9)).queued_at_servers is None


def test_tokens_begin_at_0_when_counting_does() -> None:
    """By the word of the process, which may know of more than was heard of it."""
    seat = seat_of(0, held=1)
    pool = pool_of(4)
    hear(seat, 40)
    seat.rise(now_s=2.0)
    seat.sit([Member("replica-0", capacity=64, reserve=1)], {}, now_s=3.0)
    hear(seat, 50)
    assert made_by(state_of([seat], pool)) == 90
    seat.begin_counting([58])
    assert made_by(state_of([seat], pool)) == 0
    hear(seat, 58)
    assert made_by(state_of([seat], pool)) == 0
    hear(seat, 61)
    assert made_by(state_of([seat], pool)) == 3
    seat.rise(now_s=4.0)
    assert made_by(state_of([seat], pool)) == 3
    seat.sit([Member("replica-0", capacity=64, reserve=1)], {}, now_s=5.0)
    hear(seat, 10)
    assert made_by(state_of([seat], pool)) == 13
    seat.begin_counting(None)
    hear(seat, 12)
    assert made_by(state_of([seat], pool)) == 2


@contextmanager
def running(tmp_path: Path, *, streaming: bool, **fake: Any) -> Iterator[ReplicasEngine]:
    context = EngineContext(
        model=None,
        eos_token_id=2,
        vocabulary_size=1000,
        max_new_tokens=64,
        log_dir=tmp_path,
        streaming=streaming,
    )
    config = ReplicasConfig(engine="fake", report_s=0.2, batch_ms=10.0, inner=fake)
    cluster = StandInCluster(node_of("a"), node_of("b"))
    engine = ReplicasEngine(config, context, connect=lambda *_, **__: cluster)
    engine.start()
    try:
        yield engine
    finally:
        engine.close()


@pytest.fixture(autouse=True)
def _own_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_WAIT_POLICY", "OMP_NUM_THREADS"):  # a process of replicas sets them
        monkeypatch.setenv(name, "")


def test_the_engine_says_what_is_under_way_and_nothing_before_and_after(tmp_path: Path) -> None:
    fake = {"tokens_per_second": 100.0, "concurrency": 4, "output_len": 40}
    with running(tmp_path, streaming=False, **fake) as engine:
        assert isinstance(engine, ObservableEngine)
        before = engine.state()
        engine.submit(requests_of(24), Quiet())  # type: ignore[arg-type]
        end_s = time.monotonic() + 10
        while (state := engine.state()).live_sequences != 8:
            assert time.monotonic() < end_s
            time.sleep(0.01)
        engine.drain()
    assert (before.live_sequences, before.waiting_sequences) == (0, 0)
    assert 8 <= (state.waiting_sequences or 0) <= 16
    assert [part.name for part in state.parts] == ["replica-0 on a", "replica-1 on b"]
    assert [part.live_sequences for part in state.parts] == [4, 4]
    assert engine.state() == EngineState()


def test_each_replica_counts_its_tokens_from_when_counting_began(tmp_path: Path) -> None:
    with running(tmp_path, streaming=False, output_len=10) as engine:
        made = {}
        for count in (24, 6):
            engine.begin_counting()
            engine.submit(requests_of(count), Quiet())  # type: ignore[arg-type]
            engine.drain()
            end_s = time.monotonic() + 10
            while made_by(engine.state()) < 10 * count:
                assert time.monotonic() < end_s
                time.sleep(0.01)
            time.sleep(0.3)  # longer than report_s: more would be heard by now
            made[count] = made_by(engine.state())
    assert made == {24: 240, 6: 60}


@pytest.mark.parametrize("streaming", [False, True])
def test_replicas_are_measured_as_one_engine_is(tmp_path: Path, streaming: bool) -> None:
    """Also in Offline, where first tokens do not travel and the end of the samples is balanced:
    neither while each answer brings another sample."""
    fake = {"tokens_per_second": 2000.0, "concurrency": 8, "output_len": 20}
    with running(tmp_path, streaming=streaming, **fake) as engine:
        in_flight = engine.describe()["in_flight"]
        engine.set_streaming(True)
        probe = Probe(engine, requests_of(50), slice_s=0.1)
        found = probe.hold(in_flight=in_flight, seconds=2.0, tokens_per_sample=20.0)
        probe.settle(limit_s=10)
        engine.set_streaming(None)
        facts = engine.describe()
    assert in_flight == 2 * (8 + 1)
    assert found.is_full
    assert found.tokens_per_second == pytest.approx(4000, rel=0.15)
    assert facts["counts"].get("doubled", 0) == 0
    assert 12 <= probe.max_live <= in_flight


def test_settings_of_the_head_can_be_tuned() -> None:
    config = ReplicasConfig()
    fields = {field.name for field in dataclasses.fields(config)}
    for knob in config.knobs(8):
        assert knob.name in fields
        assert getattr(config, knob.name) in knob.choices
        for choice in knob.choices:
            dataclasses.replace(config, **{knob.name: choice})
