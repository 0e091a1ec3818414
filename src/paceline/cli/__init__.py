"""The command line: verbs, flags and exit codes. Each verb is one call downwards.

    __init__   the verbs and their help; `main`, which turns errors into exit codes
    verbs      what each verb does
    flags_*    verbs with many flags
    screen     progress and results as people see them

Importing this module loads neither numpy nor rich: `paceline --help` must be quick. A verb
imports what it needs when it runs, through `verbs`.

Exit codes: 0 VALID and PASS, 1 ran but INVALID or FAIL, 2 the user's input, 3 the environment, or
stopped by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import paceline
from paceline.cli import (
    flags_bundle,
    flags_check,
    flags_cluster,
    flags_compare,
    flags_doctor,
    flags_endpoint,
    flags_engine,
    flags_forecast,
    flags_launch,
    flags_model,
    flags_power,
    flags_publish,
    flags_quantize,
    flags_serve,
    flags_tune,
)
from paceline.cli.flags_shared import (
    BenchmarkOption,
    DataOption,
    EngineOption,
    JsonOption,
    ModelOption,
    ModeOption,
    RecipeArgument,
    RoundOption,
    ScenarioOption,
    SetOption,
    TrustOption,
)
from paceline.cli.stopping import listen
from paceline.errors import STOPPED, PacelineError

__all__ = [
    "app",
    "bench_data",
    "bench_harness",
    "bench_scoring",
    "data_build",
    "data_describe",
    "data_synthetic",
    "data_verify",
    "explain",
    "main",
    "options",
    "run",
    "show",
]

_CTRL_C = 130  # the parser's exit code for it

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="From bare nodes to a fast, accepted MLPerf Inference Llama-2-70B result.",
)
data_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Build, check and look at datasets."
)
bench_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Measure paceline itself."
)


def _verbs() -> Any:
    return importlib.import_module("paceline.cli.verbs")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"paceline {paceline.__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    """From bare nodes to a fast, accepted MLPerf Inference Llama-2-70B result."""
    del debug, version  # --debug is read by main, before the arguments are parsed


@app.command()
def run(
    recipe: RecipeArgument = None,
    out: Annotated[
        Path | None, typer.Option(help="Run directory; none: runs/TIME-BENCHMARK-ENGINE.")
    ] = None,
    mode: ModeOption = None,
    engine: EngineOption = None,
    benchmark: BenchmarkOption = None,
    scenario: ScenarioOption = None,
    round_name: RoundOption = None,
    model: ModelOption = None,
    data: DataOption = None,
    trust_pickle: TrustOption = False,
    find_qps: Annotated[
        bool,
        typer.Option(
            "--find-qps", help="Search the highest rate that stays VALID, then run at it."
        ),
    ] = False,
    power_cap: flags_power.CapOption = None,
    lower_limits: flags_power.LowerOption = False,
    power_nodes: flags_power.NodesOption = None,
    overrides: SetOption = None,
    resume: Annotated[
        Path | None, typer.Option(help="Finish the run in this directory.", metavar="DIR")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run a benchmark: LoadGen against an engine, scores, a verdict."""
    flags = {
        "run.mode": mode,
        "run.benchmark": benchmark,
        "run.scenario": scenario,
        "run.round": round_name,
        "engine.name": engine,
        "model.path": model,
        "data.path": data,
        "data.trust_pickle": trust_pickle or None,
        "run.find_qps": find_qps or None,
        **flags_power.power_keys(power_cap, lower_limits, power_nodes),
    }
    if resume is not None:
        _verbs().resume(resume, recipe, out, flags=flags, overrides=overrides, as_json=as_json)
    else:
        _verbs().run(recipe, out, flags=flags, overrides=overrides or [], as_json=as_json)


@app.command()
def explain(
    recipe: RecipeArgument = None,
    mode: ModeOption = None,
    engine: EngineOption = None,
    benchmark: BenchmarkOption = None,
    scenario: ScenarioOption = None,
    round_name: RoundOption = None,
    model: ModelOption = None,
    data: DataOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the effective config of a run, and where each value came from."""
    flags = {
        "run.mode": mode,
        "run.benchmark": benchmark,
        "run.scenario": scenario,
        "run.round": round_name,
        "engine.name": engine,
        "model.path": model,
        "data.path": data,
    }
    _verbs().explain(recipe, flags=flags, overrides=overrides or [], as_json=as_json)


@app.command()
def show(
    run_dir: Annotated[Path, typer.Argument(help="A run directory.")], as_json: JsonOption = False
) -> None:
    """Show a run's verdict again. Exits as the run did."""
    _verbs().show(run_dir, as_json=as_json)


@data_app.command("build")
def data_build(
    parquet: Annotated[Path, typer.Argument(help="OpenOrca's 1M-GPT4-Augmented.parquet.")],
    tokenizer: Annotated[
        Path, typer.Option(help="Folder of the Llama-2 checkpoint (tokenizer.json).")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the two datasets.")],
    samples: Annotated[int, typer.Option(min=4, help="Rows of the dataset.")] = 24576,
    calibration: Annotated[int, typer.Option(min=1, help="Rows of the calibration set.")] = 1000,
    as_json: JsonOption = False,
) -> None:
    """Turn the raw OpenOrca parquet into the benchmark's dataset and calibration set."""
    _verbs().data_build(
        parquet, tokenizer, out, samples=samples, calibration=calibration, as_json=as_json
    )


@data_app.command("verify")
def data_verify(
    path: Annotated[Path, typer.Argument(help="A dataset: .parquet, .pkl or .pkl.gz.")],
    benchmark: BenchmarkOption = None,
    trust_pickle: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Check a dataset: checksum, columns, lengths, order. Exits 1 when a check fails."""
    _verbs().data_verify(path, benchmark, trust_pickle=trust_pickle, as_json=as_json)


@data_app.command("describe")
def data_describe(
    path: Annotated[
        Path | None, typer.Argument(help="A dataset; none: the sample set of the demo.")
    ] = None,
    trust_pickle: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Print length percentiles of prompts and reference answers."""
    _verbs().data_describe(path, trust_pickle=trust_pickle, as_json=as_json)


@data_app.command("synthetic")
def data_synthetic(
    out: Annotated[Path, typer.Argument(help="Folder to make: dataset.parquet, tokenizer.json.")],
    samples: Annotated[int, typer.Option(min=4, help="Rows, in four equal parts.")] = 24576,
) -> None:
    """Make a dataset of the real lengths and no meaning, to rehearse whole runs with."""
    _verbs().data_synthetic(out, samples)


@bench_app.command("harness")
def bench_harness(
    samples: Annotated[int, typer.Option(min=1)] = 24576,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of each answer.")] = 300,
    as_json: JsonOption = False,
) -> None:
    """Tokens/s through the real LoadGen with an engine that costs nothing."""
    _verbs().bench_harness(samples, tokens, as_json=as_json)


@bench_app.command("scoring")
def bench_scoring(
    samples: Annotated[int, typer.Option(min=1)] = 24576,
    words: Annotated[int, typer.Option(min=1, help="Words of each text.")] = 200,
    as_json: JsonOption = False,
) -> None:
    """Seconds to compute ROUGE of a whole accuracy run."""
    _verbs().bench_scoring(samples, words, as_json=as_json)


@bench_app.command("data")
def bench_data(
    rows: Annotated[int, typer.Option(min=100)] = 20000, as_json: JsonOption = False
) -> None:
    """Rows/s of `data build` on made-up rows, against tokenising row by row."""
    _verbs().bench_data(rows, as_json=as_json)


# After the verbs above, so that help begins with `run`.
app.add_typer(data_app, name="data")
app.add_typer(bench_app, name="bench")
app.add_typer(flags_model.app, name="model")
flags_publish.add_verbs(app)
app.command("doctor")(flags_doctor.doctor)
app.command("forecast")(flags_forecast.forecast)
app.command("launch")(flags_launch.launch)
app.command("power")(flags_power.power)
app.command("watch")(flags_power.watch)
app.command("tune")(flags_tune.tune)
app.command("bundle")(flags_bundle.bundle)
app.command("serve")(flags_serve.serve)
app.command("preflight")(flags_endpoint.preflight)
app.command("quantize")(flags_quantize.quantize)
app.command("compare")(flags_compare.compare)
bench_app.command("check")(flags_check.bench_check)
bench_app.command("cluster")(flags_cluster.bench_cluster)
bench_app.command("engine")(flags_engine.bench_engine)
bench_app.command("products")(flags_engine.bench_products)
bench_app.command("endpoint")(flags_endpoint.bench_endpoint)


def main() -> None:
    """Console entry: run the verb; errors become one clear message and an exit code."""
    listen()
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    code: int | str | None
    try:
        code = app(arguments, prog_name="paceline")
    except SystemExit as stop:
        code = stop.code if stop.code != _CTRL_C else _fail(STOPPED, 3, debug=False)
    except KeyboardInterrupt:
        code = _fail(STOPPED, 3, debug)
    except PacelineError as error:
        code = _fail(str(error), error.exit_code, debug)
    except BrokenPipeError:
        sys.stderr.close()
        code = 1
    except Exception as error:
        bug = "this is a bug in paceline; --debug shows the traceback"
        code = _fail(f"{type(error).__name__}: {error}\n  Next: {bug}", 3, debug)
    sys.exit(code)


def _fail(message: str, code: int, debug: bool) -> int:
    if debug:
        raise  # noqa: PLE0704 - called from an except clause only
    typer.echo(f"error: {message}", err=True)
    return code
