"""Before a run: does the engine do what is asked of it, and how fast is it?

    examine(config, ...)    start the engine, measure it, stop it: `paceline preflight`
    measure(config, ...)    the speed of an engine that was started
    size(config, found)     the run made as long as that speed needs

An Offline run has to last its minimum. Sized by a guess it is too short, found out only when it is
over; sized by half a minute of the same engine it is right at the first try. The process of a
performance test measures its own engine before LoadGen starts, so the model is loaded once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paceline import engines
from paceline.config import RunConfig, refuse_long_samples
from paceline.engines.probe import Probe, ProbeResult
from paceline.harness.query_size import query_len, stated_qps
from paceline.harness.samples import Samples, read_samples
from paceline.mlperf import rules
from paceline.mlperf.tokenizer import load_tokenizer

__all__ = [
    "context_of",
    "examine",
    "in_flight",
    "measure",
    "own_len",
    "size",
    "steady_live",
    "tokens_per_sample",
]

Observer = Callable[[Mapping[str, Any]], None]

_NUM_PROMPTS = 512
_IN_FLIGHT = 256
# So that there is always one that waits.
_MORE_THAN_LIVE = 1.25
_NUM_SLICES = 24
# LoadGen and the harness keep some hundred bytes of each sample of a query.
_MOST_SAMPLES = 20_000_000


def examine(config: RunConfig, *, seconds: float, observer: Observer) -> dict[str, Any]:
    """What the engine says of itself, and its speed unless `seconds` is 0. Raises PacelineError."""
    samples = read_samples(config)
    context = context_of(
        config,
        samples.prompts,
        log_dir=Path(),
        report=lambda what, _: _stage(observer, what),
        streaming=True,
    )
    engine = engines.load(config.engine)(config.engine_config, context)
    try:
        engine.start()
        measured = None
        if seconds > 0:
            _stage(observer, f"measuring for {seconds:g} s")
            measured = measure(config, engine, samples, seconds=seconds)
        return {"engine": engine.describe(), "probe": measured}
    finally:
        engine.close()


def context_of(
    config: RunConfig,
    prompts: Sequence[engines.TokenIds],
    *,
    log_dir: Path,
    report: Callable[[str, float | None], None],
    streaming: bool,
    kept: Path | None = None,
) -> engines.EngineContext:
    """What the run's engine is told of the benchmark. Raises InputError for too long a prompt."""
    lens = [len(prompt) for prompt in prompts]
    refuse_long_samples(config, lens)
    benchmark, path = rules.benchmark(config.benchmark), config.tokenizer_path
    return engines.EngineContext(
        model=config.model_path,
        eos_token_id=benchmark.eos_token_id,
        vocabulary_size=benchmark.vocabulary_size,
        max_new_tokens=benchmark.max_new_tokens,
        log_dir=log_dir,
        report=report,
        streaming=streaming,
        longest_prompt_len=max(lens, default=0),
        codec=None if path is None else lambda: load_tokenizer(path),
        kept=kept,
    )


def in_flight(config: RunConfig, engine: engines.Engine) -> int:
    """Requests that keep a started engine full: as it says, or as its settings do."""
    told = int(engine.describe().get("in_flight", 0))
    return told or int(getattr(config.engine_config, "in_flight", _IN_FLIGHT))


def tokens_per_sample(config: RunConfig) -> float:
    """What an answer of the benchmark has, in the mean."""
    bounds = rules.benchmark(config.benchmark).accuracy["tokens_per_sample"]
    return (bounds.low + bounds.high) / 2 if bounds.high else bounds.low


def measure(
    config: RunConfig,
    engine: engines.Engine,
    samples: Samples,
    *,
    seconds: float,
) -> ProbeResult:
    """The speed of an engine that was started and is full; nothing is in flight at the end.

    Raises EngineError.
    """
    # The origins of the prompts lie one after another: any part of these is spread over all.
    order = np.random.default_rng(0).permutation(len(samples.prompts))[:_NUM_PROMPTS].tolist()
    probe = Probe(engine, samples.requests(order), slice_s=seconds / _NUM_SLICES)
    streams = engine if isinstance(engine, engines.StreamingEngine) else None
    if streams is not None:  # tokens are then seen as they are made, not when answers end
        streams.set_streaming(True)
    try:
        found = probe.hold(
            in_flight=_useful(config, engine, samples),
            seconds=seconds,
            tokens_per_sample=tokens_per_sample(config),
        )
        probe.settle(limit_s=config.stall_timeout_s)
    finally:
        if streams is not None:
            streams.set_streaming(None)
    return found


def steady_live(step_tokens: int, samples: Samples) -> float:
    """How many sequences live where each step is filled with them and with the prompts of those
    that follow the ones which end."""
    prompt_len = float(np.mean([len(prompt) for prompt in samples.prompts]))
    output_len = float(np.mean(samples.expected_lens))
    return step_tokens * output_len / (prompt_len + output_len)


def _useful(config: RunConfig, engine: engines.Engine, samples: Samples) -> int:
    """Requests in flight that make a difference: an engine that takes the longest prompts first
    would work through the longest of all the others before it comes to a steady state."""
    found = [in_flight(config, engine)]
    if (num_samples := own_len(config)) is not None:
        found.append(num_samples)
    if (step_tokens := getattr(config.engine_config, "step_tokens", None)) is not None:
        found.append(math.ceil(_MORE_THAN_LIVE * steady_live(step_tokens, samples)))
    return min(found)


def own_len(config: RunConfig) -> int | None:
    """The samples of a run that is as long as their count: more are never in flight in it, so they
    are not in a measurement either. None where the run lasts as long as a duration."""
    return None if config.loadgen.min_duration_ms > 0 else query_len(config.loadgen, 1.0)


def size(config: RunConfig, found: ProbeResult) -> tuple[RunConfig, str]:
    """The config with the target_qps that makes the run long enough, and that in words.

    A query that LoadGen could not hold in memory is left as it is, and the words say so.
    """
    target_qps = stated_qps(config.loadgen, found.high_samples_per_second)
    num_samples = query_len(config.loadgen, target_qps)
    how = "modelled" if found.is_modelled else "measured"
    said = f"{how} {found.samples_per_second:.4g} samples/s"
    if not found.is_full and not found.is_modelled:
        said += f" with the engine not yet full after {found.ramp_s:.0f} s"
    if num_samples > _MOST_SAMPLES:
        least_s = config.loadgen.min_duration_ms / 1000
        return config, (
            f"{said}: {least_s:g} s would be {num_samples:,} samples, more than LoadGen holds; the "
            "run is not sized, and too short"
        )
    sized = dataclasses.replace(config.loadgen, target_qps=target_qps)
    lasts_s = num_samples / found.samples_per_second
    words = f"{said}; target_qps {target_qps:g}, {num_samples:,} samples: {lasts_s:,.0f} s"
    return dataclasses.replace(config, loadgen=sized), words


def _stage(observer: Observer, what: str) -> None:
    observer({"event": "stage", "what": f"preflight: {what}"})
