"""Nodes that are lost at awkward moments: before Ray has noticed, while copies load, between them.

Ray has a stand-in here, whose nodes die and are noticed when a test says so; engines, messages and
what decides are the real ones.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stand_in_cluster import Died, StandInCluster, node_of

from paceline.engines import Completion, EngineContext, Request, replicas_crew
from paceline.engines.replicas import ReplicasEngine
from paceline.engines.replicas_settings import ReplicasConfig
from paceline.errors import EngineError, PacelineError

SOON_S = 20.0
LOOK_EVERY_S = 0.2


class Answers:
    """A Sink that counts."""

    def __init__(self) -> None:
        self.answered = Counter[int]()
        self.errors: list[PacelineError] = []

    def first_token(self, request_id: int, token_id: int) -> None:
        """Not wanted in these tests."""

    def done(self, completion: Completion) -> None:
        self.done_all((completion,))

    def done_all(self, completions: Sequence[Completion]) -> None:
        self.answered.update(completion.request_id for completion in completions)

    def failed(self, request_id: int, error: PacelineError) -> None:
        self.errors.append(error)

    def progress(self, num_tokens: int) -> None:
        """Not wanted in these tests."""


class Starting:
    """An engine that starts on a thread of its own, while things happen to its nodes."""

    def __init__(self, engine: ReplicasEngine) -> None:
        self.engine = engine
        self.error: PacelineError | None = None
        self._thread = threading.Thread(target=self._start, daemon=True)
        self._thread.start()

    def _start(self) -> None:
        try:
            self.engine.start()
        except PacelineError as error:
            self.error = error

    def is_over(self, within_s: float = SOON_S) -> bool:
        self._thread.join(within_s)
        return not self._thread.is_alive()

    def answers(self, count: int = 200) -> Answers:
        """Have samples answered, after the start."""
        assert self.is_over(), "the start hangs"
        assert self.error is None, self.error
        sink, draw = Answers(), random.Random(0)
        self.engine.submit(
            [Request(i, np.full(draw.randint(1, 30), 5, np.int32), 64) for i in range(count)], sink
        )
        self.engine.drain()
        assert sink.errors == []
        assert sink.answered == Counter(range(count))
        return sink

    def events(self) -> list[tuple[str, str]]:
        return [(one["what"], one["host"].split()[0]) for one in self.engine.describe()["events"]]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    for name in ("OMP_WAIT_POLICY", "OMP_NUM_THREADS"):  # a process of replicas sets them
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(replicas_crew, "_LOOK_FOR_NODES_EVERY_S", LOOK_EVERY_S)
    context = EngineContext(
        model=None, eos_token_id=2, vocabulary_size=1000, max_new_tokens=64, log_dir=tmp_path
    )
    engines = []

    def begin(cluster: StandInCluster, **changes: Any) -> Starting:
        fake = {"tokens_per_second": 20000.0, "output_len": 20}
        facts = {"engine": "fake", "backoff_s": 0.1, "report_s": 0.2, "inner": fake}
        config = ReplicasConfig(**(facts | changes))
        engine = ReplicasEngine(config, context, connect=lambda *_, **__: cluster)
        engines.append(engine)
        return Starting(engine)

    yield begin
    for engine in engines:
        engine.close()


def wait_until(is_so: Callable[[], Any], within_s: float = SOON_S) -> None:
    end_s = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < end_s
        time.sleep(0.01)


@contextmanager
def loading(cluster: StandInCluster, *names: str) -> Iterator[None]:
    """Copies on these nodes load until the end of the block."""
    loaded = threading.Event()
    cluster.is_slow = lambda node: node.node_id in names and loaded.wait(SOON_S)
    try:
        yield
    finally:
        loaded.set()


def test_a_node_that_died_before_ray_noticed_does_not_hang_the_start(start: Any) -> None:
    """A resume right after nodes were lost: the copy that was meant for the dead one is left."""
    cluster = StandInCluster(node_of("a"), node_of("b"), node_of("c"))
    cluster.die("b")
    run = start(cluster)
    wait_until(lambda: len(cluster.started) == 3)
    cluster.notice("b")
    run.answers()
    assert run.events() == [("not started", "b"), ("missing", "b")]
    rows = run.engine.describe()["replicas"]
    assert [(row["host"].split()[0], row["is_up"]) for row in rows] == [
        ("a", True), ("b", False), ("c", True),
    ]  # fmt: skip


def test_a_node_that_died_is_used_again_when_it_comes_back(start: Any) -> None:
    cluster = StandInCluster(node_of("a"), node_of("b"))
    cluster.die("b")
    run = start(cluster)
    wait_until(lambda: len(cluster.started) == 2)
    cluster.notice("b")
    run.answers()
    cluster.come(node_of("b"))
    wait_until(lambda: run.engine.head_of_seats().num_ready() == 2)
    run.answers()
    assert run.events() == [("not started", "b"), ("missing", "b"), ("back", "b")]


def test_a_set_number_of_replicas_is_kept_where_another_node_has_room(start: Any) -> None:
    cluster = StandInCluster(node_of("a", cpus=2), node_of("b", cpus=2))
    cluster.die("b")
    run = start(cluster, num_replicas=2)
    wait_until(lambda: len(cluster.started) == 2)
    cluster.notice("b")
    run.answers()
    assert sorted(cluster.started) == ["a", "a", "b"]
    assert run.events() == [("not started", "b"), ("back", "a")]


def test_a_set_number_of_replicas_that_cannot_be_had_is_one_error(start: Any) -> None:
    cluster = StandInCluster(node_of("a"), node_of("b"), node_of("c"))
    for name in "bc":
        cluster.die(name)
    run = start(cluster, num_replicas=3)
    wait_until(lambda: len(cluster.started) == 3)
    for name in "bc":
        cluster.notice(name)
    assert run.is_over()
    assert run.error is not None
    assert run.error.message == (
        "replica-1 on b (at b) has nowhere to run: its node is gone, and no other node has room."
    )
    assert "ray start" in str(run.error.hint)
    assert "num_replicas" in str(run.error.hint)


def test_without_cards_a_node_has_one_copy_also_when_another_is_gone(start: Any) -> None:
    """Two copies of a large model do not fit the memory of a node that has cores for both."""
    cluster = StandInCluster(node_of("a", cpus=8), node_of("b", cpus=8))
    cluster.die("b")
    run = start(cluster)
    wait_until(lambda: len(cluster.started) == 2)
    cluster.notice("b")
    run.answers()
    time.sleep(5 * LOOK_EVERY_S)
    assert cluster.started == ["a", "b"]


@pytest.mark.parametrize("restarts", [0, 3])
def test_a_node_that_dies_while_its_copy_loads_is_left(start: Any, restarts: int) -> None:
    """The first word is a doubt; the copy is started there again, and that one hangs."""
    cluster = StandInCluster(node_of("a"), node_of("b"))
    with loading(cluster, "b"):
        run = start(cluster, restarts=restarts)
        wait_until(lambda: len(cluster.started) == 2)
        cluster.die("b")
        wait_until(lambda: len(cluster.started) == 3)
        cluster.notice("b")
        run.answers()
    assert run.events() == [("not started", "b"), ("not started", "b"), ("missing", "b")]


def test_a_node_whose_copy_is_ready_dies_while_others_load(start: Any) -> None:
    cluster = StandInCluster(node_of("a"), node_of("b"))
    with loading(cluster, "a"):
        run = start(cluster)
        wait_until(lambda: len(cluster.started) == 2)
        wait_until(lambda: run.engine.head_of_seats().num_ready() == 1)
        cluster.die("b")
        cluster.notice("b")
        wait_until(lambda: ("missing", "b") in run.events())
        assert not run.is_over(0.1)
    run.answers()
    assert run.events() == [("lost", "b"), ("missing", "b")]


def test_a_copy_that_dies_while_it_loads_on_a_node_that_lives_ends_the_start(start: Any) -> None:
    """Out of memory, or a fault of the engine: to try again would only take long."""
    cluster = StandInCluster(node_of("a"), node_of("b"))
    with loading(cluster, "b"):
        run = start(cluster)
        wait_until(lambda: len(cluster.started) == 2)
        cluster.kill("b", Died("killed by signal 9"))
        assert run.is_over()
    assert run.error is not None
    assert run.error.message == "replica-1 on b (at b) did not start: Died: killed by signal 9"


def test_doubts_that_come_again_and_again_end_the_start(start: Any) -> None:
    cluster = StandInCluster(node_of("a"), node_of("b"))
    with loading(cluster, "b"):
        run = start(cluster, restarts=1)
        for count in (2, 3, 4):
            wait_until(lambda count=count: len(cluster.started) == count)
            cluster.die("b")
            cluster.come(node_of("b"))
        assert run.is_over()
    assert run.error is not None
    assert "replica-1 on b (at b) did not start: InDoubt" in run.error.message


def test_a_cluster_that_lost_all_its_nodes_ends_the_start(start: Any) -> None:
    cluster = StandInCluster(node_of("head", cpus=0), node_of("a"), node_of("b"))
    for name in "ab":
        cluster.die(name)
    run = start(cluster, dead_timeout_s=1.0)
    wait_until(lambda: len(cluster.started) == 2)
    for name in "ab":
        cluster.notice(name)
    assert run.is_over()
    assert isinstance(run.error, EngineError)
    assert "No replica is left" in run.error.message
    assert "its node is gone" in run.error.message


def test_a_run_whose_every_node_was_lost_goes_on_with_one_that_comes(start: Any) -> None:
    """Lost during the run, and late: Ray lists the dead one while its copy is started there."""
    cluster = StandInCluster(node_of("a"))
    run = start(cluster, restarts=1)
    run.answers()
    cluster.die("a")
    wait_until(lambda: len(cluster.started) == 2)
    cluster.notice("a")
    cluster.come(node_of("b"))
    run.answers()
    assert run.events() == [("lost", "a"), ("not started", "a"), ("back", "b")]


def test_a_node_that_is_cut_off_as_the_run_ends_is_missed_in_the_description(start: Any) -> None:
    cluster = StandInCluster(node_of("a"), node_of("b"))
    run = start(cluster, report_s=10.0, stall_timeout_s=60.0)
    run.answers()
    cluster.cut_off("b")
    facts = run.engine.describe()
    assert facts["counts"]["undescribed"] == 1
    assert any(
        note.startswith("1 of the processes did not say what they are") for note in facts["notes"]
    )
