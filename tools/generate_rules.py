"""Write docs/rules.md from the rule books. `make docs` runs it; a test compares."""

from __future__ import annotations

from pathlib import Path

from paceline.mlperf.rules import BENCHMARKS, ROUNDS, Source
from paceline.mlperf.tree_rules import LAYOUTS, SYSTEM_FIELDS
from paceline.submission.check import RULES

DOCS = Path(__file__).parent.parent / "docs"
HEAD = """# The rules

Made from the rule books by `make docs`; do not edit. The code reads the same books:
`paceline.mlperf.rules` (rounds, benchmarks), `paceline.mlperf.tree_rules` (where files lie,
what they hold) and `paceline.submission.check.catalogue` (what `paceline check` checks).

The source of a rule is a repository, the commit at which it was read, a file and a name in it.
"""
ADDED = """## What paceline adds

The official checker takes some results that are none: a run that LoadGen calls INVALID or that
logged errors, a run configured to last ten minutes that lasted a second, a TEST06 run in the
place of the accuracy run, a hash of anything, an empty tree, a misspelt submitter. On others it
stops with a traceback and no verdict. `paceline check` has a rule for each, and for the gaps
that its predecessor did not have: the last column says what the official checker does.
`--official DIR` runs it on the same tree and prints where the two disagree.

A finding is PASS, NOTE, WARN or FAIL; only FAIL refuses a tree. Where published results that
MLCommons accepted differ from what the rules suggest (two LoadGen builds for one result, a
truncated TEST06 log, 1,025 tokens in an answer), the finding is WARN. In the open division
targets, tests and required scenarios are WARN or not asked for; what makes a run real (VALID,
no errors, its duration, all samples, the round's seeds) is FAIL there too. An open Server or
Interactive result is held to the Server limits, as the official checker holds it.

A tree in the v6 layout with logs of v5.1 is read, and is a WARN: the v5.1 checker of today
stops with a traceback at it, the one of the round itself reads it. The v5 layout with logs of
v6.0 or v6.1 is FAIL: their checker finds no measurements in it.
"""


def _link(source: Source) -> str:
    if source.repository == "paceline":
        return "paceline"
    return f"`{source.path}`: {source.symbol} ({source.repository}@{source.commit[:8]})"


def _table(head: tuple[str, ...], rows: list[tuple[object, ...]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += [
        "| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows
    ]
    return "\n".join(lines) + "\n"


def _rounds() -> str:
    rows = [
        (
            rules.name,
            rules.wheel,
            rules.seeds.qsl,
            rules.seeds.sample_index,
            rules.seeds.schedule,
            ", ".join(rules.benchmarks),
            rules.layout,
            _link(rules.seeds.source),
        )
        for rules in ROUNDS.values()
    ]
    head = ("round", "wheel", "qsl seed", "sample index seed", "schedule seed", "benchmarks")
    return "## Rounds\n\n" + _table((*head, "layout", "source"), rows)


def _benchmarks() -> str:
    rows: list[tuple[object, ...]] = []
    for rules in BENCHMARKS.values():
        if not rules.is_mlperf:
            continue
        rows += [
            (rules.name, "samples", rules.num_samples, _link(rules.source)),
            (rules.name, "shortest run", f"{rules.min_duration_ms // 1000} s", _link(rules.source)),
        ]
        for metric, bounds in rules.accuracy.items():
            high = "" if bounds.high is None else f", at most {bounds.high:.7g}"
            rows.append(
                (rules.name, metric, f"at least {bounds.low:.9g}{high}", _link(bounds.source))
            )
        for scenario, limit in rules.latency.items():
            text = f"first token below {limit.ttft_ms} ms, each further below {limit.tpot_ms} ms"
            rows.append((rules.name, f"{scenario}, 99th percentile", text, _link(limit.source)))
    return "## Benchmarks\n\n" + _table(("benchmark", "what", "limit", "source"), rows)


def _layouts() -> str:
    rows = [
        (name, part, f"`{getattr(layout, part)}`")
        for name, layout in LAYOUTS.items()
        for part in (
            "source_dir",
            "system_file",
            "performance_dir",
            "accuracy_dir",
            "measurements_dir",
            "measurements_file",
            "compliance_dir",
        )
    ]
    fields = ", ".join(f"`{name}`" for name in SYSTEM_FIELDS.required)
    return (
        "## Layouts\n\nBelow `<division>/<submitter>/`.\n\n"
        + _table(("layout", "what", "where"), rows)
        + f"\nThe fields of a system description: {fields}.\n"
    )


def _checks() -> str:
    words = {"checks": "checks it", "dropped": "its predecessor did", "never": "does not"}
    rows = [
        (f"`{rule.name}`", rule.text, rule.mend, _link(rule.source), words[rule.official])
        for rule in RULES.values()
    ]
    head = ("rule", "what must hold", "what to do", "source", "official checker")
    return "## What `paceline check` checks\n\n" + _table(head, rows)


def rules_text() -> str:
    """docs/rules.md as it should be."""
    return "\n".join((HEAD, _rounds(), _benchmarks(), _layouts(), ADDED, _checks()))


if __name__ == "__main__":
    (DOCS / "rules.md").write_text(rules_text())
