"""`paceline bench engine` and `bench products`: the native engine measured alone."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import typer

from paceline.cli.screen import table
from paceline.cli.verbs import print_facts
from paceline.errors import EngineError, InputError
from paceline.mlperf import synthetic
from paceline.native import EngineConfig, NativeError
from paceline.native.bench import BenchOptions, run_bench
from paceline.native.bench_products import ProductOptions, run_products

__all__ = ["bench_engine", "bench_products"]


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


def bench_products(names: dict[str, str], *, seconds: float, device: str, as_json: bool) -> None:
    """Time the products and print a row for each; `names` holds the lists as they were typed."""
    try:
        tokens = tuple(int(word) for word in names["tokens"].split(","))
    except ValueError:
        tokens = ()
    if not tokens or min(tokens) < 1:
        raise InputError(f"--tokens {names['tokens']} is no list of counts.", hint="as 512,1024")
    formats = tuple(word for word in names["formats"].split(",") if word)
    try:
        facts = run_products(
            ProductOptions(
                weights=names["weights"],
                formats=formats,
                tokens=tokens,
                seconds=seconds,
                device=device,
            )
        )
    except NativeError as error:
        raise EngineError(error.message, hint=error.hint) from error
    if as_json:
        typer.echo(json.dumps(facts, indent=1))
        return
    typer.echo(f"{facts['device']}, torch {facts['torch']}")
    columns = ("tokens", "product", "n", "k", "format", "us", "tflops", "against_fp8")
    typer.echo(table([columns, *(tuple(str(r[c]) for c in columns) for r in facts["products"])]))
