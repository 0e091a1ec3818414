"""`paceline report`: run directories in, one HTML page out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paceline.errors import InputError
from paceline.report.blocks import Section, number
from paceline.report.compare import comparison, labels
from paceline.report.origin import (
    config_section,
    history_section,
    system_section,
    verdict_section,
)
from paceline.report.page import render_page
from paceline.report.power import power_section
from paceline.report.quality import length_section, rouge_section, worst_section
from paceline.report.rundata import RunData, read_run
from paceline.report.samples import Samples, read_samples
from paceline.report.speed import (
    latency_section,
    live_section,
    standing_section,
    timeline_section,
)
from paceline.rundir import write_atomically

__all__ = ["build_report", "report_page"]


def build_report(run_dirs: Sequence[Path], out: Path | None, *, compare: bool) -> Path:
    """Write the page of these runs; returns where. Raises InputError, RunDirError.

    `out` None: report.html in the run's directory; of several runs, in the present folder.
    """
    if compare and len(run_dirs) < 2:
        raise InputError(
            "--compare puts runs side by side, and one is given.",
            hint="paceline report --compare RUN_A RUN_B",
        )
    if out is None:
        out = run_dirs[0] / "report.html" if len(run_dirs) == 1 else Path("report.html")
    if out.is_dir():
        out = out / "report.html"
    page = report_page(run_dirs, compare=compare)
    # A log may hold half a character; JSON can name one, UTF-8 cannot.
    write_atomically(out, page.encode("utf-8", "backslashreplace"))
    return out


def report_page(run_dirs: Sequence[Path], *, compare: bool) -> str:
    """The page's text."""
    runs = [read_run(path) for path in run_dirs]
    samples = [read_samples(run) for run in runs]
    names = labels(runs)
    lead = [_card(run, name) for run, name in zip(runs, names, strict=True)]
    if compare:
        return render_page(
            f"{len(runs)} runs compared", lead, [("Comparison", comparison(runs, samples))]
        )
    groups = [
        (name, _sections(run, found)) for run, name, found in zip(runs, names, samples, strict=True)
    ]
    config = runs[0].config
    title = f"{config['benchmark']} {config['scenario']}, {config['engine']} engine"
    return render_page(title if len(runs) == 1 else f"{len(runs)} runs", lead, groups)


def _card(run: RunData, name: str) -> dict[str, Any]:
    verdict = run.verdict or {}
    value = verdict.get("tokens_per_second")
    config = run.config
    words = [
        f"{config['benchmark']} {config['scenario']}, round {config['round']}",
        f"{config['engine']} engine, {config['num_samples']:,} samples",
        *([f"performance {verdict['result']}"] if verdict.get("result") else []),
        *([f"accuracy {verdict['accuracy']}"] if verdict.get("accuracy") else []),
        *(["SIMULATED"] if run.is_simulated else []),
    ]
    return {
        "name": name,
        "figure": "no performance figure" if value is None else f"{number(value)} tokens/s",
        "verdict": str(verdict.get("verdict") or run.manifest["status"]),
        "detail": "; ".join(words),
    }


def _sections(run: RunData, samples: Samples) -> list[Section]:
    return [
        verdict_section(run),
        standing_section(run),
        timeline_section(run),
        latency_section(run),
        length_section(run, samples),
        live_section(run),
        power_section(run),
        rouge_section(run, samples),
        worst_section(run, samples),
        config_section(run),
        system_section(run),
        history_section(run),
    ]
