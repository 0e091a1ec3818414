"""The checker on real logs, its rule book against the official one, and docs/rules.md."""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path

import pytest
from support import Paceline

from paceline.mlperf import tree_rules
from paceline.submission.check import RULES, examine_tree
from paceline.submission.check.official import compare_with_official
from paceline.submission.check.sample_tree import SampleTree, write_sample_tree

REPOSITORY = Path(__file__).parent.parent.parent
# What the official checker prints: a stand-in, so that the reading of it is tested everywhere.
STAND_IN = """
import sys
tree = sys.argv[sys.argv.index("--input") + 1]
place = tree + "/closed/ExampleOrg/results/example-0000/llama2-70b-99.9/{}"
log = "/performance/run_1/mlperf_log_detail.txt"
if "stop" in open("mood.txt").read():
    raise KeyError("is_network")
print("[2026 main.py:1 INFO] Results", place.format("Offline") + log, "27803.9", file=sys.stderr)
print("[2026 main.py:1 ERROR] " + place.format("Server") + log, "seeds are wrong", file=sys.stderr)
print("[2026 main.py:1 ERROR] NoResults", place.format("Server") + log, file=sys.stderr)
print("[2026 main.py:1 ERROR] SUMMARY: submission has errors", file=sys.stderr)
sys.exit(1)
"""


def checkout(folder: Path, mood: str) -> Path:
    package = folder / "tools" / "submission" / "submission_checker"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "main.py").write_text(STAND_IN)
    (package.parent / "mood.txt").write_text(mood)
    return folder


def test_disagreements_with_the_official_checker_are_listed(tmp_path: Path) -> None:
    tree = write_sample_tree(tmp_path / "tree", SampleTree())
    (compared,) = compare_with_official(
        examine_tree(tree), checkout(tmp_path / "mlc", "well"), round_name=None, submitter=None
    )
    assert compared.num_agreed == 1
    (found,) = compared.disagreements
    assert (found.official, found.ours) == ("refused", "PASS")
    assert "seeds are wrong" in found.reasons[0]


def test_a_stop_of_the_official_checker_is_no_verdict(tmp_path: Path, paceline: Paceline) -> None:
    write_sample_tree(tmp_path / "tree", SampleTree())
    checkout(tmp_path / "mlc", "stop")
    outcome = paceline("check", "tree", "--official", "mlc")
    assert outcome.code == 0
    assert "stopped without a verdict: KeyError: 'is_network'" in outcome.out
    assert paceline("check", "tree", "--official", "tree").code == 2


def test_real_results_pass_and_the_mislabelled_one_is_refused(real_logs: Path) -> None:
    checked = examine_tree(real_logs / "amd-v5.1", round_name="v5.1")
    failed = [finding for finding in checked.findings if not finding.passed]
    assert [finding.rule for finding in failed] == ["accuracy-mode"]
    assert "8xMI325X_2xEPYC_9575F_2/llama2-70b-99.9/Offline/accuracy" in failed[0].path
    refused = [o.result for o in checked.outcomes if checked.failures_of(o.result)]
    assert [(result.system, result.kind) for result in refused] == [
        ("8xMI325X_2xEPYC_9575F_2", "Offline")
    ]


def test_real_results_pass_in_the_layout_of_their_round(real_logs: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(real_logs / "amd-v5.1", tree, copy_function=shutil.copyfile)
    for path in (tree, *tree.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    base = tree / "closed" / "AMD"
    (base / "src").rename(base / "code")
    for place in sorted(base.glob("results/*/*/*")):
        name = place.relative_to(base / "results")
        measured, tested = base / "measurements" / name, base / "compliance" / name
        measured.mkdir(parents=True)
        tested.mkdir(parents=True)
        for file in ("README.md", "user.conf", "mlperf.conf"):
            (place / file).rename(measured / file)
        (place / "measurements.json").rename(measured / f"{name.parts[0]}.json")
        (place / "TEST06").rename(tested / "TEST06")
    found = [finding for finding in examine_tree(tree).findings if finding.verdict != "PASS"]
    assert [finding.rule for finding in found] == ["accuracy-mode"]


def test_seeds_of_real_logs_are_of_no_later_round(real_logs: Path) -> None:
    checked = examine_tree(real_logs / "amd-v5.1", round_name="v6.1")
    seeds = [finding for finding in checked.findings if finding.rule == "round-seeds"]
    assert len(seeds) == 5
    assert all("those of round v5.1, not those of v6.1" in finding.detail for finding in seeds)


def test_the_fields_of_a_description_are_35_of_which_26_need_an_answer() -> None:
    assert len(set(tree_rules.SYSTEM_FIELDS.required)) == 35
    assert len(set(tree_rules.SYSTEM_FIELDS.meaningful)) == 26
    assert len(tree_rules.SYSTEM_FIELDS.network) == 13


def test_every_rule_names_its_source_and_is_used() -> None:
    package = REPOSITORY / "src" / "paceline" / "submission" / "check"
    code = "".join(
        path.read_text() for path in package.glob("*.py") if not path.name.startswith("catalogue")
    )
    composed = re.compile(r"^(performance|accuracy)-(log-sound|no-errors)$|^latency-(limit-)?t")
    for name, rule in RULES.items():
        assert rule.text.endswith(".")
        assert rule.source.repository
        assert rule.source.commit
        assert f'"{name}"' in code or composed.match(name), name


def test_the_rules_page_is_the_rule_book() -> None:
    path = REPOSITORY / "tools" / "generate_rules.py"
    spec = importlib.util.spec_from_file_location("generate_rules", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (REPOSITORY / "docs" / "rules.md").read_text() == module.rules_text(), "run `make docs`"


@pytest.mark.parametrize("name", sorted(tree_rules.LAYOUTS))
def test_a_name_with_braces_is_a_name(name: str) -> None:
    layout = tree_rules.LAYOUTS[name]
    place = layout.place(layout.accuracy_dir, system="{scenario}", benchmark="b", scenario="s")
    assert place == "results/{scenario}/b/s/accuracy"
