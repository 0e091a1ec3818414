"""`paceline bench engine`: the native engine measured alone."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from paceline.cli.verbs import print_facts
from paceline.errors import EngineError, InputError
from paceline.mlperf import synthetic
from paceline.native import EngineConfig, NativeError
from paceline.native.bench import BenchOptions, run_bench

__all__ = ["bench_engine"]


_BENCH_FIELDS = ("steady_steps", "num_layers", "is_longest_first", "stop_after_s")


def bench_engine(
    lengths: Path | None, *, samples: int, options: dict[str, Any], as_json: bool
) -> None:
    """Run the bench and print its figures; `options` are fields of the engine and the bench."""
    bench = {name: options.pop(name) for name in _BENCH_FIELDS}
    with tempfile.TemporaryDirectory(prefix="paceline-bench-") as scratch:
        if lengths is None:
            lengths = Path(scratch) / "lengths.json"
            prompts, outputs = synthetic.draw_lengths(samples)
            pairs = zip(prompts.tolist(), outputs.tolist(), strict=True)
            lengths.write_text(json.dumps(list(pairs)))
        if not lengths.is_file():
            raise InputError(f"There is no lengths file {lengths}.", hint="--lengths FILE")
        try:
            engine = EngineConfig(**options)
            facts = run_bench(
                BenchOptions(engine=engine, lengths=lengths, num_samples=samples, **bench)
            )
        except NativeError as error:
            raise EngineError(error.message, hint=error.hint) from error
    shown = {name.replace("tokens_per_s", "tokens_per_second"): facts[name] for name in facts}
    print_facts(shown, as_json=as_json)
