"""The probe predicts the speed of an engine that is known."""

from __future__ import annotations

from pathlib import Path

import pytest

from fault_server import requests
from paceline.engines import EngineContext
from paceline.engines.fake import FakeConfig, FakeEngine
from paceline.engines.probe import ProbeResult, probe
from paceline.errors import EngineError


def measured(config: FakeConfig, *, in_flight: int, seconds: float = 1.5) -> ProbeResult:
    context = EngineContext(
        model=None, eos_token_id=2, vocabulary_size=32000, max_new_tokens=64, log_dir=Path()
    )
    engine = FakeEngine(config, context)
    engine.start()
    try:
        return probe(
            engine, requests(30), seconds=seconds, in_flight=in_flight, tokens_per_sample=50.0
        )
    finally:
        engine.drain()
        engine.close()


def test_a_paced_engine_is_measured_at_its_pace() -> None:
    found = measured(FakeConfig(tokens_per_second=2000, output_len=20), in_flight=2)
    assert found.tokens_per_second == pytest.approx(2000, rel=0.15)
    assert found.tokens_per_sample == 20
    assert found.samples_per_second == pytest.approx(100, rel=0.15)
    assert found.high_samples_per_second >= found.samples_per_second


def test_few_answers_say_nothing_of_the_length_of_a_sample() -> None:
    found = measured(FakeConfig(tokens_per_second=400, output_len=20), in_flight=8)
    assert found.tokens_per_sample == 50
    assert found.samples_per_second == pytest.approx(found.tokens_per_second / 50)


def test_a_request_that_fails_ends_the_probe_by_its_error() -> None:
    with pytest.raises(EngineError, match="as told to"):
        measured(FakeConfig(fail_after=5), in_flight=2, seconds=20)
