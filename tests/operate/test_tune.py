"""A search finds what is fast, survives what ends an engine, and claims what it measured."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import Outcome, Paceline

from fault_server import Call, FaultServer, Reply, right
from paceline.config import demo_dataset
from paceline.engines import ENGINES, config_class
from paceline.engines.knobs import answer_settings
from paceline.engines.native_settings import NativeConfig
from paceline.operate.confirm import judge_pairs

pytestmark = pytest.mark.timed

PACED = ("engine.fake.tokens_per_second=2000", "engine.fake.output_len=20")


def sets(*texts: str) -> list[str]:
    return [word for text in texts for word in ("--set", text)]


class Crowded:
    """A server that answers faster the more it is asked at once, until it is crowded.

    With n in flight an answer takes 20 ms x (1 + (n / 16)^2): n answers in that time are most
    at 16.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ends: list[float] = []

    def __call__(self, call: Call) -> Reply:
        reply = right(call)
        if call.is_preflight:
            return reply
        now_s = time.monotonic()
        with self._lock:
            self._ends = [end_s for end_s in self._ends if end_s > now_s]
            delay_s = 0.02 * (1 + ((len(self._ends) + 1) / 16) ** 2)
            self._ends.append(now_s + delay_s)
        if reply.events is not None:
            reply.event_delay_s = 0.0
        reply.delay_s = delay_s
        return reply


@pytest.mark.slow
def test_a_known_optimum_is_found_in_few_trials_and_confirmed(
    paceline: Paceline, tmp_path: Path
) -> None:
    with FaultServer(Crowded()) as server:
        outcome = paceline(
            *("tune", "--engine", "endpoint", "--out", "t", "--trials", 4, "--budget", "10m"),
            *("--search", "concurrency=1,2,4,8,12,16,24,32,48,64,96,128,192,256,384,512"),
            *("--trial-seconds", 1.5, "--pairs", 3, "--json"),
            *sets(f"engine.endpoint.urls={server.url}", "engine.endpoint.concurrency=1"),
            *sets("loadgen.min_query_count=2048"),
        )
    found = outcome.json
    assert found["num_trials"] == found["space_size"] // 4
    assert found["default"]["values"] == {"concurrency": 1}
    # Between 8 and 32 the surface is within a quarter of its best; the default is at an eighth.
    assert 8 <= found["best"]["values"]["concurrency"] <= 32
    assert outcome.code == 0
    text = (tmp_path / "t" / "tuned.toml").read_text()
    best = found["best"]["values"]["concurrency"]
    assert f"engine.endpoint.concurrency: 1 -> {best}" in text
    assert f"engine.endpoint.concurrency = {best}" in text
    assert f"{found['confirmation']['gain']:.1%}" in text
    explained = paceline("explain", "t/tuned.toml", "--json").json["settings"]
    assert {"key": "engine.endpoint.concurrency", "value": best}.items() <= next(
        one for one in explained if one["key"] == "engine.endpoint.concurrency"
    ).items()


def test_what_ends_a_trial_is_counted_and_the_search_goes_on(paceline: Paceline) -> None:
    outcome = paceline(
        *("tune", "--engine", "fake", "--out", "t", "--budget", "10m", "--trial-seconds", 1),
        *("--search", "fail_after=0,5", "--search", "stall_after=0,60", "--pairs", 2, "--json"),
        *sets(*PACED, "engine.fake.concurrency=2"),
    )
    found = outcome.json
    assert found["counts"]["ok"] == 1
    assert found["counts"]["hung"] == 1
    assert found["counts"]["failed"] == 2
    # Nothing beat the default, and nothing is claimed.
    assert (outcome.code, found["recipe"]) == (1, None)
    assert "trial 1" in outcome.err


def test_a_search_leaves_of_its_budget_what_the_contest_takes_and_says_what_is_more(
    paceline: Paceline,
) -> None:
    """Trials of a second and more: of 8 s half is for them, and ten measurements follow."""
    outcome = paceline(
        *("tune", "--engine", "fake", "--out", "t", "--budget", "8s", "--trial-seconds", 0.8),
        *("--search", "concurrency=1,2,3,4,5,6,7,8,9,10,11,12", "--pairs", 2, "--json"),
        *sets(*PACED),
    )
    found = outcome.json
    assert 2 <= found["num_trials"] <= 5
    assert "up to 10 times, which takes up to" in outcome.err
    assert "s more than the budget: fewer --pairs or --trial-seconds" in outcome.err


def test_a_search_whose_default_does_not_run_ends_so_each_time(paceline: Paceline) -> None:
    words = ("tune", "--engine", "fake", "--out", "t", "--budget", "1m", "--trial-seconds", 1)
    search = ("--search", "concurrency=1,2", *sets(*PACED, "engine.fake.fail_after=5"))
    for outcome in (paceline(*words, *search), paceline("tune", "--resume", "t")):
        assert outcome.code == 3, outcome
        assert "The recipe's own settings do not run (failed)" in outcome.err
        assert "another --out" in outcome.err


def test_equal_settings_are_not_called_faster(paceline: Paceline, tmp_path: Path) -> None:
    outcome = paceline(
        *("tune", "--engine", "fake", "--out", "t", "--budget", "10m", "--trial-seconds", 0.5),
        *("--search", "concurrency=1,2", "--pairs", 3, "--json", *sets(*PACED)),
    )
    assert outcome.code == 1
    assert "default" in outcome.json["outcome"]
    assert not (tmp_path / "t" / "tuned.toml").exists()


def test_a_killed_search_goes_on_and_a_killed_trial_is_out_of_memory(
    paceline: Paceline, tmp_path: Path
) -> None:
    words = ["tune", "--engine", "fake", "--out", "t", "--budget", "10m", "--trial-seconds", "3"]
    words += ["--search", "concurrency=1,2", "--pairs", "2", *sets(*PACED)]
    command = [sys.executable, "-m", "paceline", *words]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL) as tune:
        child = wait_for_trial(tmp_path / "t" / "trial-001")
        tune.kill()
    deadline_s = time.monotonic() + 20
    while is_running(child) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert not is_running(child), "a trial outlived its search"

    again = [sys.executable, "-m", "paceline", "tune", "--resume", "t", "--json"]
    again += ["--budget", "10m", "--trial-seconds", "3", "--pairs", "2"]
    with subprocess.Popen(
        again, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as tune:
        # What the kernel does to a process that took all memory.
        os.kill(wait_for_trial(tmp_path / "t" / "trial-001", not_pid=child), signal.SIGKILL)
        said, told = tune.communicate(timeout=200)
    found = json.loads(said)
    assert "1 trial was made before and kept" in told
    assert [one["how"] for one in found["trials"]] == ["ok", "out of memory"]
    refused = paceline("tune", "--engine", "fake", "--out", "t", "--search", "concurrency=1,9")
    assert (refused.code, "another search" in refused.err) == (2, True)


def wait_for_trial(folder: Path, not_pid: int = 0) -> int:
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words, pid = path.read_bytes().decode(), int(path.parent.name)
            except OSError:
                continue
            if "trial_child" in words and str(folder) in words and pid != not_pid:
                return pid
        time.sleep(0.02)
    pytest.fail("the trial did not begin")


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def answers_file(path: Path, *, num_halved: int) -> Path:
    """The demo's samples with their reference answers, the first few of them cut in half."""
    table = pq.read_table(demo_dataset(), use_threads=False)
    answers = table["tok_output"].to_pylist()
    for answer in answers[:num_halved]:
        answer[len(answer) // 2 : -1] = []
    columns = {"tok_input": table["tok_input"], "tok_output": answers}
    pq.write_table(pa.table(columns), path)
    return path


def searched_with_answers(paceline: Paceline, right: Path, wrong: Path) -> Outcome:
    """Three trials: the default, twice its speed, and four times its speed with other answers."""
    return paceline(
        *("tune", "--engine", "fake", "--out", "t", "--budget", "10m", "--trial-seconds", 0.6),
        *("--search", "tokens_per_second=2000,4000,8000", "--search", f"answers={right},{wrong}"),
        *("--pairs", 2, "--trials", 3, "--accuracy-settings"),
        *sets("engine.fake.tokens_per_second=2000", f"engine.fake.answers={right}"),
    )


def test_a_winner_that_the_gate_rejects_makes_way_for_the_next_best(
    paceline: Paceline, tmp_path: Path
) -> None:
    right = answers_file(tmp_path / "right.parquet", num_halved=0)
    wrong = answers_file(tmp_path / "wrong.parquet", num_halved=12)
    outcome = searched_with_answers(paceline, right, wrong)
    assert outcome.code == 0, outcome
    found = json.loads((tmp_path / "t/result.json").read_text())
    (rejected,) = found["rejected"]
    assert rejected["values"] == {"tokens_per_second": 8000.0, "answers": str(wrong)}
    # The gate of a run, on the difference to the default, whose score is 100: it may lose 1.
    gate = rejected["accuracy"]["gate"]["differences"]["rouge1"]
    assert gate["mean"] < gate["least"] == -1.0
    assert rejected["accuracy"]["default_passed"]
    assert found["best"]["values"] == {"tokens_per_second": 4000.0, "answers": str(right)}
    assert found["accuracy"] is None
    assert found["outcome"] == "1 faster setting rejected by the accuracy gate; better"
    line = f"trial 2, engine.fake.answers {right} -> {wrong}: accuracy.rouge1: 9"
    recipe = (tmp_path / "t/tuned.toml").read_text()
    for text in (outcome.out, recipe.partition("\n\n")[0]):
        assert f"Rejected by the accuracy gate though faster: {line}" in text
    assert f'engine.fake.answers = "{right}"' in recipe
    assert "engine.fake.tokens_per_second = 4000.0" in recipe
    # A search that goes on measures nothing twice.
    again = paceline("tune", "--resume", "t", "--trials", 3, "--pairs", 2, "--json")
    assert again.json["rejected"] == found["rejected"]
    assert again.json["confirmation"] == found["confirmation"]


def test_a_winner_whose_answers_hold_the_gate_is_taken(paceline: Paceline, tmp_path: Path) -> None:
    right = answers_file(tmp_path / "right.parquet", num_halved=0)
    hardly = answers_file(tmp_path / "hardly.parquet", num_halved=1)
    outcome = searched_with_answers(paceline, right, hardly)
    assert outcome.code == 0, outcome
    found = json.loads((tmp_path / "t/result.json").read_text())
    assert found["rejected"] == []
    assert found["best"]["values"]["answers"] == str(hardly)
    gate = found["accuracy"]["gate"]["differences"]["rouge1"]
    assert gate["least"] <= gate["mean"] < 0
    assert found["accuracy"]["passed"]
    assert "an accuracy run with them: PASS" in (tmp_path / "t/tuned.toml").read_text().replace(
        "\n# ", " "
    )


@pytest.mark.parametrize(
    ("engine", "search"),
    [
        ("native", "dtype=float32,bfloat16"),
        ("native", "quantization=auto,none"),
        ("native", "kv_dtype=auto,fp8"),
        ("reference", "dtype=float32,bfloat16"),
        ("fake", "output_len=20,40"),
    ],
)
def test_what_changes_answers_is_not_searched_unasked(
    paceline: Paceline, engine: str, search: str
) -> None:
    """No GPU here declares them as knobs; they are settings of the answers all the same."""
    outcome = paceline("tune", "--engine", engine, "--search", search)
    assert outcome.code == 2
    assert f"--search {search.partition('=')[0]}: it may change the answers" in outcome.err
    assert "--accuracy-settings" in outcome.err


def test_every_engines_precision_is_a_setting_of_the_answers() -> None:
    marked = {engine: answer_settings(config_class(engine)) for engine in ENGINES}
    named = {"dtype", "kv_dtype", "quantization", "device", "model", "preset", "output_len"}
    for engine, settings in marked.items():
        fields = {field.name for field in dataclasses.fields(config_class(engine))}
        assert named & fields <= settings, engine
    assert not marked["native"] & {knob.name for knob in NativeConfig(device="cpu").knobs(0)}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--engine", "fake"), "no setting of speed"),
        (("--budget", "soon", "--engine", "native"), "not a time"),
        (("--budget", "40s", "--engine", "native"), "half of it is for the search, and a trial"),
        (("--engine", "fake", "--search", "speed=1,2"), "no such setting"),
        (("--engine", "fake", "--search", "concurrency=1"), "two values"),
    ],
)
def test_what_cannot_be_searched_is_refused(
    paceline: Paceline, words: tuple[str, ...], said: str
) -> None:
    outcome = paceline("tune", *words)
    assert outcome.code == 2
    assert said in outcome.err


def judged(*pairs: tuple[float, float]) -> dict[str, Any]:
    return judge_pairs(pairs)


def test_a_steady_gain_is_better_and_a_shaky_one_is_not() -> None:
    steady = judged((100, 110), (90, 99.2), (95, 104.4))
    assert steady["is_better"]
    assert steady["gain"] == pytest.approx(0.1, abs=0.005)
    assert not judged((100, 130), (100, 80), (100, 125))["is_better"]
    assert judged((100, 130), (100, 80), (100, 125))["num_faster"] == 2


def test_what_a_clock_makes_is_no_gain() -> None:
    """Faster in three of three pairs by 0.005 %, as the fake engine's were."""
    ticks = judged((2000.0, 2000.1), (2000.02, 2000.11), (2000.01, 2000.12))
    assert ticks["gain_low"] > 0
    assert not ticks["is_better"]


def test_one_pair_or_a_failed_one_proves_nothing() -> None:
    assert not judged((100, 200))["is_better"]
    assert not judged((100, 200), (100, 0), (100, 210))["is_better"]
    assert not judge_pairs([])["is_better"]
