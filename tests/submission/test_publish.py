"""A push carries one submitter's files and no other; what fails is said, or tried again."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hub import IDENTITY, TOKEN, Fault, Hub, a_hub, git
from support import Paceline

from paceline.errors import EnvironmentProblem, InputError
from paceline.submission.check.sample_tree import SampleTree, write_sample_tree
from paceline.submission.publish import Pushed, PushOrder, prepare_push, push
from paceline.submission.publish_git import Change
from paceline.submission.publish_github import ApiAnswerError

OTHERS = {
    "README.md": "the results of the contest\n",
    "closed/Team_B/systems/b.json": "{}\n",
    "closed/Team_AB/systems/ab.json": "{}\n",
}
# Every failure is a proof of its own; these take their turn in `make slow`.
SLOW = pytest.mark.slow
UPSTREAM, FORK = "contest/results-repo", "team-a/results-repo"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    for name, value in (IDENTITY | {"GITHUB_TOKEN": TOKEN, "no_proxy": "*"}).items():
        monkeypatch.setenv(name, value)
    with a_hub(tmp_path / "hub") as running:
        running.create(UPSTREAM, OTHERS)
        running.fork(UPSTREAM, FORK)
        yield running


@pytest.fixture
def submission(tmp_path: Path) -> Path:
    sample = SampleTree(submitter="Team_A", division="open", scenarios=("Offline",))
    return write_sample_tree(tmp_path / "submission/tree", sample).parent


def order(hub: Hub, submission: Path, **fields: object) -> PushOrder:
    values: dict[str, object] = {
        "submission": submission,
        "repo_url": hub.url(FORK),
        "branch": "results",
        "api_url": hub.api_url,
        "within_s": 1.0,
    }
    return PushOrder(**values | fields)  # type: ignore[arg-type]


def pushed(asked: PushOrder, *, seen: list[Change] | None = None) -> Pushed:
    def show(changes: Sequence[Change]) -> bool:
        if seen is not None:
            seen.extend(changes)
        return True

    return push(asked, prepare_push(asked), show=show, pause=lambda _: None)


def names_of(submission: Path) -> set[str]:
    tree = submission / "tree"
    return {p.relative_to(tree).as_posix() for p in tree.rglob("*") if p.is_file()}


def test_a_push_adds_the_submitters_files_and_opens_a_pull_request(
    hub: Hub, submission: Path
) -> None:
    seen: list[Change] = []
    outcome = pushed(order(hub, submission), seen=seen)
    assert set(hub.files(FORK, "results")) == names_of(submission) | set(OTHERS)
    assert outcome.commit == hub.commit(FORK, "results")
    assert {(c.status, c.path) for c in seen} == {("added", n) for n in names_of(submission)}
    assert all(c.num_bytes == (submission / "tree" / c.path).stat().st_size for c in seen)
    (pull,) = hub.pulls
    assert (pull["into"], pull["head"], pull["base"]) == (UPSTREAM, "team-a:results", "results")
    assert "| PASS |" in pull["body"]
    assert outcome.pull_request is not None
    assert outcome.pull_request.address == pull["html_url"]


@SLOW
def test_files_arrive_byte_for_byte(
    hub: Hub, submission: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = submission / "tree/open/Team_A/src/README.md"
    readme.write_bytes(b"windows\r\nends\r\n\xff\x00")
    (submission / "tree/open/Team_A/src/.gitignore").write_text("*\n")
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "core.autocrlf")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "input")
    pushed(order(hub, submission, is_rehearsal=True))
    where = "results:open/Team_A/src/README.md"
    size = git("cat-file", "-s", where, at=hub.path(FORK))
    assert int(size) == len(readme.read_bytes())
    assert "open/Team_A/src/.gitignore" in hub.files(FORK, "results")


def test_what_was_removed_is_deleted_and_the_rest_stays(hub: Hub, submission: Path) -> None:
    pushed(order(hub, submission))
    gone = submission / "tree/open/Team_A/src/README.md"
    (gone.parent / "other.md").write_text("another\n")
    gone.unlink()
    seen: list[Change] = []
    outcome = pushed(order(hub, submission), seen=seen)
    assert {(c.status, c.path) for c in seen} == {
        ("deleted", "open/Team_A/src/README.md"),
        ("added", "open/Team_A/src/other.md"),
    }
    assert set(hub.files(FORK, "results")) == names_of(submission) | set(OTHERS)
    assert outcome.pull_request is not None
    assert outcome.pull_request.was_open
    assert len(hub.pulls) == 1


def test_nothing_to_push_is_said(hub: Hub, submission: Path, paceline: Paceline) -> None:
    pushed(order(hub, submission))
    before = hub.commit(FORK, "results")
    arguments = ("--repo-url", hub.url(FORK), "--branch", "results", "--api-url", hub.api_url)
    shown = paceline("push", submission, *arguments)
    assert shown.code == 0, shown
    assert "nothing to push" in shown.out
    assert "pull request (open already): https://hub.example/" in shown.out
    assert hub.commit(FORK, "results") == before


def test_a_failing_tree_is_refused(hub: Hub, submission: Path, paceline: Paceline) -> None:
    (accuracy,) = submission.rglob("accuracy.txt")
    accuracy.write_text("nothing\n")
    arguments = ("--repo-url", hub.url(FORK), "--branch", "results", "--api-url", hub.api_url)
    shown = paceline("push", submission, *arguments)
    assert shown.code == 1, shown
    assert "Nothing is pushed" in shown.err
    assert "accuracy.txt" in shown.err
    assert hub.asked == []


def test_the_diff_is_shown_and_a_dry_run_stops_there(
    hub: Hub, submission: Path, paceline: Paceline
) -> None:
    before = hub.commit(FORK, "results")
    arguments = ("--repo-url", hub.url(FORK), "--branch", "results", "--api-url", hub.api_url)
    shown = paceline("push", submission, *arguments, "--dry-run")
    assert shown.code == 0, shown
    assert re.search(r"\+ open/Team_A/.*accuracy.txt  [\d,]+ bytes", shown.out)
    assert f"{len(names_of(submission))} added, 0 changed, 0 deleted" in shown.out
    assert "keys and tokens: none found" in shown.out
    assert "Nothing was pushed" in shown.out
    assert hub.commit(FORK, "results") == before
    assert hub.pulls == []


def test_a_secret_in_a_file_stops_the_push(hub: Hub, submission: Path, paceline: Paceline) -> None:
    secret = "hf_" + "a1B2c3D4e5" * 4
    (submission / "tree/open/Team_A/src/run.md").write_text(f"export TOKEN={secret}\n")
    arguments = ("--repo-url", hub.url(FORK), "--branch", "results", "--api-url", hub.api_url)
    shown = paceline("push", submission, *arguments)
    assert shown.code == 1, shown
    assert "keys and tokens: 1 found" in shown.out
    assert secret not in shown.out + shown.err


def test_the_pushs_own_token_in_a_file_is_found_whatever_it_looks_like(
    hub: Hub, submission: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_TOKEN", "no-pattern-knows-this-one")
    (submission / "tree/open/Team_A/src/run.md").write_text("no-pattern-knows-this-one\n")
    with pytest.raises(InputError, match=r"src/run.md holds the token"):
        pushed(order(hub, submission))


def test_the_token_is_in_no_argument_output_or_file(
    hub: Hub, submission: Path, tmp_path: Path, paceline: Paceline
) -> None:
    log = tmp_path / "arguments"
    shim = tmp_path / "bin/git"
    shim.parent.mkdir()
    shim.write_text(
        f'#!/bin/sh\necho "$@" >> {log}\nexec /usr/bin/env -S PATH={os.environ["PATH"]} git "$@"\n'
    )
    shim.chmod(0o755)
    environment = os.environ | {"PATH": f"{shim.parent}:{os.environ['PATH']}", "GIT_TRACE": "1"}
    environment |= {"GIT_CURL_VERBOSE": "1", "GIT_TRACE_CURL": str(tmp_path / "trace")}
    hub.faults = [Fault(r"git-receive-pack", status=500, times=1)]
    arguments = ("--repo-url", hub.url(FORK), "--branch", "results", "--api-url", hub.api_url)
    shown = paceline("push", submission, *arguments, env=environment)
    assert shown.code == 0, shown
    assert "push" in log.read_text()
    texts = [shown.out, shown.err, log.read_text()]
    texts += [git("log", "--all", "-p", "--format=raw", at=hub.path(FORK))]
    basic = next(h for h in hub.headers if h.startswith("Basic ")).removeprefix("Basic ")
    assert not [text for text in texts if TOKEN in text or basic in text]
    assert not (tmp_path / "trace").exists()


def test_a_commit_of_somebody_else_in_between_is_kept(hub: Hub, submission: Path) -> None:
    asked = order(hub, submission)
    times = 0

    def interfere(changes: Sequence[Change]) -> bool:
        nonlocal times
        times += 1
        hub.put(FORK, "results", {"closed/Team_C/systems/c.json": "{}\n"})
        return True

    outcome = push(asked, prepare_push(asked), show=interfere, pause=lambda _: None)
    assert times == 1
    files = set(hub.files(FORK, "results"))
    assert files == names_of(submission) | set(OTHERS) | {"closed/Team_C/systems/c.json"}
    assert any("somebody pushed in between" in note for note in outcome.notes)


def test_a_stale_fork_is_brought_up_to_date_first(hub: Hub, submission: Path) -> None:
    for number in range(3):
        hub.put(UPSTREAM, "results", {f"closed/Team_{number}/x.json": "{}\n"})
    outcome = pushed(order(hub, submission))
    assert {f"closed/Team_{n}/x.json" for n in range(3)} <= set(hub.files(FORK, "results"))
    assert any("was behind its parent" in note for note in outcome.notes)
    parent = git("rev-parse", "results^", at=hub.path(FORK))
    assert parent == hub.commit(UPSTREAM, "results")


@SLOW
def test_a_fork_that_has_gone_its_own_way_is_pushed_to_and_said_so(
    hub: Hub, submission: Path
) -> None:
    hub.put(UPSTREAM, "results", {"closed/Team_X/x.json": "{}\n"})
    hub.put(FORK, "results", {"notes.txt": "mine\n"})
    outcome = pushed(order(hub, submission))
    assert any("they conflict" in note for note in outcome.notes)
    assert "notes.txt" in hub.files(FORK, "results")


@SLOW
def test_a_fork_without_the_branch_gets_its_parents(hub: Hub, submission: Path) -> None:
    hub.put(UPSTREAM, "results-scc", {"closed/Team_X/x.json": "{}\n"})
    outcome = pushed(order(hub, submission, branch="results-scc"))
    assert names_of(submission) < set(hub.files(FORK, "results-scc"))
    assert any("The fork had no results-scc" in note for note in outcome.notes)


def test_a_protected_branch_of_a_fork_is_gone_around_and_said(hub: Hub, submission: Path) -> None:
    hub.protect(FORK, "results")
    before = hub.commit(FORK, "results")
    outcome = pushed(order(hub, submission))
    assert outcome.branch == "results-Team_A"
    assert hub.commit(FORK, "results") == before
    assert names_of(submission) < set(hub.files(FORK, "results-Team_A"))
    assert hub.pulls[0]["head"] == "team-a:results-Team_A"
    assert any("GH006" in note for note in outcome.notes)


def test_a_repository_that_is_no_fork_gets_a_branch_and_a_pull_request(
    hub: Hub, submission: Path
) -> None:
    before = hub.commit(UPSTREAM, "results")
    outcome = pushed(order(hub, submission, repo_url=hub.url(UPSTREAM)))
    assert hub.commit(UPSTREAM, "results") == before
    assert outcome.branch == "results-Team_A"
    assert (hub.pulls[0]["into"], hub.pulls[0]["base"]) == (UPSTREAM, "results")
    again = pushed(order(hub, submission, repo_url=hub.url(UPSTREAM)))
    assert again.commit is None
    assert len(hub.pulls) == 1


def test_a_plain_git_server_needs_no_api(hub: Hub, submission: Path) -> None:
    outcome = pushed(order(hub, submission, pull_request=False, api_url=None))
    assert outcome.commit == hub.commit(FORK, "results")
    assert not [what for what in hub.asked if "/api/" in what]


def test_a_push_that_broke_off_goes_on_with_the_pull_request(hub: Hub, submission: Path) -> None:
    hub.faults = [Fault(r"POST /api/.*/pulls", status=503, times=5)]
    with pytest.raises(ApiAnswerError, match="503"):
        pushed(order(hub, submission))
    commit = hub.commit(FORK, "results")
    outcome = pushed(order(hub, submission))
    assert hub.commit(FORK, "results") == commit
    assert outcome.commit is None
    assert len(hub.pulls) == 1


@pytest.mark.parametrize(
    ("fault", "tries"),
    [
        (Fault(r"GET /api/repos/[^/]+/[^/]+$", status=503), 1),
        pytest.param(Fault(r"GET /api/repos/[^/]+/[^/]+$", hang_up=True), 1, marks=SLOW),
        pytest.param(Fault(r"GET /api/repos/[^/]+/[^/]+$", wait_s=1.5), 1, marks=SLOW),
        (Fault(r"GET /api/", status=429, headers={"Retry-After": "7"}), 1),
        pytest.param(Fault(r"GET /api/", status=403, headers={"Retry-After": "3"}), 1, marks=SLOW),
        pytest.param(
            Fault(r"info/refs\?service=git-upload-pack", status=502, times=2), 2, marks=SLOW
        ),
        pytest.param(Fault(r"info/refs\?service=git-receive-pack", status=429), 1, marks=SLOW),
        (Fault(r"POST /git/.*/git-receive-pack", status=500), 1),
        pytest.param(Fault(r"POST /git/.*/git-upload-pack", status=504), 1, marks=SLOW),
    ],
    ids=lambda value: getattr(value, "where", None),
)
def test_a_passing_failure_is_tried_again_and_said(
    hub: Hub, submission: Path, fault: Fault, tries: int
) -> None:
    hub.faults = [fault]
    waits: list[float] = []
    asked = order(hub, submission)
    outcome = push(asked, prepare_push(asked), show=lambda _: True, pause=waits.append)
    assert outcome.commit == hub.commit(FORK, "results")
    assert len(hub.pulls) == 1
    assert len(waits) == tries
    assert sum("ry 1 of 5" in note for note in outcome.notes) == 1
    if "Retry-After" in fault.headers:
        assert waits == [float(fault.headers["Retry-After"])]


def test_a_pull_request_whose_answer_was_lost_is_not_opened_twice(
    hub: Hub, submission: Path
) -> None:
    hub.faults = [Fault(r"POST /api/.*/pulls", hang_up=True, after=True)]
    outcome = pushed(order(hub, submission))
    assert len(hub.pulls) == 1
    assert outcome.pull_request is not None
    assert outcome.pull_request.address == hub.pulls[0]["html_url"]


@SLOW
def test_a_push_whose_answer_was_lost_is_not_made_twice(hub: Hub, submission: Path) -> None:
    hub.faults = [Fault(r"POST /api/.*/merge-upstream", status=500, times=5)]
    with pytest.raises(ApiAnswerError):
        pushed(order(hub, submission))
    pushed(order(hub, submission))
    assert git("rev-list", "--count", "results", at=hub.path(FORK)) == "2"


@pytest.mark.parametrize(
    ("fault", "kind", "words", "hint"),
    [
        (Fault("/api/", status=401), ApiAnswerError, "401", "GITHUB_TOKEN"),
        pytest.param(Fault("/api/", status=403), ApiAnswerError, "403", "write access", marks=SLOW),
        pytest.param(Fault("/api/", status=404), ApiAnswerError, "404", "not there", marks=SLOW),
        pytest.param(
            Fault("POST /api/.*/pulls", status=409),
            EnvironmentProblem,
            "409",
            "same command",
            marks=SLOW,
        ),
        (Fault("POST /api/.*/pulls", status=422), EnvironmentProblem, "422", "its message"),
        pytest.param(
            Fault("/api/", status=429, times=9),
            EnvironmentProblem,
            "429",
            "wait some minutes",
            marks=SLOW,
        ),
        pytest.param(
            Fault("/api/", wait_s=1.2, times=9),
            EnvironmentProblem,
            "cannot be reached",
            "same",
            marks=SLOW,
        ),
        (
            Fault("/api/", status=301, headers={"Location": "/x"}),
            EnvironmentProblem,
            "301",
            "moved",
        ),
        (Fault("/git/", status=401, times=9), InputError, "does not know you", "GITHUB_TOKEN"),
        (Fault("/git/", status=403), InputError, "may not do this", "write access"),
        pytest.param(
            Fault("/git/", status=404), InputError, "no such repository", "--repo-url", marks=SLOW
        ),
        pytest.param(
            Fault("/git/", status=503, times=9),
            EnvironmentProblem,
            "ls-remote",
            "same command",
            marks=SLOW,
        ),
        pytest.param(
            Fault("receive-pack", status=403),
            InputError,
            "may not do this",
            "write access",
            marks=SLOW,
        ),
    ],
    ids=lambda value: getattr(value, "where", None),
)
def test_a_lasting_failure_says_what_to_do(
    hub: Hub, submission: Path, fault: Fault, kind: type[Exception], words: str, hint: str
) -> None:
    hub.faults = [fault]
    with pytest.raises(kind) as caught:
        pushed(order(hub, submission))
    text = str(caught.value)
    assert words in text
    assert hint in text
    assert TOKEN not in text


def test_a_redirect_does_not_carry_the_token_elsewhere(
    hub: Hub, submission: Path, tmp_path: Path
) -> None:
    with a_hub(tmp_path / "elsewhere") as elsewhere:
        hub.faults = [
            Fault(
                "GET /git/", status=302, headers={"Location": f"{elsewhere.url('x/y')}/info/refs"}
            )
        ]
        with pytest.raises((InputError, EnvironmentProblem)):
            pushed(order(hub, submission))
        hub.faults = [Fault("/api/", status=302, headers={"Location": elsewhere.api_url})]
        with pytest.raises(EnvironmentProblem, match="302"):
            pushed(order(hub, submission))
        assert elsewhere.asked == []


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://results.example.org/a/b", "unencrypted"),
        ("https://me:secret@github.com/a/b", "a user or a password"),
        ("results-repo", "not the address"),
    ],
)
def test_an_unsafe_address_is_refused(hub: Hub, submission: Path, url: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        pushed(order(hub, submission, repo_url=url))
    assert hub.asked == []


def test_what_is_missing_is_said_before_anything_is_sent(
    hub: Hub, submission: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="no branch resluts") as caught:
        pushed(order(hub, submission, branch="resluts"))
    assert "did you mean results?" in str(caught.value)
    with pytest.raises(InputError, match="cannot be the name of a branch"):
        pushed(order(hub, submission, branch="--upload-pack=touch x"))
    hub.asked.clear()
    monkeypatch.delenv("GITHUB_TOKEN")
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "git").symlink_to("/usr/bin/git")
    with pytest.raises(InputError, match="none was found"):
        pushed(order(hub, submission))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.delenv("GIT_AUTHOR_EMAIL")
    monkeypatch.setenv("GH_TOKEN", TOKEN)
    with pytest.raises(InputError, match=r"user\.email is not set"):
        pushed(order(hub, submission))
    assert hub.asked == []


def test_the_token_is_asked_of_gh_when_the_environment_has_none(
    hub: Hub, submission: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gh = tmp_path / "bin/gh"
    gh.parent.mkdir()
    gh.write_text(f'#!/bin/sh\n[ "$*" = "auth token --hostname 127.0.0.1" ] && echo {TOKEN}\n')
    gh.chmod(0o755)
    monkeypatch.delenv("GITHUB_TOKEN")
    monkeypatch.setenv("PATH", f"{gh.parent}:{os.environ['PATH']}")
    assert pushed(order(hub, submission)).pull_request is not None


@SLOW
def test_one_submitter_of_several_is_asked_for(hub: Hub, submission: Path) -> None:
    sample = SampleTree(submitter="Team_Z", division="open", scenarios=("Offline",))
    write_sample_tree(submission / "tree", sample)
    with pytest.raises(InputError, match="2 submitters: Team_A, Team_Z"):
        prepare_push(order(hub, submission))
    seen: list[Change] = []
    pushed(order(hub, submission, submitter="Team_Z"), seen=seen)
    assert {change.path.split("/")[1] for change in seen} == {"Team_Z"}


def test_a_rehearsal_is_only_pushed_as_one(hub: Hub, submission: Path, paceline: Paceline) -> None:
    (system,) = submission.rglob("systems/*.json")
    notes = "REHEARSAL: this is no measurement of a system and must not be submitted."
    system.write_text(json.dumps(json.loads(system.read_text()) | {"sw_notes": notes}))
    arguments = ("--repo-url", hub.url(FORK), "--branch", "results", "--api-url", hub.api_url)
    refused = paceline("push", submission, *arguments)
    assert refused.code == 2, refused
    assert "--rehearsal" in refused.err
    shown = paceline("push", submission, *arguments, "--rehearsal", "--json")
    assert shown.code == 0, shown
    assert shown.json["pull_request"]["address"] == hub.pulls[0]["html_url"]
    assert hub.pulls[0]["title"].startswith("REHEARSAL: Results of Team_A on ")
