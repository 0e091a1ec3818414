"""`paceline site`: a repository of submissions in, static pages out.

    OUT/
      index.html              every result, to sort and filter
      top.html                rankings within hardware categories, with scores
      compare.html            any two systems side by side
      submissions/*.html      one page a submission: its results, findings and system
      summary_results.json    the same for programs

Pages need no server and ask nobody for anything. The folder is made beside its final place and
then put there, so a site that is being read is whole at every moment.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from paceline.errors import EnvironmentProblem, InputError
from paceline.report.blocks import number
from paceline.report.page import asset, environment, script_data, script_hash
from paceline.report.ranking import Place, places, ranked_groups
from paceline.report.results import Results, ShownResult, read_results
from paceline.report.summary_json import summary_json

__all__ = ["build_site", "site_files"]

_MARKER = "summary_results.json"
_TOP = 10
# Rows that are laid out at first; the rest of a long table comes when it is asked for. Without
# scripts all of them are there.
_ROWS = 200
_EARLY = 'document.documentElement.classList.add("js");'
_FIGURES: tuple[tuple[str, Callable[[ShownResult], str]], ...] = (
    ("tokens/s", lambda r: number(r.tokens_per_second)),
    ("tokens/s of a card", lambda r: number(r.per_accelerator)),
    ("samples/s", lambda r: number(r.samples_per_second, 2)),
    ("duration, s", lambda r: number(r.duration_s)),
    ("time to first token, 99 %, ms", lambda r: number(r.latencies_ms.get("ttft_p99_ms"))),
    ("time per output token, 99 %, ms", lambda r: number(r.latencies_ms.get("tpot_p99_ms"))),
    ("accuracy", lambda r: ", ".join(f"{key} {value}" for key, value in r.accuracy.items())),
    ("weights", lambda r: r.weight_data_types),
    ("power measured", lambda r: "yes" if r.has_power else "no"),
    ("division", lambda r: r.division),
    ("round", lambda r: r.round),
    ("model's name in the tree", lambda r: r.model),
    ("logs", lambda r: r.location),
)


def build_site(repository: Path, out: Path) -> Results:
    """Write the site of `repository` to `out`. Raises InputError, EnvironmentProblem.

    A folder that is there already is replaced when it is a site, and refused when it is not.
    """
    if repository.resolve().is_relative_to(out.resolve()):
        raise InputError(f"--out {out} holds the repository itself.", hint="another --out")
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not _is_site(out):
        raise InputError(f"{out} exists and is no site.", hint="another --out, or remove it")
    results = read_results(repository)
    partial, old = out.with_name(f"{out.name}.partial"), out.with_name(f"{out.name}.old")
    try:
        for leftover in (partial, old):
            shutil.rmtree(leftover, ignore_errors=True)
        (partial / "submissions").mkdir(parents=True)
        for name, text in site_files(results).items():
            (partial / name).write_text(text, encoding="utf-8", errors="backslashreplace")
        if out.exists():
            out.rename(old)
        partial.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise EnvironmentProblem(f"The site cannot be written to {out}: {error}.") from error
    return results


def _is_site(path: Path) -> bool:
    return path.is_dir() and (path / _MARKER).is_file() and (path / "index.html").is_file()


def site_files(results: Results) -> dict[str, str]:
    """Every file of the site by its path."""
    groups = ranked_groups(results.results)
    placed = places(groups)
    submissions: dict[str, list[ShownResult]] = {}
    for result in results.results:
        submissions.setdefault(result.page, []).append(result)
    shared = _shared()
    index = {
        "results": results.results,
        "placed": placed,
        "skipped": results.skipped,
        "filters": _filters(results.results),
        "rows": _ROWS,
    }
    top = {"groups": groups, "shown": _TOP}
    compare = {"data": script_data(_systems(submissions))}
    files = {
        "index.html": _page("site_index.html", "All results", "", index, shared),
        "top.html": _page("site_top.html", "Top results", "", top, shared),
        "compare.html": _page("site_compare.html", "Compare two systems", "", compare, shared),
        _MARKER: summary_json(results, placed),
    }
    for page, members in submissions.items():
        first = members[0]
        facts = {
            "members": members,
            "placed": placed,
            "rows": [(name, [cell(result) for result in members]) for name, cell in _FIGURES],
            "facts": _facts(first.system),
        }
        title = f"{first.platform}, {first.submitter}"
        files[page] = _page("site_submission.html", title, "../", facts, shared)
    return files


def _shared() -> dict[str, str]:
    script = asset("site.js")
    return {
        "style": asset("report.css") + asset("site.css"),
        "early": _EARLY,
        "script": script,
        "hashes": f"{script_hash(_EARLY)} {script_hash(script)}",
    }


def _page(
    template: str, title: str, up: str, facts: Mapping[str, Any], shared: Mapping[str, str]
) -> str:
    return (
        environment()
        .get_template(template)
        .render(title=title, up=up, number=number, card_places=_card_places, **facts, **shared)
    )


def _card_places(place: Place | None) -> str:
    """The place by card in a cell's words."""
    if place is None:
        return "not placed"
    if place.by_accelerator is None:
        return "no accelerator"
    words = f"{place.by_accelerator} of {place.of}"
    if place.of_published is not None:
        words += f"; {place.of_published[0]} among {place.of_published[1]} published"
    return words


def _filters(results: Sequence[ShownResult]) -> list[tuple[str, list[str]]]:
    """The drop-down lists above the table: a column's name and its values."""
    columns = {
        "round": [result.round for result in results],
        "division": [result.division for result in results],
        "hardware": [result.category for result in results],
        "benchmark": [result.benchmark for result in results],
        "scenario": [result.scenario for result in results],
        "check": [result.word for result in results],
    }
    return [(name, sorted(set(values))) for name, values in columns.items()]


def _facts(system: Mapping[str, object]) -> list[tuple[str, str]]:
    return [
        (key.replace("_", " "), value if isinstance(value, str) else json.dumps(value))
        for key, value in sorted(system.items())
        if value not in ("", None)
    ]


def _systems(submissions: Mapping[str, Sequence[ShownResult]]) -> list[dict[str, Any]]:
    """What the page that compares two systems knows of each."""
    systems = []
    for page, members in submissions.items():
        first = members[0]
        systems.append(
            {
                "page": page,
                "name": f"{first.platform} ({first.submitter}, {first.division}, {first.round})",
                "cards": first.num_accelerators,
                "results": {
                    f"{result.benchmark} {result.scenario}": {
                        "tokens": result.tokens_per_second,
                        "check": result.word,
                    }
                    for result in members
                },
                "facts": dict(_facts(first.system)),
            }
        )
    return sorted(systems, key=lambda system: str(system["name"]).lower())
