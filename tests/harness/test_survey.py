"""How long a query takes is known from a part of it, on an engine whose costs are known."""

from __future__ import annotations

from dataclasses import replace

import pytest

from paceline import config
from paceline.config import RunConfig
from paceline.engines import Completion
from paceline.errors import PacelineError
from paceline.harness.samples import Samples, read_samples
from paceline.harness.survey import survey
from stepping_engine import Costs, SteppingEngine

# Prompts take most of the time, as on a processor; steps are longer than a slice of the time.
SLOW_PROMPTS = Costs(step_s=0.006, token_s=0.001, prompt_s=0.00014)
SMALL_CHUNKS = replace(SLOW_PROMPTS, budget=512)
# Reading the weights takes most of the time.
SLOW_STEPS = Costs(step_s=0.02, token_s=0.0001, prompt_s=0.00001)
# Prompts take 70 steps, though no answer has more than 24 tokens.
NARROW_STEPS = replace(SLOW_STEPS, budget=512)
FEW_PLACES = replace(SLOW_STEPS, max_live=24)
SOME_PLACES = replace(SLOW_PROMPTS, max_live=64)


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
    lens = zip(samples.prompts, samples.expected_lens, strict=True)
    by_prompt = {prompt.tobytes(): length for prompt, length in lens}
    indices = list(range(96)) * times
    loadgen = replace(run.loadgen, performance_samples=96, min_query_count=len(indices))
    native = replace(run.engine_config, max_step_tokens=costs.budget)
    run = replace(run, mode="performance", loadgen=loadgen, engine_config=native)
    counting = SteppingEngine(costs, by_prompt, clock=0.0)
    counting.submit([samples.request(i, j) for i, j in enumerate(indices)], Nobody())
    counting.start()
    counting.drain()
    counting.close()

    drawn = list(range(96))
    for _ in range(_TRIES):
        engine = SteppingEngine(costs, by_prompt)
        engine.start()
        found = survey(run, engine, samples, drawn=drawn, seconds=3.0, full=lambda: None)
        engine.close()
        if engine.late_s < _LATE_PART * engine.seconds:
            break
    else:
        pytest.skip(f"the machine is too busy: steps ended {engine.late_s:.2f} s late")
    test = found.tests["performance"]
    assert test["how"] == "modelled"
    assert test["seconds"] == pytest.approx(counting.seconds, rel=0.05)
    # Two standard errors hold it.
    off = test["seconds"] / counting.seconds - 1
    assert abs(off) < 2 * test["relative_error"] < 0.4
    assert found.pace.prompt_token_s == pytest.approx(costs.prompt_s, rel=0.2)
