"""Replicas on a real Ray: each sample answered once whatever is killed, stalls or comes back."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray_nodes import ray_head

from paceline.engines import Completion, EngineContext, Request, load
from paceline.engines.replicas_settings import ReplicasConfig
from paceline.errors import EngineError, InputError, PacelineError

pytest.importorskip("ray", reason="Ray is not installed: pip install 'paceline[ray]'")


class Answers:
    """A Sink that counts."""

    def __init__(self) -> None:
        self.answered = Counter[int]()
        self.tokens: dict[int, list[int]] = {}
        self.errors: list[PacelineError] = []

    def first_token(self, request_id: int, token_id: int) -> None:
        """Not wanted in these tests."""

    def done(self, completion: Completion) -> None:
        self.done_all((completion,))

    def done_all(self, completions: Sequence[Completion]) -> None:
        for completion in completions:
            self.answered[completion.request_id] += 1
            self.tokens[completion.request_id] = completion.token_ids.tolist()

    def failed(self, request_id: int, error: PacelineError) -> None:
        self.errors.append(error)

    def progress(self, num_tokens: int) -> None:
        """Not wanted in these tests."""


def context_of(tmp_path: Path) -> EngineContext:
    return EngineContext(
        model=None, eos_token_id=2, vocabulary_size=1000, max_new_tokens=64, log_dir=tmp_path
    )


def requests_of(count: int) -> list[Request]:
    draw = random.Random(0)
    return [
        Request(i, np.full(draw.randint(1, 30), draw.randint(3, 900), np.int32), 64)
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with ray_head(tmp_path_factory.mktemp("ray"), num_cpus=16) as head:
        yield head


@contextmanager
def running(tmp_path: Path, fake: dict[str, Any], **changes: Any) -> Iterator[Any]:
    facts = {"engine": "fake", "num_replicas": 3, "backoff_s": 0.1, "report_s": 0.3, "restarts": 9}
    config = ReplicasConfig(**(facts | changes), inner=fake)
    engine = load("replicas")(config, context_of(tmp_path))
    engine.start()
    try:
        yield engine
    finally:
        engine.close()


def pids(engine: Any) -> list[int]:
    return [row["pid"] for row in engine.describe()["replicas"] if row["is_up"]]


def expected(tmp_path: Path, requests: Sequence[Request], fake: dict[str, Any]) -> Any:
    """What one engine alone answers."""
    from paceline.engines.fake import FakeConfig

    engine = load("fake")(FakeConfig(**(fake | {"tokens_per_second": 0})), context_of(tmp_path))
    sink = Answers()
    engine.start()
    engine.submit(requests, sink)
    engine.drain()
    engine.close()
    return sink.tokens


def test_counting_begins_anew_for_replicas_and_what_they_copy(tmp_path: Path, address: str) -> None:
    with running(tmp_path, {"output_len": 20}, address=address) as engine:
        for count in (30, 10):
            sink = Answers()
            engine.submit(requests_of(count), sink)
            engine.drain()
            assert sum(sink.answered.values()) == count
            facts = engine.describe()
            assert sum(row["answered"] for row in facts["replicas"]) == count
            assert sum(row["tokens"] for row in facts["replicas"]) == 20 * count
            assert facts["counts"]["messages"] == facts["head"]["messages"] > 0
            engine.begin_counting()
        assert engine.describe()["head"] == {}


def test_each_sample_is_answered_once_while_replicas_are_killed(
    tmp_path: Path, address: str
) -> None:
    """Killed and stopped processes: their samples are answered elsewhere, with the same tokens."""
    fake = {"tokens_per_second": 1500.0, "concurrency": 3, "output_len": 20}
    requests, sink, draw = requests_of(1000), Answers(), random.Random(1)
    with running(tmp_path, fake, stall_timeout_s=2.0, address=address) as engine:
        engine.submit(requests, sink)
        for kind in (signal.SIGKILL, signal.SIGSTOP):
            time.sleep(1.0)
            os.kill(draw.choice(pids(engine)), kind)
        engine.drain()
        facts = engine.describe()
    assert sink.errors == []
    assert sink.answered == Counter(range(1000))
    assert sink.tokens == expected(tmp_path, requests, fake)
    lost = [event for event in facts["events"] if event["what"] == "lost"]
    assert {event["reason"].partition(":")[0] for event in lost} == {"died", "silent"}
    assert facts["counts"]["lost"] == 2
    assert sum(event["moved"] for event in lost) == facts["counts"]["moved"] > 0
    assert all(any(event["reason"] in note for note in facts["notes"]) for event in lost)


def test_a_replica_that_makes_nothing_is_lost_and_the_last_one_ends_the_run(
    tmp_path: Path, address: str
) -> None:
    """Both answer their messages; only that nothing is made tells that they hang."""
    fake = {"output_len": 20, "stall_after": 20}
    sink = Answers()
    changes = {"num_replicas": 2, "stall_timeout_s": 1.0, "restarts": 0, "outstanding": 8}
    changes["address"] = address
    with running(tmp_path, fake, **changes) as engine:
        engine.submit(requests_of(100), sink)
        engine.drain()
        facts = engine.describe()
        engine.submit(requests_of(1), sink)
        engine.drain()
    assert len(sink.answered) == 40
    assert len(sink.errors) == 61
    assert "No replica is left" in sink.errors[0].message
    assert "--resume" in str(sink.errors[0].hint)
    whats = Counter(event["what"] for event in facts["events"])
    assert whats == {"lost": 2, "given up": 2}
    assert all("made nothing" in e["reason"] for e in facts["events"] if e["what"] == "lost")


@pytest.mark.timed
def test_first_tokens_come_first_and_latencies_are_of_the_engine(
    tmp_path: Path, address: str
) -> None:
    """Server: several replicas in one process; a sample's first token precedes its answer."""
    import dataclasses

    told: list[tuple[str, int]] = []

    class Stream(Answers):
        def first_token(self, request_id: int, token_id: int) -> None:
            told.append(("first", request_id))

        def done_all(self, completions: Sequence[Completion]) -> None:
            told.extend(("done", completion.request_id) for completion in completions)

    config = ReplicasConfig(
        engine="fake",
        address=address,
        num_replicas=4,
        replicas_per_actor=2,
        batch_ms=10,
        inner={"tokens_per_second": 400.0, "concurrency": 8, "output_len": 20},
    )
    context = dataclasses.replace(context_of(tmp_path), streaming=True)
    engine = load("replicas")(config, context)
    engine.start()
    try:
        sink = Stream()
        began_s = time.monotonic()
        for request in requests_of(32):
            engine.submit([request], sink)
        engine.drain()
        took_s = time.monotonic() - began_s
        rows = engine.describe()["replicas"]
    finally:
        engine.close()
    assert len(told) == 64
    assert all(told.index(("first", i)) < told.index(("done", i)) for i in range(32))
    assert [row["answered"] for row in rows] == [8] * 4  # all at once, spread evenly
    assert took_s < 1.4  # 20 tokens at 50/s, and two messages
    assert len({row["pid"] for row in rows}) == 2


def test_a_model_that_a_node_lacks_ends_the_start_by_name(tmp_path: Path, address: str) -> None:
    import dataclasses

    context = dataclasses.replace(context_of(tmp_path), model=tmp_path / "nowhere.gguf")
    engine = load("replicas")(ReplicasConfig(num_replicas=1, address=address), context)
    with pytest.raises(PacelineError, match=r"replica-0 on .* has no model at") as caught:
        engine.start()
    assert "same path on every node" in str(caught.value.hint)


def test_a_cluster_that_is_not_there_is_named(tmp_path: Path) -> None:
    config = ReplicasConfig(engine="fake", address="127.0.0.1:1")
    engine = load("replicas")(config, context_of(tmp_path))
    before = threading.active_count()
    with pytest.raises(EngineError, match=r"no Ray to reach at 127\.0\.0\.1:1"):
        engine.start()
    assert threading.active_count() <= before + 1


def test_more_replicas_than_the_cluster_holds_are_refused() -> None:
    from paceline.engines.replicas_plan import Need, Node, count_places, plan_places

    nodes = [
        Node(node_id=str(i), host=f"n{i}", address=f"10.0.0.{i}", cpus=16, gpus=gpus)
        for i, gpus in enumerate((8, 4, 0))
    ]
    need = Need(cpus=1, gpus=2)
    assert count_places(nodes, need) == 6
    spread = Counter(node.host for node in plan_places(nodes, need, 6))
    assert spread == {"n0": 4, "n1": 2}
    with pytest.raises(EngineError, match=r"room for 6 of 7.*n2 \(10.0.0.2\): 16 CPUs, 0 GPUs"):
        plan_places(nodes, need, 7)


def test_copies_of_copies_are_refused() -> None:
    with pytest.raises(InputError, match="copies of copies"):
        ReplicasConfig(engine="replicas")


def test_a_node_that_cannot_do_what_is_asked_of_all_is_named(address: str) -> None:
    from paceline.engines.replicas_cluster import Cluster

    cluster = Cluster(address, environment={})
    try:
        with pytest.raises(EngineError, match=r"\) did not answer: CalledProcessError: .*status 1"):
            cluster.on_every_node(subprocess.check_call, ["false"])
    finally:
        cluster.close()


def test_a_node_that_says_nothing_is_named_in_time(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from paceline.engines import replicas_cluster

    monkeypatch.setattr(replicas_cluster, "_ASK_NODES_TIMEOUT_S", 0.5)
    cluster = replicas_cluster.Cluster(address, environment={})
    try:
        with pytest.raises(EngineError, match=r"\) said nothing for 0\.5 s\.\n"):
            cluster.on_every_node(subprocess.check_call, ["sleep", "30"])
    finally:
        cluster.close()
