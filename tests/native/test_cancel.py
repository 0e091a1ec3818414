"""Requests that are called off: their pages and slots come back, and no other is touched."""

from __future__ import annotations

import random
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.native import GenRequest, cancel
from paceline.native.cache import PageAllocator
from paceline.native.schedule import Scheduler, SchedulerConfig, StepPlan


def make_scheduler(num_pages: int) -> Scheduler:
    config = SchedulerConfig(
        max_step_tokens=16,
        max_live_sequences=5,
        max_context_len=num_pages * 4,
        eos_token_ids=frozenset({2}),
        tile_tokens=8,
    )
    return Scheduler(config, PageAllocator(num_pages, 4))


def check_room(scheduler: Scheduler) -> None:
    owned = [page for sequence in scheduler.running for page in sequence.pages]
    assert len(owned) == len(set(owned))
    assert len(owned) + scheduler.allocator.num_free == scheduler.allocator.num_pages
    assert len(scheduler.running) + len(scheduler._free_slots) == 5


@settings(deadline=None, max_examples=150)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 15)), min_size=1, max_size=15),
    calls=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 14)), max_size=10),
    num_pages=st.integers(9, 30),
    steps_ahead=st.integers(1, 2),
)
def test_what_is_left_is_answered_in_full_and_all_room_comes_back(
    lengths, calls, num_pages, steps_ahead
) -> None:
    """Tight caches preempt; one and two steps under way are a CPU's and a GPU's engine."""
    scheduler = make_scheduler(num_pages)
    for i, (prompt_len, max_new_tokens) in enumerate(lengths):
        scheduler.add(
            GenRequest(request_id=i, token_ids=[3] * prompt_len, max_new_tokens=max_new_tokens)
        )
    gone: set[int] = set()
    outputs: dict[int, int] = {}
    under_way: deque[StepPlan] = deque()
    for step in range(2000):
        asked = {request_id for at, request_id in calls if at == step}
        found = cancel(scheduler, asked)
        assert found <= asked
        assert not found & (gone | outputs.keys())
        gone |= found
        check_room(scheduler)
        plan = scheduler.schedule()
        if plan.num_tokens:
            under_way.append(plan)
        if under_way and (len(under_way) >= steps_ahead or not plan.num_tokens):
            done = under_way.popleft()
            for result in scheduler.complete(done, [7] * len(done.sampled)):
                outputs[result.request_id] = len(result.token_ids)
        if scheduler.is_idle and not under_way:
            break
    check_room(scheduler)
    assert scheduler.allocator.num_free == num_pages
    assert outputs.keys() | gone == set(range(len(lengths)))
    assert not outputs.keys() & gone
    assert all(outputs[i] == lengths[i][1] for i in outputs)


def test_ids_that_are_not_known_are_none() -> None:
    assert cancel(make_scheduler(9), {1, 2}) == set()


def test_first_and_later_tokens_of_a_step_are_told_apart() -> None:
    scheduler = make_scheduler(20)
    for i in range(2):
        scheduler.add(GenRequest(request_id=i, token_ids=[3] * 4, max_new_tokens=3))
    seen: list[tuple[list[tuple[int, int]], list[tuple[int, int]]]] = []
    for token_id in (11, 12, 13):
        plan = scheduler.schedule()
        scheduler.complete(plan, [token_id] * len(plan.sampled))
        seen.append((scheduler.first_tokens, scheduler.later_tokens))
    assert seen[0] == ([(0, 11), (1, 11)], [])
    assert seen[1:] == [([], [(0, token_id), (1, token_id)]) for token_id in (12, 13)]


@pytest.mark.parametrize("seed", range(3))
def test_cancelling_everything_leaves_an_empty_scheduler(seed: int) -> None:
    rng = random.Random(seed)
    scheduler = make_scheduler(12)
    for i in range(12):
        scheduler.add(GenRequest(request_id=i, token_ids=[3] * rng.randint(1, 9), max_new_tokens=9))
    plans = [scheduler.schedule()]
    for _ in range(4):
        scheduler.complete(plans[-1], [7] * len(plans[-1].sampled))
        plans.append(scheduler.schedule())
    assert cancel(scheduler, set(range(12))) == set(range(12))
    scheduler.complete(plans[-1], [7] * len(plans[-1].sampled))
    assert scheduler.is_idle
    check_room(scheduler)
