"""The workflow files are sound, pinned, and do what they say when their steps are run here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hub import IDENTITY, git
from support import Paceline, program_in

from paceline.cli.annotations import annotation
from paceline.errors import InputError
from paceline.report.workflows import init_workflows, workflow_files
from paceline.submission.check import RULES, TreeFinding
from paceline.submission.check.sample_tree import SampleTree, write_sample_tree

CHECK, SITE = ".github/workflows/check.yml", ".github/workflows/site.yml"


def steps(text: str, job: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load(text)["jobs"][job]["steps"])


def run_step(
    name: str, step: str, repository: Path, tmp_path: Path
) -> subprocess.CompletedProcess[str]:
    """Run a step's script as a runner does, with the paceline of this test on its PATH."""
    text = workflow_files()[name]
    job = "check" if name == CHECK else "build"
    (script,) = [s["run"] for s in steps(text, job) if s.get("name") == step]
    program = program_in(tmp_path / "bin")
    environment = os.environ | {
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "RUNNER_TEMP": str(tmp_path),
    }
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=120,
    )


def check_step(repository: Path, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    step = "Check the submitters that the pull request changes"
    return run_step(CHECK, step, repository, tmp_path)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A results repository with one submitter that fails its check, and has been there before."""
    for name, value in IDENTITY.items():
        monkeypatch.setenv(name, value)
    root = tmp_path / "repo"
    write_sample_tree(root, SampleTree(submitter="Team_Old", division="open"))
    for path in root.rglob("accuracy.txt"):
        path.write_text("nothing\n")
    init_workflows(root)
    git("init", "--quiet", "--initial-branch=main", at=root)
    commit(root)
    return root


def commit(root: Path) -> None:
    git("add", "--all", at=root)
    git("commit", "--quiet", "-m", "a commit", at=root)


def test_every_action_is_pinned_and_a_pull_request_may_only_read() -> None:
    for text in workflow_files().values():
        uses = re.findall(r"uses: (\S+)( # v[\d.]+)?", text)
        assert uses
        assert all(re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", name) for name, _ in uses)
        assert all(version for _, version in uses)
    check = yaml.safe_load(workflow_files()[CHECK])
    assert check["permissions"] == {"contents": "read"}
    assert "${{" not in "".join(s.get("run", "") for s in check["jobs"]["check"]["steps"])


@pytest.mark.parametrize(
    ("program", "arguments"),
    [("actionlint", ["-no-color"]), ("zizmor", ["--offline", "--pedantic", "--no-progress"])],
)
def test_a_linter_finds_nothing(program: str, arguments: list[str], repository: Path) -> None:
    found = shutil.which(program) or shutil.which(program, path=str(Path(sys.executable).parent))
    if found is None:
        pytest.skip(f"{program} is not installed here")
    files = [CHECK, SITE]
    linted = subprocess.run(
        [found, *arguments, *files], cwd=repository, capture_output=True, text=True, check=False
    )
    assert linted.returncode == 0, linted.stdout + linted.stderr


def test_the_check_looks_at_the_changed_submitters_only(repository: Path, tmp_path: Path) -> None:
    write_sample_tree(repository, SampleTree(submitter="Team_New", division="open"))
    commit(repository)
    done = check_step(repository, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "results pass: PASS" in done.stdout
    assert "Team_Old" not in done.stdout


def test_a_broken_submission_fails_with_annotations_on_its_lines(
    repository: Path, tmp_path: Path
) -> None:
    write_sample_tree(repository, SampleTree(submitter="Team_New", division="open"))
    system = repository / "open/Team_New/systems/example-0000.json"
    text = system.read_text().replace('"cooling": "made up"', '"cooling": ""')
    system.write_text(text)
    wanted = next(n for n, line in enumerate(text.splitlines(), 1) if '"cooling"' in line)
    commit(repository)
    done = check_step(repository, tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    place = f"file=open/Team_New/systems/example-0000.json,line={wanted},"
    assert [line for line in done.stdout.splitlines() if line.startswith(f"::error {place}")]


def test_a_pull_request_that_changes_or_removes_no_result_passes(
    repository: Path, tmp_path: Path
) -> None:
    (repository / "README.md").write_text("words\n")
    commit(repository)
    assert "changes no submission" in check_step(repository, tmp_path).stdout
    shutil.rmtree(repository / "open/Team_Old")
    commit(repository)
    done = check_step(repository, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Nothing is left of one submitter" in done.stdout


def test_a_submitters_name_is_no_program(repository: Path, tmp_path: Path) -> None:
    name = "$(touch pwned); touch pwned #"
    folder = repository / "open" / name / "systems"
    folder.mkdir(parents=True)
    (folder / "x.json").write_text("{}\n")
    commit(repository)
    done = check_step(repository, tmp_path)
    assert done.returncode == 1
    assert not list(tmp_path.rglob("pwned"))


def test_the_site_is_built_by_its_workflow(repository: Path, tmp_path: Path) -> None:
    done = run_step(SITE, "Build the site", repository, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "site/index.html").is_file()


def test_init_writes_once_and_keeps_what_somebody_changed(
    tmp_path: Path, paceline: Paceline
) -> None:
    shown = paceline("site", "--init", tmp_path, "--branch", "results")
    assert shown.code == 0, shown
    assert '["results"]' in (tmp_path / SITE).read_text()
    again = paceline("site", "--init", tmp_path, "--branch", "results")
    assert "there already" in again.out
    (tmp_path / CHECK).write_text("name: mine\n")
    refused = paceline("site", "--init", tmp_path)
    assert refused.code == 2
    assert "differs" in refused.err
    assert (tmp_path / CHECK).read_text() == "name: mine\n"


@pytest.mark.parametrize("package", ['x"\nevil: 1', "a;b", "$(id)"])
def test_a_package_that_is_none_is_refused(package: str) -> None:
    with pytest.raises(InputError, match="not what pip takes"):
        workflow_files(package=package)


def test_an_annotation_cannot_be_another_command() -> None:
    name = next(iter(RULES))
    finding = TreeFinding(
        path="open/a,line=9::x",
        rule=name,
        source=RULES[name].source,
        verdict="FAIL",
        detail="100 %\n::set-output name=x::y",
        mend="",
    )
    text = annotation(Path(), finding)
    assert text.startswith("::error file=open/a%2Cline=9%3A%3Ax,line=1,title=")
    assert text.endswith("::100 %25%0A::set-output name=x::y")
    assert "\n" not in text
