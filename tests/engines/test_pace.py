"""An engine's pace: found again from slices, and played to the end of a query."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.engines.pace import Pace, Slice, before, fit, noise_s, spread

COSTS = st.floats(min_value=1e-4, max_value=1e-1)


def slices_of(pace: Pace, lives: list[tuple[float, float]]) -> list[Slice]:
    """What an engine of that pace does in a hundred steps, for each (live, prompt tokens)."""
    return [
        Slice(
            seconds=100 * (pace.step_s + pace.token_s * live) + pace.prompt_token_s * prompts,
            tokens=100 * live,
            prompt_tokens=prompts,
            steps=100,
        )
        for live, prompts in lives
    ]


@given(step_s=COSTS, token_s=COSTS, prompt_token_s=COSTS)
def test_costs_are_found_again(step_s: float, token_s: float, prompt_token_s: float) -> None:
    pace = Pace(step_s=step_s, token_s=token_s, prompt_token_s=prompt_token_s, max_live=None)
    found = fit(slices_of(pace, [(1, 500), (8, 0), (60, 900), (64, 30)]), max_live=None)
    assert found.step_s == pytest.approx(step_s, rel=1e-3)
    assert found.token_s == pytest.approx(token_s, rel=1e-3)
    assert found.prompt_token_s == pytest.approx(prompt_token_s, rel=1e-3)


def test_the_cost_of_contexts_is_found_and_played() -> None:
    """Prompts of 50 and 200 tokens, with one sequence and with many."""
    known = Pace(step_s=0.01, token_s=1e-3, prompt_token_s=0.0, max_live=None, context_token_s=1e-5)
    seen = [
        Slice(seconds=0, tokens=100 * live, prompt_tokens=0, steps=100, context_tokens=context)
        for live, context in ((1, 7_500), (1, 22_500), (60, 400_000), (64, 1_300_000))
    ]
    found = fit([replace(one, seconds=known.slice_s(one)) for one in seen], max_live=None)
    assert found.context_token_s == pytest.approx(1e-5, rel=1e-3)
    assert found.token_s == pytest.approx(1e-3, rel=1e-3)
    # Two sequences; after their prompts 2 steps of both, with 5 and 9 tokens before them and then
    # one more each, and one of the second alone.
    steps_s = 4 * 0.01 + (2 + 2 + 2 + 1) * 1e-3
    context_s = ((5 + 9) + (6 + 10) + 11) * 1e-5
    assert known.seconds([(5, 3), (9, 4)]) == pytest.approx(steps_s + context_s)


def test_long_prompts_cost_more_than_their_length() -> None:
    known = Pace(
        step_s=0.01,
        token_s=1e-3,
        prompt_token_s=1e-4,
        max_live=None,
        prompt_context_token_s=1e-6,
    )
    seen = [
        Slice(
            seconds=0,
            tokens=100,
            prompt_tokens=count * prompt_len,
            steps=steps,
            prompt_context_tokens=count * before(prompt_len),
        )
        for count, prompt_len, steps in ((9, 20, 7), (5, 900, 5), (9, 300, 20), (2, 600, 9)) * 3
    ]
    found = fit([replace(one, seconds=known.slice_s(one)) for one in seen], max_live=None)
    assert found.prompt_context_token_s == pytest.approx(1e-6, rel=1e-3)
    assert found.prompt_token_s == pytest.approx(1e-4, rel=1e-3)
    alone_s = known.seconds([(900, 1)]) - known.seconds([(450, 1)])
    assert alone_s == pytest.approx(450 * 1e-4 + (900 * 899 - 450 * 449) / 2 * 1e-6)


def test_prompts_wait_for_room_in_the_cache() -> None:
    """Of four, each of 10 and 5 tokens, two fit 30 tokens; a prompt beyond them is taken alone."""
    pace = Pace(step_s=1.0, token_s=0.0, prompt_token_s=0.0, max_live=None, cache_tokens=30)
    assert pace.seconds([(10, 5)] * 4) == 5 + 5
    assert pace.seconds([(40, 5), (10, 5)]) == 5 + 5


def test_contexts_that_explain_little_cost_nothing() -> None:
    """A chance likeness would be carried on to contexts that were not seen."""
    known = Pace(step_s=0.01, token_s=1e-3, prompt_token_s=0.0, max_live=None)
    shaken = [
        replace(one, seconds=one.seconds * (1 + 0.02 * (place * 7 % 5 - 2)), context_tokens=context)
        for place, (one, context) in enumerate(
            zip(
                slices_of(known, [(1.0 + 3 * (place % 9), 0.0) for place in range(24)]),
                [1000.0 * (1 + place * 11 % 13) for place in range(24)],
                strict=True,
            )
        )
    ]
    assert fit(shaken, max_live=None).context_token_s == 0.0


def test_no_cost_is_negative_whatever_was_seen() -> None:
    odd = [Slice(seconds=1, tokens=10, prompt_tokens=0, steps=10)]
    odd += [Slice(seconds=1, tokens=900, prompt_tokens=90, steps=300)]
    odd += [Slice(seconds=1, tokens=0, prompt_tokens=0, steps=0)]
    found = fit(odd, max_live=3)
    assert min(found.step_s, found.token_s, found.prompt_token_s) >= 0


def test_the_end_of_a_query_has_fewer_and_hardly_shorter_steps() -> None:
    """Without it, a query with one long answer would be forecast four times too short."""
    pace = Pace(step_s=1.0, token_s=0.0, prompt_token_s=0.0, max_live=2)
    assert pace.seconds([(1, 4), (1, 4), (1, 4), (1, 20)]) == 4 + 20
    assert pace.seconds([(1, 20), (1, 4), (1, 4), (1, 4)]) == 20


def test_without_a_limit_all_sequences_live_at_once() -> None:
    pace = Pace(step_s=1.0, token_s=0.5, prompt_token_s=0.25, max_live=None)
    assert pace.seconds([(4, 3)] * 10) == 3 * (1.0 + 10 * 0.5) + 10 * 4 * 0.25


def test_prompts_wait_for_room_in_a_step() -> None:
    """40 answers of 2 tokens to prompts of 25 fill a step of 100 three or four at a time: 14 steps,
    where all of them begun at once would take 2."""
    pace = Pace(step_s=1.0, token_s=0.0, prompt_token_s=0.125, max_live=None, step_tokens=100)
    # 4 prompts, then with 4, 3 or 4 tokens of answers 96 or 97 prompt tokens a step, to 1,000.
    steps, left, live = 0, 1000, 0
    done, begun = 0.0, 0
    while left > 0 or live:
        took = min(left, 100 - live)
        left, done, steps = left - took, done + took, steps + 1
        now_begun = int(done // 25)
        live, begun = now_begun - begun, now_begun
    assert pace.seconds([(25, 2)] * 40) == pytest.approx(steps + 1000 * 0.125)
    assert pace.seconds([(25, 2)] * 4) == 2 + 100 * 0.125


def test_a_prompt_that_is_longer_than_a_step_takes_several() -> None:
    pace = Pace(step_s=1.0, token_s=0.0, prompt_token_s=0.0, max_live=None, step_tokens=100)
    assert pace.seconds([(250, 1)]) == 3
    assert pace.seconds([(250, 4)]) == 6


def test_an_unsteady_engine_is_known_by_what_its_slices_took() -> None:
    """Every second of work takes 0.1 s more or less: a variance of 0.01 s for each second."""
    pace = Pace(step_s=0.01, token_s=0.0, prompt_token_s=0.0, max_live=None)
    steady = [Slice(seconds=1.0, tokens=100, prompt_tokens=0, steps=100) for _ in range(8)]
    assert noise_s(steady, pace) < 1e-20
    shaken = [
        replace(one, seconds=one.seconds + (0.1 if place % 2 else -0.1))
        for place, one in enumerate(steady)
    ]
    assert noise_s(shaken, pace) == pytest.approx(8 * 0.01 / 7)
    assert math.isnan(noise_s(shaken[:2], pace))


def test_a_steady_engine_has_no_spread_and_a_noisy_one_has() -> None:
    pace = Pace(step_s=0.01, token_s=0.001, prompt_token_s=0.0001, max_live=8)
    lives = [(float(1 + place % 8), 10.0 * (place % 5)) for place in range(24)]
    steady = slices_of(pace, lives)
    noisy = [
        Slice(
            seconds=one.seconds * (0.9 + 0.1 * (place * 5 % 3)),
            tokens=one.tokens,
            prompt_tokens=one.prompt_tokens,
            steps=one.steps,
        )
        for place, one in enumerate(steady)
    ]
    query = [(20, 30)] * 50
    assert spread(steady, query, max_live=8) < 1e-6
    assert 0.01 < spread(noisy, query, max_live=8) < 0.5
