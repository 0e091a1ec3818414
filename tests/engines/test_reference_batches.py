"""How the reference forms batches: a plan that survives interruption."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from paceline.engines import Request
from paceline.engines.reference import ReferenceConfig, batches

lens = st.lists(st.integers(1, 60), min_size=1, max_size=60)
configs = st.builds(
    ReferenceConfig, batch_size=st.integers(1, 9), max_padded_tokens=st.integers(1, 200)
)


def requests(prompt_lens: list[int]) -> list[Request]:
    return [Request(i, np.full(length, 3 + i, np.int32), 8) for i, length in enumerate(prompt_lens)]


def members(plan: list[list[Request]]) -> list[list[int]]:
    return [[request.request_id for request in batch] for batch in plan]


@given(lens, configs)
def test_every_request_is_in_one_batch(prompt_lens: list[int], config: ReferenceConfig) -> None:
    plan = members(batches(requests(prompt_lens), config))
    assert sorted(i for batch in plan for i in batch) == list(range(len(prompt_lens)))


@given(lens, configs)
def test_a_batch_keeps_its_limits(prompt_lens: list[int], config: ReferenceConfig) -> None:
    for batch in batches(requests(prompt_lens), config):
        padded = len(batch) * max(len(r.token_ids) for r in batch)
        assert len(batch) <= config.batch_size
        assert len(batch) == 1 or padded <= config.max_padded_tokens


@given(lens, configs, st.data())
def test_taking_whole_batches_away_leaves_the_others_as_they_were(
    prompt_lens: list[int], config: ReferenceConfig, data: st.DataObject
) -> None:
    asked = requests(prompt_lens)
    plan = members(batches(asked, config))
    kept = data.draw(st.sets(st.integers(0, len(plan) - 1)))
    left = {i for number in kept for i in plan[number]}
    again = members(batches([r for r in asked if r.request_id in left], config))
    assert again == [batch for number, batch in enumerate(plan) if number in kept]


@given(lens, configs, st.randoms())
def test_the_order_of_submission_does_not_matter(
    prompt_lens: list[int], config: ReferenceConfig, random: object
) -> None:
    asked = requests(prompt_lens)
    shuffled = list(asked)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert members(batches(asked, config)) == members(batches(shuffled, config))
