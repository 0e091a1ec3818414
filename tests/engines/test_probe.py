"""The probe predicts the speed of an engine that is known."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import toys

from fault_server import requests
from paceline.engines import EngineContext, Request
from paceline.engines.fake import FakeConfig, FakeEngine
from paceline.engines.native import NativeConfig, NativeEngine
from paceline.engines.probe import Probe, ProbeResult
from paceline.errors import EngineError
from stepping_engine import Costs, SteppingEngine

pytestmark = pytest.mark.timed


def measured(config: FakeConfig, *, in_flight: int, seconds: float = 1.5) -> ProbeResult:
    context = EngineContext(
        model=None, eos_token_id=2, vocabulary_size=32000, max_new_tokens=64, log_dir=Path()
    )
    engine = FakeEngine(config, context)
    engine.start()
    try:
        probe = Probe(engine, requests(30), slice_s=seconds / 20)
        return probe.hold(in_flight=in_flight, seconds=seconds, tokens_per_sample=50.0)
    finally:
        engine.drain()
        engine.close()


def test_a_paced_engine_is_measured_at_its_pace() -> None:
    found = measured(FakeConfig(tokens_per_second=2000, output_len=20), in_flight=2)
    assert found.tokens_per_second == pytest.approx(2000, rel=0.15)
    assert found.tokens_per_sample == 20
    assert found.samples_per_second == pytest.approx(100, rel=0.15)
    assert found.high_samples_per_second >= found.samples_per_second


def test_a_first_wave_that_is_cut_short_says_nothing_of_lengths() -> None:
    """Answers of all ages live at once from the start; the lengths known are those of the rest."""
    by_prompt = {one.token_ids.tobytes(): 40 for one in requests(30)}
    engine = SteppingEngine(Costs(step_s=0.004, token_s=0.0, prompt_s=0.0), by_prompt)
    engine.start()
    try:
        probe = Probe(engine, requests(30), slice_s=0.05)
        found = probe.hold(in_flight=16, seconds=1.5, tokens_per_sample=40.0)
        probe.settle(limit_s=5)
    finally:
        engine.close()
    assert found.tokens_per_second == pytest.approx(16 / 0.004, rel=0.1)
    assert set(probe.output_lens.values()) == {40}
    # 100 answers/s in the second after the ramp, where a wave of 16 would end every 0.16 s.
    assert found.answered == pytest.approx(100, abs=15)
    lone = [one.tokens / one.steps for one in probe.slices[-8:]]
    assert max(lone) <= 16


def test_few_answers_say_nothing_of_the_length_of_a_sample() -> None:
    found = measured(FakeConfig(tokens_per_second=400, output_len=20), in_flight=8)
    assert found.tokens_per_sample == 50
    assert found.samples_per_second == pytest.approx(found.tokens_per_second / 50)


def test_a_request_that_fails_ends_the_probe_by_its_error() -> None:
    with pytest.raises(EngineError, match="as told to"):
        measured(FakeConfig(fail_after=5), in_flight=2, seconds=20)


@pytest.mark.parametrize("in_flight", [1, 2])
@pytest.mark.parametrize("pace", [2e5, 7e5, 1.5e6, 2.5e6])
def test_an_engine_whose_answers_are_due_within_microseconds_goes_on(
    pace: float, in_flight: int
) -> None:
    config = FakeConfig(tokens_per_second=pace, output_len=20)
    found = measured(config, in_flight=in_flight, seconds=0.3)
    assert found.answered > 50


def test_the_native_engine_is_measured_and_then_empty(tmp_path: Path) -> None:
    """It hands every token to a sink that takes tokens; the probe's counts them only."""
    checkpoint = toys.save_llama(tmp_path / "toy")
    config = NativeConfig(device="cpu", max_live_sequences=4, max_step_tokens=128)
    context = EngineContext(
        model=checkpoint, eos_token_id=2, vocabulary_size=320, max_new_tokens=16, log_dir=tmp_path
    )
    engine = NativeEngine(config, context)
    engine.start()
    asked = [Request(i, np.arange(3, 20 + i, dtype=np.int32), 16, 1) for i in range(8)]
    try:
        probe = Probe(engine, asked, slice_s=0.1)
        assert probe.burst(asked, limit_s=60, output_tokens=128) is not None
        assert set(probe.output_lens) == set(range(8))
        assert probe.max_live == 4
        found = probe.hold(in_flight=5, seconds=1.0, tokens_per_sample=16.0)
        assert found.tokens_per_second > 0
        probe.settle(limit_s=30)
        engine.drain()  # what was cancelled is waited for by nobody
        assert probe.burst(asked[:2], limit_s=60, output_tokens=32) is not None
    finally:
        engine.close()


def stepping(costs: Costs, output_len: int) -> tuple[SteppingEngine, list[Request]]:
    """An engine of known costs, and requests to it of prompts of 20 to 210 tokens."""
    asked = [Request(i, np.arange(20 + 10 * i, dtype=np.int32), output_len, 1) for i in range(20)]
    by_prompt = {one.token_ids.tobytes(): output_len for one in asked}
    return SteppingEngine(costs, by_prompt), asked


def test_what_was_forgotten_is_in_no_slice() -> None:
    """Rungs of a climb are cut short while a step is under way; it is told in the next rung's."""
    costs = Costs(step_s=0.01, token_s=0.0, prompt_s=0.0001)
    engine, asked = stepping(costs, 400)
    engine.start()
    try:
        probe = Probe(engine, asked, slice_s=0.05)
        probe.climb(most=16, seconds=2.0, limit_s=10)
        probe.settle(limit_s=10)
    finally:
        engine.close()
    assert len(probe.slices) > 10
    for one in probe.slices:
        known_s = costs.step_s * one.steps + costs.prompt_s * one.prompt_tokens
        assert one.seconds == pytest.approx(known_s, rel=0.2)
    alone = [one for one in probe.slices if one.tokens == one.steps and not one.prompt_tokens]
    contexts = [one.context_tokens / one.tokens for one in alone]
    assert max(contexts) > 3 * min(contexts)  # the longest prompt alone, and the shortest


def test_places_are_known_where_requests_wait_for_them_and_only_there() -> None:
    for max_live, is_limited in ((6, True), (64, False)):
        engine, asked = stepping(Costs(step_s=0.005, token_s=0, prompt_s=0, max_live=max_live), 30)
        engine.start()
        try:
            probe = Probe(engine, asked, slice_s=0.05)
            assert probe.burst(asked, limit_s=20, output_tokens=600) is not None
        finally:
            engine.close()
        assert probe.is_limited is is_limited
        assert probe.max_live == min(max_live, 20)


def test_a_query_that_cannot_end_in_its_time_is_given_up_early() -> None:
    """It would take 20 s of the 2 s that there are; what is under way stays under way."""
    engine, asked = stepping(Costs(step_s=0.01, token_s=0, prompt_s=0), 2000)
    engine.start()
    try:
        probe = Probe(engine, asked, slice_s=0.05)
        start_s = time.perf_counter()
        assert probe.burst(asked, limit_s=2.0, output_tokens=2000 * 20) is None
        took_s = time.perf_counter() - start_s
        assert not probe.is_idle
        held = probe.hold(in_flight=20, seconds=1.0, tokens_per_sample=2000.0, is_bounded=True)
        assert held.tokens_per_second == pytest.approx(20 / 0.01, rel=0.1)
        probe.settle(limit_s=10)
        assert probe.is_idle
    finally:
        engine.close()
    assert took_s < 1.0
