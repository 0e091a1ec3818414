"""Before a run: does the engine do what is asked of it, and how fast is it?

    examine(config, ...)             start the engine, measure it, stop it: `paceline preflight`
    with_measured_qps(config, ...)   the run sized by that, where its recipe leaves the size open

An Offline run has to last its minimum. Sized by a guess it is too short, found out only when it is
over; sized by half a minute of the same engine it is right at the first try.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from paceline import engines
from paceline.config import AUTO, RunConfig, Setting
from paceline.engines.probe import ProbeResult, probe
from paceline.harness import verdict
from paceline.mlperf import dataset, rules
from paceline.mlperf.tokenizer import load_tokenizer

__all__ = ["examine", "with_measured_qps"]

Observer = Callable[[Mapping[str, Any]], None]

_NUM_PROMPTS = 512
_IN_FLIGHT = 256


def examine(config: RunConfig, *, seconds: float, observer: Observer) -> dict[str, Any]:
    """What the engine says of itself, and its speed unless `seconds` is 0. Raises PacelineError."""
    engine, requests = _make_engine(config, observer)
    try:
        engine.start()
        measured = None
        if seconds > 0:
            _stage(observer, f"measuring for {seconds:g} s")
            measured = _probe(config, engine, requests, seconds=seconds)
        return {"engine": engine.describe(), "probe": measured}
    finally:
        engine.close()


def with_measured_qps(
    config: RunConfig, settings: Mapping[str, Setting], *, observer: Observer
) -> tuple[RunConfig, dict[str, Any]]:
    """The config with its target_qps measured, and what to put on record of it.

    Only for a performance test of some minimum duration, with an engine that has `probe_s`, and
    when nobody set loadgen.target_qps.
    """
    seconds = float(getattr(config.engine_config, "probe_s", 0.0))
    asked = settings.get("loadgen.target_qps")
    wanted = (
        seconds > 0
        and config.scenario == "Offline"
        and config.loadgen.min_duration_ms > 0
        and "performance" in verdict.tests_of(config.mode)
        and asked is not None
        and asked.value == AUTO
    )
    if not wanted:
        return config, {}
    found: ProbeResult = examine(config, seconds=seconds, observer=observer)["probe"]
    target_qps = float(f"{found.high_samples_per_second:.4g}")
    _stage(observer, f"measured {found.samples_per_second:.4g} samples/s; target_qps {target_qps}")
    sized = dataclasses.replace(config.loadgen, target_qps=target_qps)
    return dataclasses.replace(config, loadgen=sized), {"probe": dataclasses.asdict(found)}


def _make_engine(
    config: RunConfig, observer: Observer
) -> tuple[engines.Engine, list[engines.Request]]:
    benchmark, path = rules.benchmark(config.benchmark), config.tokenizer_path
    loaded = dataset.load_dataset(config.data_path, trust_pickle=config.trust_pickle)
    rows = rules.sample_rows(loaded.num_samples, min(config.num_samples, _NUM_PROMPTS))
    context = engines.EngineContext(
        model=config.model_path,
        eos_token_id=benchmark.eos_token_id,
        vocabulary_size=benchmark.vocabulary_size,
        max_new_tokens=benchmark.max_new_tokens,
        log_dir=Path(),
        report=lambda what, _: _stage(observer, what),
        # Tokens are then seen as they are made, not when answers end.
        streaming=True,
        longest_prompt_len=max(len(prompt) for prompt in loaded.prompts),
        codec=None if path is None else lambda: load_tokenizer(path),
    )
    requests = [
        engines.Request(
            place, loaded.prompts[row], benchmark.max_new_tokens, benchmark.min_new_tokens
        )
        for place, row in enumerate(rows)
    ]
    return engines.load(config.engine)(config.engine_config, context), requests


def _probe(
    config: RunConfig,
    engine: engines.Engine,
    requests: list[engines.Request],
    *,
    seconds: float,
) -> ProbeResult:
    servers = engine.describe().get("servers", ())
    in_flight = sum(server["concurrency"] for server in servers) or _IN_FLIGHT
    bounds = rules.benchmark(config.benchmark).accuracy["tokens_per_sample"]
    middle = (bounds.low + bounds.high) / 2 if bounds.high else bounds.low
    return probe(engine, requests, seconds=seconds, in_flight=in_flight, tokens_per_sample=middle)


def _stage(observer: Observer, what: str) -> None:
    observer({"event": "stage", "what": f"preflight: {what}"})
