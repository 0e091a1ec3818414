"""The engine measured alone: tokens/s, where a step's time goes, and what bounds it.

    python -m paceline.native.bench --weights random:llama2-70b --lengths FILE --samples 3000

Two kinds of run. A whole run takes the first N pairs of `lengths` (prompt and output tokens)
from the first prompt to the last token. A steady run (`steady_steps`) starts with the cache
full of sequences part way through, as the middle of a long run is, and times that many steps.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from paceline.native.errors import NativeError
from paceline.native.generation import GenRequest
from paceline.native.meters import BoardMeter, kernel_times, product_ms
from paceline.native.runner import Engine, EngineConfig, StepRecord
from paceline.native.schedule import Sequence

__all__ = ["BenchOptions", "run_bench"]

# The part of a run that is called steady: full batch, past the first wave of prompts.
_STEADY_FROM, _STEADY_TO = 0.25, 0.60
_PROFILED_STEPS = 4
_PRODUCT_SECONDS = 3.0
# Steps after a jump into the middle until the clocks have settled to the load.
_SETTLE_STEPS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchOptions:
    """What to measure. `steady_steps` None is a whole run; `num_layers` None is all of them.

    `is_longest_first` False keeps the order of the lengths file; a whole run takes as long in
    either, but only in the file's order is its middle a mix of all prompts. `stop_after_s`
    ends a whole run at what is taken for 60 % of its time, the end of the steady part.
    """

    engine: EngineConfig
    lengths: Path
    num_samples: int
    steady_steps: int | None = None
    num_layers: int | None = None
    is_longest_first: bool = True
    stop_after_s: float | None = None
    is_profiled: bool = True


def run_bench(options: BenchOptions) -> dict[str, Any]:
    """Run and measure; every figure is of this run.

    Raises
        NativeError  the lengths file holds fewer pairs than asked for, or the engine fails.
    """
    pairs = json.loads(options.lengths.read_text())[: options.num_samples]
    if len(pairs) < options.num_samples:
        raise NativeError(f"{options.lengths} holds {len(pairs)} pairs, not {options.num_samples}")
    config = options.engine
    if options.num_layers is not None:
        config = _with_layers(config, options.num_layers)
    engine = Engine(config)
    started = time.monotonic()
    engine.start(_print_progress)
    load_s = time.monotonic() - started
    try:
        figures = _measure(engine, pairs, options)
    finally:
        engine.close()
    return {"weights": config.weights, "load_s": round(load_s, 1), **figures}


def _with_layers(config: EngineConfig, num_layers: int) -> EngineConfig:
    return replace(config, weights=f"{config.weights}:layers={num_layers}")


def _print_progress(stage: str, fraction: float) -> None:
    if fraction == 1.0:
        print(f"{stage} ready", file=sys.stderr, flush=True)


def _requests(pairs: list[list[int]], vocab_size: int) -> list[GenRequest]:
    rng = random.Random(1)
    return [
        GenRequest(
            request_id=i,
            token_ids=[rng.randrange(3, vocab_size - 1) for _ in range(prompt_len)],
            max_new_tokens=output_len,
            ignore_eos=True,
        )
        for i, (prompt_len, output_len) in enumerate(pairs)
    ]


def _measure(engine: Engine, pairs: list[list[int]], options: BenchOptions) -> dict[str, Any]:
    requests = _requests(pairs, engine.source.config.vocab_size)
    if options.steady_steps is not None:
        _fill(engine, requests)
    if options.steady_steps is not None or not options.is_longest_first:
        scheduler = engine.scheduler
        scheduler.config = replace(scheduler.config, longest_first=False)
    engine.add(requests)
    gc.collect()
    gc.disable()
    with BoardMeter(engine.resolved.device) as meter:
        begin_ns = time.monotonic_ns()
        returned = _loop(engine, options)
        end_ns = time.monotonic_ns()
    rates = _rates(engine, _window(engine.records, begin_ns, options))
    stats = engine.stats()
    breakdown = {}
    is_partial = options.steady_steps is not None or options.stop_after_s is not None
    if options.is_profiled and is_partial and engine.resolved.device.type == "cuda":
        breakdown = _breakdown(engine, rates)
    gc.enable()
    if not is_partial and returned != sum(output for _, output in pairs):
        raise NativeError(f"{returned} tokens came back of those asked for")
    duration_s = (end_ns - begin_ns) / 1e9
    return {
        "device": _device_name(engine.resolved.device),
        "torch": torch.__version__,
        "samples": len(pairs),
        "duration_s": round(duration_s, 2),
        "tokens_per_s": round(returned / duration_s, 1) if not is_partial else None,
        **rates,
        **breakdown,
        **meter.figures(),
        **stats,
    }


def _loop(engine: Engine, options: BenchOptions) -> int:
    """Step to the end, or as far as the options say; return the tokens that came back."""
    returned, step = 0, 0
    stop_at = time.monotonic() + (options.stop_after_s or float("inf"))
    while not engine.is_idle and step != options.steady_steps and time.monotonic() < stop_at:
        returned += sum(len(result.token_ids) for result in engine.step())
        step += 1
    return returned


def _breakdown(engine: Engine, rates: dict[str, Any]) -> dict[str, Any]:
    """Where a steady step's time goes, and the share of it that the products alone would take."""
    profile = kernel_times(engine.step, num_settling=_SETTLE_STEPS, num_steps=_PROFILED_STEPS)
    step_ms = rates["steady_step_ms"]
    decode_ms = profile["parts_ms"].get("attention_decode")
    alone_ms = product_ms(
        engine.executor.llama, round(rates["steady_step_tokens"]), seconds=_PRODUCT_SECONDS
    )
    return {
        **profile,
        "gap_ms": round(step_ms - profile["device_ms"], 2),
        "decode_gb_per_s": decode_ms and round(1e3 * rates["steady_kv_gb_per_step"] / decode_ms),
        "products_alone_ms": round(alone_ms, 2),
        "fraction_of_products_bound": round(alone_ms / step_ms, 3),
    }


def _window(records: list[StepRecord], begin_ns: int, options: BenchOptions) -> list[StepRecord]:
    """The steady records; the first one only marks where the time starts."""
    if options.steady_steps is not None:
        return records[_SETTLE_STEPS : options.steady_steps - 1]
    span = records[-1].done_ns - begin_ns
    if options.stop_after_s is not None:
        span = int(span / _STEADY_TO)
    low, high = (begin_ns + int(part * span) for part in (_STEADY_FROM, _STEADY_TO))
    return [record for record in records if low <= record.done_ns <= high]


def _rates(engine: Engine, window: list[StepRecord]) -> dict[str, Any]:
    """Steady figures: rates of tokens, operations and bytes, from counts and the clock."""
    if len(window) < 2:
        return {}
    seconds = (window[-1].done_ns - window[0].done_ns) / 1e9
    steps = window[1:]
    model, cache = engine.source.config, engine.executor.llama.cache.config
    tokens = sum(record.num_tokens for record in steps)
    sampled = sum(record.num_sampled for record in steps)
    head = model.hidden_size * model.vocab_size
    operations = 2 * (tokens * model.linear_parameters + sampled * head)
    kv_bytes = sum(record.context_tokens for record in steps) * cache.page_bytes // cache.page_len
    return {
        "steady_tokens_per_s": round(sampled / seconds, 1),
        "steady_step_ms": round(1e3 * seconds / len(steps), 2),
        "steady_step_tokens": round(tokens / len(steps), 1),
        "steady_decodes": round(sum(record.num_decodes for record in steps) / len(steps), 1),
        "steady_context_len": round(
            sum(r.context_tokens for r in steps) / max(1, sum(r.num_decodes for r in steps)), 1
        ),
        "steady_tflops": round(operations / seconds / 1e12, 1),
        "steady_kv_gb_per_step": round(kv_bytes / len(steps) / 1e9, 2),
    }


@torch.inference_mode()
def _fill(engine: Engine, requests: list[GenRequest]) -> None:
    """Put the cache in the state of a long run's middle: sequences part way, pages full.

    A request is met in flight with odds of its output's length, anywhere in its output. Its
    keys and values are drawn, not computed: a step's time does not depend on them.
    """
    scheduler, cache = engine.scheduler, engine.executor.llama.cache
    for tensor in (cache.keys_LPHNd, cache.values_LPHNd):
        for layer in tensor:
            for page in layer.split(1024):
                page.copy_(torch.randn(page.shape, device=page.device).to(page.dtype))
    rng = random.Random(2)
    picked = rng.choices(requests, weights=[r.max_new_tokens for r in requests], k=4096)
    for number, request in enumerate(picked):
        done = rng.randrange(request.max_new_tokens)
        sequence = _part_way(request, done, request_id=-1 - number)
        num_pages = scheduler.allocator.num_pages_for(len(sequence.token_ids))
        reserve = len(scheduler.running) // 16
        if not scheduler.adopt(sequence, num_pages, reserve):
            break
        for index, page in enumerate(sequence.pages):
            cache.page_table_SI[sequence.slot, index] = page


def _part_way(request: GenRequest, done: int, *, request_id: int) -> Sequence:
    ids = [*request.token_ids, *([request.token_ids[0]] * (done + 1))]
    return Sequence(
        request_id=request_id,
        token_ids=ids,
        prompt_len=len(request.token_ids),
        max_new_tokens=request.max_new_tokens + 1,
        min_new_tokens=1,
        ignore_eos=True,
        computed_len=len(ids) - 1,
        prefill_len=len(ids) - 1,
    )


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _parse(arguments: list[str] | None) -> BenchOptions:
    parser = argparse.ArgumentParser(prog="paceline.native.bench", description=__doc__)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--lengths", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=3000)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--steady", type=int, metavar="STEPS")
    parser.add_argument("--order", choices=["longest", "given"], default="longest")
    parser.add_argument("--stop-after", type=float, metavar="SECONDS")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--quantization", default="fp8-tensor")
    parser.add_argument("--max-step-tokens", type=int, default=2048)
    parser.add_argument("--max-live", type=int, default=1280)
    parser.add_argument("--page-len", type=int, default=32)
    parser.add_argument("--kv-pages", type=int)
    parser.add_argument("--kv-memory-fraction", type=float, default=0.95)
    parser.add_argument("--max-context-len", type=int, default=2048)
    given = parser.parse_args(arguments)
    engine = EngineConfig(
        weights=given.weights,
        device=given.device,
        dtype=given.dtype,
        quantization=given.quantization,
        max_step_tokens=given.max_step_tokens,
        max_live_sequences=given.max_live,
        page_len=given.page_len,
        kv_pages=given.kv_pages,
        kv_memory_fraction=given.kv_memory_fraction,
        max_context_len=given.max_context_len,
    )
    return BenchOptions(
        engine=engine,
        lengths=given.lengths,
        num_samples=given.samples,
        steady_steps=given.steady,
        num_layers=given.layers,
        is_longest_first=given.order == "longest",
        stop_after_s=given.stop_after,
    )


if __name__ == "__main__":
    print(json.dumps(run_bench(_parse(None)), indent=1))
