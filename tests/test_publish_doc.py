"""docs/publish.md's sequence, run as it stands against a git host on this machine."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub import IDENTITY, TOKEN, Hub, a_hub
from support import program_in, session_of

from paceline.report.workflows import workflow_files
from paceline.submission.publish_token import git_header

DOCUMENT = (Path(__file__).parent.parent / "docs/publish.md").read_text()
UPSTREAM, FORK = "contest/results", "team-a/results"

Done = dict[str, subprocess.CompletedProcess[str]]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with a_hub(tmp_path / "hub") as running:
        running.create(UPSTREAM, {"README.md": "results\n", "open/Team_B/README.md": "theirs\n"})
        running.fork(UPSTREAM, FORK)
        yield running


def follow(
    hub: Hub, folder: Path, *, is_short: bool
) -> dict[str, subprocess.CompletedProcess[str]]:
    """Run every line in a shell; what each of paceline's verbs, by its line, came to."""
    program = program_in(folder / "bin")
    environment = (
        os.environ
        | IDENTITY
        | {
            "PATH": f"{program.parent}:{os.environ['PATH']}",
            "FORK": hub.url(FORK),
            "GITHUB_TOKEN": TOKEN,
            "GITHUB_API_URL": hub.api_url,
            "no_proxy": "*",
            "GIT_CONFIG_COUNT": "1",  # the clone's own way in
            "GIT_CONFIG_KEY_0": f"http.http://127.0.0.1:{hub.port}/.extraHeader",
            "GIT_CONFIG_VALUE_0": git_header(TOKEN),
        }
    )
    done = {}
    for line in session_of(DOCUMENT):
        command = line
        if is_short:
            command = command.replace("synthetic syn", "synthetic syn --samples 400")
            fewer = "--set run.num_samples=400 --set loadgen.min_duration_ms=0 --mode submission"
            command = command.replace("--mode submission", fewer)
            command = re.sub(r"tokens_per_second=\d+", "tokens_per_second=600000", command)
        done[line] = subprocess.run(
            ["bash", "-c", command],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            env=environment,
            timeout=1500,
        )
    return done


def code_of(done: Done, start: str) -> int:
    (found,) = [result for line, result in done.items() if line.startswith(start)]
    assert found.returncode in (0, 1), f"{start}\n{found.stdout}\n{found.stderr}"
    return found.returncode


def check_the_end(hub: Hub, folder: Path) -> None:
    verdict = json.loads((folder / "runs/first/verdict.json").read_text())
    figure = f"{verdict['tokens_per_second']:,.1f}"
    assert figure in (folder / "runs/first/report.html").read_text()
    (pull,) = hub.pulls
    assert (pull["into"], pull["head"]) == (UPSTREAM, "team-a:results")
    assert pull["title"].startswith("REHEARSAL: ")
    index = (folder / "site/index.html").read_text()
    assert re.search(rf">a-machine</a></td><td class=\"number\">{re.escape(figure)}<", index)
    assert "REHEARSAL" in index
    for name, text in workflow_files(branch="results").items():
        assert (folder / "repository" / name).read_text() == text


def test_the_documented_sequence_works_in_short(hub: Hub, tmp_path: Path) -> None:
    done = follow(hub, tmp_path, is_short=True)
    # 400 samples in a moment are no valid run: the check says so on the lines, all else goes on.
    for start in (
        "paceline data",
        "paceline system",
        "paceline report",
        "paceline push",
        "git clone",
    ):
        assert code_of(done, start) == 0, done
    for start in ("paceline site --init", "paceline site repository"):
        assert code_of(done, start) == 0, done
    (checked,) = [result for line, result in done.items() if line.startswith("paceline check")]
    assert re.search(r"^::error file=repository/open/Team_A/.*,line=\d+,", checked.stdout, re.M)
    check_the_end(hub, tmp_path)


# It runs for the 600 s of a valid run, and more for all around it.
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_documented_sequence_works_as_it_stands(hub: Hub, tmp_path: Path) -> None:
    done = follow(hub, tmp_path, is_short=False)
    codes = {line: result.returncode for line, result in done.items()}
    assert codes == dict.fromkeys(session_of(DOCUMENT), 0)
    check_the_end(hub, tmp_path)
    (script,) = re.findall(
        r"run: \|\n(.*)\Z", workflow_files()[".github/workflows/check.yml"], re.S
    )
    ran = subprocess.run(
        ["bash", "-c", "\n".join(line[10:] for line in script.splitlines())],
        cwd=tmp_path / "repository",
        capture_output=True,
        text=True,
        check=False,
        env=os.environ
        | {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "RUNNER_TEMP": str(tmp_path)},
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "results pass: PASS" in ran.stdout
