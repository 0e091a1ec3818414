"""The pool deals samples by speed and counts each once: on a clock of the test's own, no Ray."""

import heapq
import itertools
import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.engines import Completion, Request
from paceline.engines.replicas_dispatch import Member, Pool, PoolPolicy
from paceline.errors import PacelineError


class NoSink:
    """The pool keeps a sample's sink and never calls it."""

    def first_token(self, request_id: int, token_id: int) -> None:
        raise AssertionError

    def done(self, completion: Completion) -> None:
        raise AssertionError

    def done_all(self, completions: Sequence[Completion]) -> None:
        raise AssertionError

    def failed(self, request_id: int, error: PacelineError) -> None:
        raise AssertionError

    def progress(self, num_tokens: int) -> None:
        raise AssertionError


SINK = NoSink()


def requests_of(count: int, length: int = 8) -> list[Request]:
    return [Request(i, np.full(length, 5, np.int32), 16) for i in range(count)]


class Cluster:
    """Replicas of fixed slots and known speeds, on simulated time."""

    def __init__(self, pool: Pool, seed: int = 0) -> None:
        self.pool = pool
        self.now_s = 0.0
        self.draw = random.Random(seed)
        self.events: list[tuple[float, int, Member, int]] = []
        self.order = itertools.count()
        self.slots: dict[Member, list[float]] = {}
        self.service_s: dict[Member, float] = {}
        self.answers: list[int] = []
        self.busy_rate_s = 0.0

    def add(self, name: str, *, rate: float, slots: int) -> Member:
        member = Member(name, capacity=slots, reserve=max(1, slots // 8))
        self.slots[member] = [self.now_s] * slots
        self.service_s[member] = slots / rate
        self.pool.join(member)
        return member

    def step(self) -> None:
        """Deal, then let the next answer come."""
        for member, works in self.pool.deal(self.now_s).items():
            for work in works:
                start_s = max(self.now_s, heapq.heappop(self.slots[member]))
                end_s = start_s + self.service_s[member] * self.draw.uniform(0.9, 1.1)
                heapq.heappush(self.slots[member], end_s)
                heapq.heappush(self.events, (end_s, next(self.order), member, work.number))
        self.now_s, _, member, number = heapq.heappop(self.events)
        if self.pool.answer(member, number, 16, now_s=self.now_s) is not None:
            self.answers.append(number)

    def run(self) -> float:
        """Until all is answered; returns when."""
        while len(self.pool):
            self.step()
        return self.now_s


def offline(**changes: object) -> Pool:
    facts = {"retries": 5, "is_offline": True, "may_double": True} | changes
    return Pool(PoolPolicy(**facts))  # type: ignore[arg-type]


def test_a_replica_keeps_no_reserve_while_the_last_samples_are_dealt() -> None:
    """One that waits on a slow replica would end late while a fast one idles."""
    pool = offline(may_double=False)
    cluster = Cluster(pool)
    members = [cluster.add(f"r{place}", rate=1.0 + place, slots=2) for place in range(3)]
    cluster.pool.add(requests_of(300), SINK)
    while pool.num_piled > 150:
        cluster.step()
    assert max(len(member.held) for member in members) == 3
    while pool.num_piled:
        cluster.step()
    assert all(len(member.held) <= 2 for member in members)


@pytest.mark.parametrize("slots", [1, 4])
def test_replicas_of_speeds_that_differ_three_times_finish_together(slots: int) -> None:
    """Dealt out evenly the slowest would take three times as long as the fastest: 60 %."""
    cluster = Cluster(offline())
    rates = [1.0 + 2.0 * place / 31 for place in range(32)]
    for place, rate in enumerate(rates):
        cluster.add(f"r{place}", rate=rate, slots=slots)
    cluster.pool.add(requests_of(12_288), SINK)
    took_s = cluster.run()
    assert sorted(cluster.answers) == list(range(12_288))
    assert 12_288 / took_s / sum(rates) >= 0.98


def test_a_slow_replica_does_not_get_the_last_samples() -> None:
    """It would end the run ten seconds after everything else."""
    cluster = Cluster(offline(may_double=False))
    cluster.add("fast", rate=10.0, slots=2)
    cluster.add("slow", rate=0.1, slots=1)
    cluster.pool.add(requests_of(400), SINK)
    assert cluster.run() < 42.0


def test_a_sample_on_a_replica_that_is_late_is_run_by_an_idle_one_too_and_counted_once() -> None:
    pool = offline()
    cluster = Cluster(pool)
    cluster.add("fast", rate=10.0, slots=1)
    slow = cluster.add("slow", rate=10.0, slots=1)
    cluster.pool.add(requests_of(100), SINK)
    while len(pool) > 50:
        cluster.step()
    cluster.service_s[slow] = 1000.0
    assert cluster.run() < 40.0
    assert sorted(cluster.answers) == list(range(100))
    assert pool.counts["doubled"] >= 1
    while cluster.events:  # the slow one answers after all
        cluster.now_s, _, member, number = heapq.heappop(cluster.events)
        assert pool.answer(member, number, 16, now_s=cluster.now_s) is None
    assert pool.counts["second"] >= 1


def test_nothing_is_run_twice_where_latencies_count() -> None:
    pool = offline(is_offline=False, may_double=False)
    cluster = Cluster(pool)
    for place in range(4):
        cluster.add(f"r{place}", rate=1.0, slots=8)
    for _ in range(50):
        pool.add(requests_of(1), SINK)
        cluster.step()
    assert pool.counts["doubled"] == 0
    assert len(cluster.answers) == 50


def test_a_single_sample_goes_to_the_replica_that_answers_it_first() -> None:
    pool = offline(is_offline=False, may_double=False)
    busy, free = (Member(name, capacity=4, reserve=1) for name in ("busy", "free"))
    for member in (busy, free):
        pool.join(member)
        member.latency_s, member.load = 1.0, 4.0
    busy.held = {-1: (0.0, 1.0), -2: (0.0, 1.0), -3: (0.0, 1.0), -4: (0.0, 1.0)}
    pool.add(requests_of(1), SINK)
    assert list(pool.deal(0.0)) == [free]


def test_a_replica_whose_memory_is_full_is_dealt_only_its_reserve() -> None:
    pool = offline()
    member = Member("r", capacity=100, reserve=4)
    pool.join(member)
    pool.add(requests_of(1000), SINK)
    first = pool.deal(0.0)[member]
    assert len(first) == 104
    pool.heard(member, 60)  # 44 fit
    assert pool.deal(0.1) == {}
    for work in first[:58]:
        pool.answer(member, work.number, 16, now_s=1.0)
    pool.heard(member, 2)
    assert len(pool.deal(1.0)[member]) == 2


def test_a_replica_whose_answers_come_in_bursts_holds_enough_for_the_next_one() -> None:
    """A loaded host gives its answers rarely and many at a time; it must not run dry between."""
    pool = offline()
    member = Member("r", capacity=2, reserve=1)
    pool.join(member)
    pool.add(requests_of(2000), SINK)
    for message in range(20):
        held = list(member.held)
        pool.heard(member, 0, len(held))
        for number in held:
            pool.answer(member, number, 16, now_s=float(message))
        pool.deal(float(message))
    assert len(member.held) > 6


def test_long_prompts_go_first_when_only_the_end_counts() -> None:
    pool = offline()
    member = Member("r", capacity=1, reserve=0)
    pool.join(member)
    pool.add([Request(i, np.full(n, 5, np.int32), 16) for i, n in enumerate((3, 9, 6))], SINK)
    (work,) = pool.deal(0.0)[member]
    assert len(work.request.token_ids) == 9


def test_a_sample_that_is_lost_too_often_is_given_up() -> None:
    """A sample that kills whatever runs it must not kill every replica for ever."""
    pool = offline(retries=2)
    pool.add(requests_of(1), SINK)
    for attempt in range(3):
        member = Member(f"r{attempt}", capacity=1, reserve=1)
        pool.join(member)
        assert len(pool.deal(0.0)[member]) == 1
        moved, given_up = pool.lose(member)
        assert (len(moved), len(given_up)) == ((0, 1) if attempt == 2 else (1, 0))
    assert len(pool) == 0


def test_late_answers_of_a_lost_replica_are_counted_and_dropped() -> None:
    pool = offline()
    lost, other = Member("lost", capacity=1, reserve=0), Member("other", capacity=1, reserve=0)
    pool.join(lost)
    pool.add(requests_of(1), SINK)
    (work,) = pool.deal(0.0)[lost]
    pool.lose(lost)
    assert pool.answer(lost, work.number, 16, now_s=1.0) is None
    pool.join(other)
    assert pool.deal(1.0) == {other: [work]}
    assert pool.answer(other, work.number, 16, now_s=2.0) is work
    assert pool.answer(lost, work.number, 16, now_s=3.0) is None
    assert pool.counts["late"] == 2


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_replicas=st.integers(1, 8),
    num_samples=st.integers(1, 120),
    kill_every=st.integers(3, 40),
    is_offline=st.booleans(),
)
def test_each_sample_is_answered_once_whatever_dies(
    seed: int, num_replicas: int, num_samples: int, kill_every: int, is_offline: bool
) -> None:
    """Random deaths, returns, and answers of the dead that come after all."""
    pool = offline(retries=10**6, is_offline=is_offline, may_double=is_offline)
    cluster = Cluster(pool, seed)
    draw = random.Random(seed)
    alive = [
        cluster.add(f"r{i}", rate=draw.uniform(1, 3), slots=draw.randint(1, 4))
        for i in range(num_replicas)
    ]
    pool.add(requests_of(num_samples), SINK)
    for step in itertools.count():
        if not len(pool):
            break
        if step % kill_every == kill_every - 1 and step < 200:
            pool.lose(alive.pop(draw.randrange(len(alive))))
            alive.append(cluster.add(f"again{step}", rate=draw.uniform(1, 3), slots=2))
        cluster.step()
    assert sorted(cluster.answers) == list(range(num_samples))
    assert all(not member.held or not member.is_lost for member in cluster.slots)
