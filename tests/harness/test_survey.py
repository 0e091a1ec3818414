"""How long a query takes is known from a part of it, on an engine whose costs are known."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from paceline import config
from paceline.config import RunConfig
from paceline.engines import Completion, Request
from paceline.engines.fake import FakeConfig
from paceline.errors import PacelineError
from paceline.harness import preflight
from paceline.harness.samples import Samples, read_samples
from paceline.harness.survey import Survey, survey
from stepping_engine import Costs, SteppingEngine

pytestmark = pytest.mark.timed

# Prompts take most of the time, as on a processor; steps are longer than a slice of the time.
SLOW_PROMPTS = Costs(step_s=0.006, token_s=0.001, prompt_s=0.00014)
SMALL_CHUNKS = replace(SLOW_PROMPTS, budget=512)
# Reading the weights takes most of the time.
SLOW_STEPS = Costs(step_s=0.02, token_s=0.0001, prompt_s=0.00001)
# Prompts take 70 steps, though no answer has more than 24 tokens.
NARROW_STEPS = replace(SLOW_STEPS, budget=512)
FEW_PLACES = replace(SLOW_STEPS, max_live=24)
SOME_PLACES = replace(SLOW_PROMPTS, max_live=64)
# Keys and values of what stands before take as long as the rest of a step.
LONG_CONTEXTS = Costs(
    step_s=0.01, token_s=0.00005, prompt_s=0.00001, context_s=0.000002, max_live=64
)


# A machine that wakes the engine later than that, three times, measures itself.
_TRIES, _LATE_PART = 3, 0.03


class Nobody:
    """A Sink that wants nothing."""

    def first_token(self, request_id: int, token_id: int) -> None:
        pass

    def done(self, completion: Completion) -> None:
        pass

    def done_all(self, completions: object) -> None:
        pass

    def failed(self, request_id: int, error: PacelineError) -> None:
        pass

    def progress(self, num_tokens: int) -> None:
        pass


def demo() -> tuple[RunConfig, Samples]:
    """The demo's run, and its samples with how long their answers are."""
    run = config.resolve(config.read_settings(None, ["engine.name=native"]), "v6.1")
    return run, read_samples(run)


def long_answers() -> Samples:
    """Answers of 20 to 200 tokens, in which contexts become several times as long as prompts."""
    draw = np.random.default_rng(4)
    prompts = [draw.integers(3, 1000, draw.integers(10, 60)).astype(np.int32) for _ in range(96)]
    return Samples(
        prompts=prompts,
        expected_lens=draw.integers(20, 200, 96).tolist(),
        max_new_tokens=256,
        min_new_tokens=1,
    )


def query_s(costs: Costs, by_prompt: dict[bytes, int], query: list[Request]) -> float:
    """How long a query takes by definition."""
    counting = SteppingEngine(costs, by_prompt, clock=0.0)
    counting.submit(query, Nobody())
    counting.start()
    counting.drain()
    counting.close()
    return counting.seconds


def measured(run: RunConfig, costs: Costs, samples: Samples, *, times: int) -> tuple[Survey, float]:
    """What 3 s say of a query of all samples so many times, and how long it takes."""
    lens = zip(samples.prompts, samples.expected_lens, strict=True)
    by_prompt = {prompt.tobytes(): length for prompt, length in lens}
    drawn = list(range(96))
    query = [samples.request(i, j) for i, j in enumerate(drawn * times)]
    loadgen = replace(run.loadgen, performance_samples=96, min_query_count=len(query))
    limits = {"max_step_tokens": costs.budget, "max_live_sequences": costs.max_live}
    native = replace(run.engine_config, **limits)
    run = replace(run, mode="performance", loadgen=loadgen, engine_config=native)
    for _ in range(_TRIES):
        engine = SteppingEngine(costs, by_prompt)
        engine.start()
        found = survey(run, engine, samples, drawn=drawn, seconds=3.0, full=lambda: None)
        engine.close()
        if engine.late_s < _LATE_PART * engine.seconds:
            return found, query_s(costs, by_prompt, query)
    pytest.skip(f"the machine is too busy: steps ended {engine.late_s:.2f} s late")


@pytest.mark.parametrize(
    ("costs", "times"),
    [
        *((SLOW_PROMPTS, 1), (SMALL_CHUNKS, 1)),
        *((SOME_PLACES, 5), (FEW_PLACES, 5), (NARROW_STEPS, 5)),
    ],
)
def test_a_query_that_is_too_long_to_play_is_modelled_within_five_percent(
    costs: Costs, times: int
) -> None:
    """A step of prompts takes 0.3 s of the 3 s; queries take from 2.8 to 14 s."""
    run, samples = demo()
    found, took_s = measured(run, costs, samples, times=times)
    test = found.tests["performance"]
    assert test["how"] == "modelled"
    assert test["seconds"] == pytest.approx(took_s, rel=0.05)
    # Two standard errors hold it.
    assert abs(test["seconds"] / took_s - 1) < 2 * test["relative_error"] < 0.4
    prompt_lens = [len(prompt) for prompt in samples.prompts]
    prompts_s = sum(map(found.pace.prompt_s, prompt_lens))
    assert prompts_s == pytest.approx(costs.prompt_s * sum(prompt_lens), rel=0.15)


def test_places_that_no_setting_tells_are_those_that_requests_waited_for() -> None:
    """As of a server: 24 places, and 128 requests in flight."""
    run, samples = demo()
    lens = zip(samples.prompts, samples.expected_lens, strict=True)
    by_prompt = {prompt.tobytes(): length for prompt, length in lens}
    drawn = list(range(96))
    query = [samples.request(i, j) for i, j in enumerate(drawn * 5)]
    loadgen = replace(run.loadgen, performance_samples=96, min_query_count=len(query))
    run = replace(
        run, mode="performance", loadgen=loadgen, engine_config=FakeConfig(concurrency=64)
    )
    engine = SteppingEngine(FEW_PLACES, by_prompt)
    engine.start()
    found = survey(run, engine, samples, drawn=drawn, seconds=3.0, full=lambda: None)
    engine.close()
    assert found.pace.max_live == FEW_PLACES.max_live
    test = found.tests["performance"]
    assert test["how"] == "modelled"
    assert test["seconds"] == pytest.approx(query_s(FEW_PLACES, by_prompt, query), rel=0.05)


def test_contexts_that_grow_beyond_what_was_measured_are_reckoned_with() -> None:
    """4 of 9.4 s go to contexts; reckoned to each token alike the query is forecast 16 % short."""
    run, _ = demo()
    samples, costs = long_answers(), LONG_CONTEXTS
    found, took_s = measured(run, costs, samples, times=2)
    test = found.tests["performance"]
    assert test["how"] == "modelled"
    assert test["seconds"] == pytest.approx(took_s, rel=0.05)
    assert found.pace.context_token_s == pytest.approx(costs.context_s, rel=0.3)


def test_a_closed_loop_has_no_more_in_flight_than_steps_have_room_for() -> None:
    """Steps of 512 tokens never get to 1,024 places; the longest prompts of 1,280 would come first,
    and what is measured would be them."""
    run, _ = demo()
    samples, costs = long_answers(), replace(SLOW_STEPS, budget=512)
    native = replace(run.engine_config, max_step_tokens=512, max_live_sequences=1024)
    lens = zip(samples.prompts, samples.expected_lens, strict=True)
    engine = SteppingEngine(costs, {prompt.tobytes(): length for prompt, length in lens})
    loadgen = replace(run.loadgen, min_duration_ms=600_000)
    run = replace(run, engine_config=native, loadgen=loadgen)
    engine.start()
    found = preflight.measure(run, engine, samples, seconds=3.0)
    engine.close()
    live = preflight.steady_live(512, samples)
    assert engine.most == math.ceil(1.25 * live)
    # As many tokens in each step as live, which takes as long as it takes.
    prompts = 512 - live
    step_s = costs.step_s + costs.token_s * live + costs.prompt_s * prompts
    assert found.tokens_per_second == pytest.approx(live / step_s, rel=0.15)


def test_the_speed_of_an_engine_that_a_minute_does_not_fill_is_modelled() -> None:
    """Answers take 40 times the 3 s that there are; the query's steps come to be full of them."""
    run, _ = demo()
    samples = replace(long_answers(), expected_lens=[3000] * 96, max_new_tokens=4096)
    costs = Costs(step_s=0.04, token_s=0.00005, prompt_s=0.0001, budget=256, max_live=1024)
    lens = zip(samples.prompts, samples.expected_lens, strict=True)
    by_prompt = {prompt.tobytes(): length for prompt, length in lens}
    loadgen = replace(run.loadgen, performance_samples=96, min_query_count=960)
    native = replace(run.engine_config, max_step_tokens=256)
    run = replace(run, mode="performance", loadgen=loadgen, engine_config=native)
    engine = SteppingEngine(costs, by_prompt)
    engine.start()
    found = survey(run, engine, samples, drawn=list(range(96)), seconds=3.0, full=lambda: None)
    engine.close()
    assert found.held is not None
    assert found.held.is_modelled
    live = preflight.steady_live(256, samples)
    step_s = costs.step_s + costs.token_s * live + costs.prompt_s * (256 - live)
    assert found.held.tokens_per_second == pytest.approx(live / step_s, rel=0.1)
