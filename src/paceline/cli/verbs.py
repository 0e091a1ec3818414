"""What each verb of the command line does: parse little, call one function, print its result."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from paceline import config, harness
from paceline.cli.screen import Bar, RunScreen, table, verdict_text
from paceline.errors import RunDirError
from paceline.harness import loadgen
from paceline.mlperf import dataset, rules
from paceline.rundir import RunDir

__all__ = [
    "bench_data",
    "bench_harness",
    "bench_scoring",
    "data_build",
    "data_describe",
    "data_synthetic",
    "data_verify",
    "explain",
    "print_facts",
    "resume",
    "run",
    "show",
]


def run(
    recipe: Path | None,
    out: Path | None,
    *,
    flags: Mapping[str, Any],
    overrides: Sequence[str],
    as_json: bool,
) -> None:
    """`paceline run`."""
    settings = config.read_settings(recipe, overrides, flags=flags)
    resolved = config.resolve(settings, loadgen.wheel().round)
    if out is None:
        now = datetime.datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
        out = Path("runs") / f"{now}-{resolved.benchmark}-{resolved.engine}"
    if not as_json and resolved.shortfalls:
        typer.echo(f"NOT A SUBMISSION: {'; '.join(resolved.shortfalls)}.", err=True)
    with Bar("starting") as bar:
        verdict = harness.run(
            resolved, out, settings=settings, recipe=recipe, observer=RunScreen(bar).observe
        )
    _print_verdict(verdict, out, as_json=as_json)


def resume(
    run_dir: Path,
    recipe: Path | None,
    out: Path | None,
    *,
    flags: Mapping[str, Any],
    overrides: Sequence[str] | None,
    as_json: bool,
) -> None:
    """`paceline run --resume DIR`: the run keeps the config it began with."""
    given = [name for name, value in flags.items() if value is not None]
    if recipe is not None or out is not None or overrides or given:
        raise RunDirError(
            "--resume takes no recipe, --out, --set or other settings: the run keeps its own.",
            hint=f"paceline run --resume {run_dir}",
        )
    with Bar("starting") as bar:
        verdict = harness.resume(run_dir, observer=RunScreen(bar).observe)
    _print_verdict(verdict, run_dir, as_json=as_json)


def explain(
    recipe: Path | None, *, flags: Mapping[str, Any], overrides: Sequence[str], as_json: bool
) -> None:
    """`paceline explain`."""
    settings = config.read_settings(recipe, overrides, flags=flags)
    resolved = config.resolve(settings, loadgen.wheel().round)
    effective = config.effective_values(resolved)
    keys = config.known_keys()
    shown = {resolved.engine, resolved.model_engine}
    rows = []
    for name, setting in settings.items():
        of_an_engine = name.startswith("engine.") and name != "engine.name"
        if of_an_engine and name.split(".")[1] not in shown:
            continue
        value = effective.get(name, setting.value)
        rows.append(
            {
                "key": name,
                "value": value,
                "origin": f"auto, {setting.origin}"
                if setting.value == config.AUTO and value != config.AUTO
                else setting.origin,
                "meaning": keys[name].doc,
            }
        )
    if as_json:
        _print_json({"settings": rows, "shortfalls": list(resolved.shortfalls)})
        return
    cells: list[tuple[str, ...]] = [("key", "value", "from", "meaning")]
    cells += [
        (r["key"], _shown(r["value"]), r["origin"], _first_sentence(r["meaning"])) for r in rows
    ]
    typer.echo(table(cells))
    if resolved.shortfalls:
        typer.echo(f"NOT A SUBMISSION: {'; '.join(resolved.shortfalls)}.")


def show(run_dir: Path, *, as_json: bool) -> None:
    """`paceline show DIR`."""
    opened = RunDir.open(run_dir)
    manifest = opened.read_manifest()
    verdict = opened.read_verdict()
    if verdict is None:
        raise RunDirError(
            f"{run_dir} has no verdict: its status is {manifest['status']}.",
            hint=f"paceline run --resume {run_dir}",
        )
    changed = opened.changed_files(manifest)
    verdict |= {"status": manifest["status"], "changed_files": changed}
    if not as_json and manifest["status"] != "COMPLETE":
        error = manifest.get("error", {}).get("message", "no reason is on record")
        typer.echo(f"{manifest['status']}: {error}", err=True)
    if not as_json and changed:
        typer.echo(f"changed since the run: {', '.join(changed)}", err=True)
    _print_verdict(verdict, run_dir, as_json=as_json)


def data_build(
    parquet: Path, tokenizer: Path, out: Path, *, samples: int, calibration: int, as_json: bool
) -> None:
    """`paceline data build`."""
    from paceline.mlperf import orca

    spec = orca.OrcaSpec(num_samples=samples, num_calibration=calibration)
    with Bar("data build") as bar:
        report = orca.build_openorca(
            parquet,
            tokenizer,
            out,
            spec=spec,
            progress=lambda done, total: bar.update(done, total, f"{done:,}/{total:,} rows"),
        )
    facts = report.as_json()
    if as_json:
        _print_json(facts)
    else:
        typer.echo(table([(name, _shown(value)) for name, value in facts.items()]))


def data_verify(path: Path, benchmark: str | None, *, trust_pickle: bool, as_json: bool) -> None:
    """`paceline data verify`."""
    rule = rules.benchmark(benchmark or "llama2-70b-99.9")
    findings = dataset.verify_dataset(
        path, expected_samples=rule.num_samples, trust_pickle=trust_pickle, benchmark=rule
    )
    passed = all(finding.passed for finding in findings)
    if as_json:
        rows = [{"rule": f.rule, "passed": f.passed, "detail": f.detail} for f in findings]
        _print_json({"passed": passed, "findings": rows})
    else:
        typer.echo(table([("PASS" if f.passed else "FAIL", f.rule, f.detail) for f in findings]))
    raise typer.Exit(0 if passed else 1)


def data_describe(path: Path | None, *, trust_pickle: bool, as_json: bool) -> None:
    """`paceline data describe`."""
    loaded = dataset.load_dataset(path or config.demo_dataset(), trust_pickle=trust_pickle)
    facts = dataset.describe_dataset(loaded)
    if as_json:
        _print_json(facts)
        return
    for name, value in facts.items():
        if isinstance(value, Mapping):
            cells = [f"{k} {_shown(v)}" for k, v in value.items()]
            typer.echo(f"{name}: {'  '.join(cells)}")
        else:
            typer.echo(f"{name}: {_shown(value)}")


def data_synthetic(out: Path, samples: int) -> None:
    """`paceline data synthetic`."""
    from paceline.mlperf import synthetic

    made = synthetic.build_synthetic(out, samples)
    typer.echo(f"{made}: {samples} samples of no meaning; answers in tok_output.")
    typer.echo(
        f"paceline run --benchmark llama2-70b-99.9 --engine fake --data {made} "
        f"--set data.tokenizer={out} --set engine.fake.answers={made}"
    )


def bench_harness(samples: int, tokens: int, *, as_json: bool) -> None:
    """`paceline bench harness`."""
    from paceline.harness import bench

    print_facts(bench.bench_harness(samples, tokens), as_json=as_json)


def bench_scoring(samples: int, words: int, *, as_json: bool) -> None:
    """`paceline bench scoring`."""
    from paceline.mlperf import scoring

    print_facts(scoring.bench_scoring(samples, words), as_json=as_json)


def bench_data(rows: int, *, as_json: bool) -> None:
    """`paceline bench data`."""
    from paceline.mlperf import orca

    print_facts(orca.bench_data_build(rows), as_json=as_json)


def _print_verdict(verdict: Mapping[str, Any], run_dir: Path, *, as_json: bool) -> None:
    if as_json:
        _print_json({**verdict, "run_dir": str(run_dir)})
    else:
        typer.echo(verdict_text(verdict, str(run_dir)))
    raise typer.Exit(0 if verdict["verdict"] == "PASS" else 1)


def print_facts(facts: Mapping[str, Any], *, as_json: bool) -> None:
    """Named figures, a line each, or as JSON."""
    if as_json:
        _print_json(facts)
    else:
        typer.echo(table([(name, _shown(value)) for name, value in facts.items()]))


def _print_json(value: Mapping[str, Any]) -> None:
    typer.echo(json.dumps(value, indent=2))


def _first_sentence(text: str) -> str:
    return re.split(r"[.;] ", text)[0].rstrip(".")


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:,.3f}".rstrip("0").rstrip(".")
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else re.sub(r"\s+", " ", str(value))
