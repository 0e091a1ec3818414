"""The scheduler and the page allocator, without a model: a fake device answers with ids."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.native.cache import PageAllocator
from paceline.native.errors import NativeError
from paceline.native.generation import GenRequest
from paceline.native.schedule import Scheduler, SchedulerConfig, StepPlan

EOS = 2


def make_scheduler(num_pages: int, page_len: int, budget: int, live: int) -> Scheduler:
    config = SchedulerConfig(
        max_step_tokens=budget,
        max_live_sequences=live,
        max_context_len=num_pages * page_len,
        eos_token_ids=frozenset({EOS}),
        tile_tokens=8,
    )
    return Scheduler(config, PageAllocator(num_pages, page_len))


def check_pages(scheduler: Scheduler) -> None:
    """Every page has one owner or is free, and there are as many as there were."""
    owned = [page for sequence in scheduler.running for page in sequence.pages]
    allocator = scheduler.allocator
    assert len(owned) == len(set(owned)), "a page is shared"
    assert len(owned) + allocator.num_free == allocator.num_pages, "a page leaked"


def check_plan(scheduler: Scheduler, plan: StepPlan, written: dict[int, int]) -> None:
    """Budget kept, positions continuous, every token's slot owned by its sequence."""
    assert plan.num_tokens <= scheduler.config.max_step_tokens
    slots = [item.slot for item in [*plan.decodes, *plan.prefills]]
    assert len(slots) == len(set(slots)), "a sequence is in the step twice"
    for item in [*plan.decodes, *plan.prefills]:
        sequence = item.sequence
        assert item.num_tokens >= 1
        assert item.start + item.num_tokens <= len(sequence.pages) * scheduler.allocator.page_len
        expected = 0 if item.start == 0 else written[sequence.request_id]
        assert item.start == expected, "a token was skipped or computed twice"
        written[sequence.request_id] = item.start + item.num_tokens


def drive(scheduler: Scheduler, requests: list[GenRequest], *, seed: int) -> dict[int, list[int]]:
    """Run one step ahead, as the engine does, until idle; return the outputs."""
    rng = random.Random(seed)
    for request in requests:
        scheduler.check(request)
        scheduler.add(request)
    outputs: dict[int, list[int]] = {}
    written: dict[int, int] = {}
    in_flight: StepPlan | None = None
    for _ in range(100_000):
        plan = scheduler.schedule()
        check_plan(scheduler, plan, written)
        check_pages(scheduler)
        before, in_flight = in_flight, plan if plan.num_tokens else None
        if before is not None:
            ids = [EOS if rng.random() < 0.05 else rng.randrange(3, 50) for _ in before.sampled]
            for result in scheduler.complete(before, ids):
                assert result.request_id not in outputs, "a request finished twice"
                outputs[result.request_id] = result.token_ids
            check_pages(scheduler)
        elif in_flight is None:
            assert scheduler.is_idle, "the scheduler is stuck"
            return outputs
    raise AssertionError("the schedule does not end")


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    lengths=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 40)), min_size=1, max_size=40),
    page_len=st.sampled_from([1, 4, 16]),
    spare_pages=st.integers(0, 12),
    budget=st.integers(1, 70),
    live=st.integers(1, 12),
)
def test_every_request_finishes_and_no_page_is_lost_or_shared(
    seed: int,
    lengths: list[tuple[int, int]],
    page_len: int,
    spare_pages: int,
    budget: int,
    live: int,
) -> None:
    # As few pages as the largest request needs: preemption is the rule here.
    num_pages = max(-(-(prompt + new) // page_len) for prompt, new in lengths) + spare_pages
    scheduler = make_scheduler(num_pages, page_len, budget, live)
    requests = [
        GenRequest(request_id=i, token_ids=[3] * prompt, max_new_tokens=new)
        for i, (prompt, new) in enumerate(lengths)
    ]
    outputs = drive(scheduler, requests, seed=seed)
    assert scheduler.allocator.num_free == num_pages
    assert sorted(outputs) == list(range(len(lengths)))
    for i, (_, new) in enumerate(lengths):
        ids = outputs[i]
        assert 1 <= len(ids) <= new
        assert EOS not in ids[:-1], "a token past the end of sequence came out"
        assert len(ids) == new or ids[-1] == EOS


def test_decodes_come_first_and_prompts_fill_the_rest_of_the_budget() -> None:
    scheduler = make_scheduler(num_pages=100, page_len=4, budget=10, live=8)
    scheduler.add(GenRequest(request_id=0, token_ids=[3] * 10, max_new_tokens=5))
    scheduler.add(GenRequest(request_id=1, token_ids=[3] * 9, max_new_tokens=5))
    first = scheduler.schedule()
    assert [item.num_tokens for item in first.prefills] == [10]
    second = scheduler.schedule()
    assert [item.sequence.request_id for item in second.decodes] == [0]
    assert [item.num_tokens for item in second.prefills] == [9]


def test_longest_prompts_are_admitted_first() -> None:
    scheduler = make_scheduler(num_pages=100, page_len=4, budget=100, live=8)
    for request_id, prompt_len in enumerate([5, 20, 11]):
        scheduler.add(
            GenRequest(request_id=request_id, token_ids=[3] * prompt_len, max_new_tokens=2)
        )
    plan = scheduler.schedule()
    assert [item.sequence.request_id for item in plan.prefills] == [1, 2, 0]


def test_preemptions_are_counted() -> None:
    scheduler = make_scheduler(num_pages=8, page_len=4, budget=32, live=8)
    requests = [
        GenRequest(request_id=i, token_ids=[3] * 8, max_new_tokens=20, ignore_eos=True)
        for i in range(4)
    ]
    drive(scheduler, requests, seed=0)
    assert scheduler.num_preemptions > 0


def test_a_full_step_is_cut_to_whole_tiles() -> None:
    scheduler = make_scheduler(num_pages=100, page_len=4, budget=61, live=8)
    scheduler.add(GenRequest(request_id=0, token_ids=[3] * 90, max_new_tokens=2))
    assert scheduler.schedule().num_tokens == 56


@pytest.mark.parametrize(("prompt_len", "max_new_tokens"), [(0, 4), (4, 0), (30, 20), (60, 60)])
def test_a_request_that_can_never_run_is_refused(prompt_len: int, max_new_tokens: int) -> None:
    scheduler = make_scheduler(num_pages=10, page_len=4, budget=8, live=2)
    with pytest.raises(NativeError):
        scheduler.check(
            GenRequest(request_id=0, token_ids=[3] * prompt_len, max_new_tokens=max_new_tokens)
        )


def test_freeing_a_page_twice_is_caught() -> None:
    allocator = PageAllocator(4, 16)
    pages = allocator.allocate(2)
    allocator.free(pages)
    with pytest.raises(AssertionError):
        allocator.free(pages)
