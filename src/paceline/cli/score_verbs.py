"""What `paceline score` does: the four accuracy figures of a log that any harness wrote."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from paceline.cli.screen import Bar, table
from paceline.mlperf import rules
from paceline.mlperf.dataset import load_dataset
from paceline.mlperf.logs import read_accuracy
from paceline.mlperf.scoring import score_accuracy
from paceline.mlperf.tokenizer import load_tokenizer

__all__ = ["score"]

_LOG = "mlperf_log_accuracy.json"


def score(
    log: Path,
    *,
    data: Path,
    tokenizer: Path,
    benchmark: str,
    trust_pickle: bool,
    as_json: bool,
) -> None:
    """Print the figures with their targets, and all that is wrong with the log."""
    rule = rules.benchmark(benchmark)
    answers = read_accuracy(log / _LOG if log.is_dir() else log)
    loaded = load_dataset(data, trust_pickle=trust_pickle)
    rows = rules.sample_rows(loaded.num_samples, rule.num_samples)
    with Bar("scoring") as bar:
        found = score_accuracy(
            answers,
            [loaded.references[row] for row in rows],
            decode=load_tokenizer(tokenizer).decode_batch,
            num_samples=rule.num_samples,
            vocab_size=rule.vocabulary_size,
            progress=lambda done, total: bar.update(done, total, f"{done:,}/{total:,} samples"),
        )
    figures = {metric: float(getattr(found, metric)) for metric in rules.ACCURACY_METRICS}
    held = {metric: bound.hold(figures[metric]) for metric, bound in rule.accuracy.items()}
    passed = found.passed and all(held.values())
    if as_json:
        findings = [
            {"rule": f.rule, "passed": f.passed, "detail": f.detail} for f in found.findings
        ]
        facts = {"benchmark": rule.name, "passed": passed, **figures, "findings": findings}
        typer.echo(json.dumps(facts, indent=2))
    else:
        cells: list[tuple[str, ...]] = [("", "figure", "value", "target")]
        for metric, bound in rule.accuracy.items():
            high = f" and <= {bound.high:.4f}" if bound.high is not None else ""
            word = "PASS" if held[metric] else "FAIL"
            cells.append((word, metric, f"{figures[metric]:.4f}", f">= {bound.low:.4f}{high}"))
        typer.echo(table(cells))
        for finding in found.findings:
            if not finding.passed:
                typer.echo(f"FAIL {finding.rule}: {finding.detail}")
    raise typer.Exit(0 if passed else 1)
