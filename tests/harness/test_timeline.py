"""A test's rows over time reach from its start to its last answer, and count nothing else."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest
from cards import build_driver
from support import Paceline
from toys import save_llama

from fault_server import FaultServer
from paceline.config import embedded_model
from paceline.harness.timeline import Timeline

pytestmark = pytest.mark.timed

FAKE = ("run", "--engine", "fake", "--mode", "performance", "--out", "run")
# Sized by a measurement of the engine itself, which is no part of the test.
SIZED = ("--set", "loadgen.min_duration_ms=1500", "--set", "run.probe_s=1")


def sets(*texts: str) -> list[str]:
    return [word for text in texts for word in ("--set", text)]


def read(folder: Path, test: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What the manifest has of a test, and its timeline."""
    facts = json.loads((folder / "run/manifest.json").read_text())["tests"][test]
    text = (folder / "run" / test / "timeline.jsonl").read_text()
    return facts, [json.loads(line) for line in text.splitlines()]


def test_the_last_row_has_all_that_was_made_and_when(paceline: Paceline, tmp_path: Path) -> None:
    """Answers of 0.4 s: the last ends between two seconds, and belongs to no whole one."""
    paced = sets("engine.fake.tokens_per_second=50", "engine.fake.output_len=20")
    paceline(*FAKE, *paced, *sets("loadgen.min_query_count=9", "run.num_samples=9"))
    facts, rows = read(tmp_path, "performance")
    assert facts["tokens"] == 180
    assert rows[-1]["made"] == rows[-1]["tokens"] == facts["tokens"]
    assert rows[-1]["answered"] == rows[-1]["issued"] == 9
    assert rows[-1]["elapsed_s"] == pytest.approx(facts["window_s"][1], abs=0.002)
    assert rows[-1]["elapsed_s"] == pytest.approx(3.6, abs=0.4)
    assert rows[-1]["live_sequences"] == 0
    assert rows[-2]["made"] < facts["tokens"]


def test_a_test_shorter_than_a_second_has_a_row(paceline: Paceline, tmp_path: Path) -> None:
    paceline(*FAKE)
    facts, rows = read(tmp_path, "performance")
    assert [row["made"] for row in rows] == [facts["tokens"]]


def test_rows_go_on_through_all_of_a_search(paceline: Paceline, tmp_path: Path) -> None:
    driver = build_driver(tmp_path / "driver", DRAW_MW=100000)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(driver.parent)}
    paced = sets("engine.fake.tokens_per_second=6400", "engine.fake.concurrency=4")
    short = sets("find_qps.precision=0.4", "find_qps.probe_s=2", "find_qps.probe_queries=81")
    words = ("--scenario", "Server", "--find-qps", *paced, *short)
    paceline(*FAKE, *words, "--set", "engine.fake.output_len=40", env=environment)
    facts, rows = read(tmp_path, "find_qps")
    probes = json.loads((tmp_path / "run/find_qps/probes.json").read_text())["probes"]
    made = sum(probe["outcome"]["num_queries"] for probe in probes)
    assert facts["num_probes"] > 3
    assert facts["tokens"] == 32 * made  # the demo's answers have 32 tokens at most
    assert rows[-1]["answered"] == made
    assert rows[-1]["made"] == facts["tokens"]
    assert facts["engine"]["answered"] == made
    # From the first query of the first test to the last answer of the last, and no gap.
    assert rows[-1]["elapsed_s"] == pytest.approx(facts["window_s"][1], abs=0.002)
    assert facts["elapsed_s"] >= sum(probe["outcome"]["duration_s"] for probe in probes)
    times = [0.0, *(row["elapsed_s"] for row in rows)]
    steps = [after - before for before, after in itertools.pairwise(times)]
    assert min(steps) > 0
    assert max(steps) < 2.5
    counts = [row["made"] for row in rows]
    assert counts == sorted(counts)
    # Its power is that of all of it: two cards of 100 W.
    seconds = facts["window_s"][1] - facts["window_s"][0]
    assert facts["power"]["energy_joules"] == pytest.approx(200 * seconds, rel=0.05)


def test_the_fake_engine_counts_no_answer_of_the_measurement_before(
    paceline: Paceline, tmp_path: Path
) -> None:
    paced = sets("engine.fake.tokens_per_second=4000", "engine.fake.output_len=20")
    paceline(*FAKE, *SIZED, *paced)
    facts, rows = read(tmp_path, "performance")
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    assert manifest["probe"]["answered"] > 50
    assert facts["engine"]["answered"] == rows[-1]["answered"] == facts["tokens"] // 20


def test_the_native_engine_counts_no_step_of_the_measurement_before(
    paceline: Paceline, tmp_path: Path
) -> None:
    # The demo's longest prompt has 499 tokens.
    model = save_llama(tmp_path / "toy", vocab_size=49152, max_position_embeddings=1024)
    small = sets("engine.native.max_live_sequences=8", "engine.native.max_step_tokens=128")
    tokenizer = sets(f"data.tokenizer={embedded_model()}")
    words = ("run", "--engine", "native", "--model", model, "--mode", "performance", *tokenizer)
    outcome = paceline(*words, *SIZED, *small, "--out", "run")
    facts, _ = read(tmp_path, "performance")
    assert facts["status"] == "COMPLETE", outcome
    (copy,) = facts["engine"]["copies"]
    assert copy["sampled_tokens"] == facts["tokens"], outcome
    assert copy["steps"] > facts["tokens"] / 8


def test_a_server_counts_no_answer_of_the_measurement_before(
    paceline: Paceline, tmp_path: Path
) -> None:
    with FaultServer() as server:
        words = ("run", "--engine", "endpoint", "--mode", "performance", "--out", "run", *SIZED)
        url = f"engine.endpoint.urls={server.url}"
        paceline(*words, *sets(url, "engine.endpoint.concurrency=4"))
    facts, rows = read(tmp_path, "performance")
    (told,) = facts["engine"]["servers"]
    assert told["answered"] == rows[-1]["answered"]
    assert told["tokens"] == facts["tokens"]
    assert len(server.asked) > told["answered"]
    assert told["most_in_flight"] <= 4


def test_no_row_follows_the_last_and_none_repeats_it(tmp_path: Path) -> None:
    path = tmp_path / "timeline.jsonl"
    timeline = Timeline(path)
    for elapsed_s in (0.5, 1.0, 1.9, 2.0):
        timeline.tick(elapsed_s, lambda now_s: {"elapsed_s": now_s})
    timeline.end(2.0, lambda now_s: {"elapsed_s": now_s})
    timeline.tick(9.0, lambda now_s: {"elapsed_s": now_s})
    rows = [json.loads(line)["elapsed_s"] for line in path.read_text().splitlines()]
    assert rows == [1.0, 2.0]


def test_rows_after_the_last_answer_give_way_to_the_last(tmp_path: Path) -> None:
    """A watch that looks between the last answer and the end of the test."""
    path = tmp_path / "timeline.jsonl"
    timeline = Timeline(path)
    for elapsed_s in (1.0, 2.0, 3.01, 4.02):
        timeline.tick(elapsed_s, lambda now_s: {"elapsed_s": now_s, "by": "tick"})
    timeline.end(2.99, lambda now_s: {"elapsed_s": now_s, "by": "end"})
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["elapsed_s"], row["by"]) for row in rows] == [
        (1.0, "tick"), (2.0, "tick"), (2.99, "end"),
    ]  # fmt: skip
