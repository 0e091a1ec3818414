"""First token, then completion: what the SUT of Server tells LoadGen, and what it refuses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from paceline.engines import Completion, Request, Sink, TokenIds
from paceline.harness.offline import OfflineSut
from paceline.harness.samples import Samples
from paceline.harness.server import ServerSut
from paceline.harness.sut import EngineSut
from paceline.rundir import Journal

SAMPLES = Samples(
    prompts=[np.array([9, 9], np.int32)] * 6,
    expected_lens=[4] * 6,
    max_new_tokens=8,
    min_new_tokens=1,
)


class Waiting:
    """An engine that does nothing: the test answers in its place, through the sink."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def start(self) -> None: ...

    def submit(self, requests: Sequence[Request], sink: Sink) -> None:
        self.requests += requests

    def drain(self) -> None: ...

    def close(self) -> None: ...

    def describe(self) -> dict[str, object]:
        return {}


class LoadGen:
    """What LoadGen was told, in order: (what, response_id, ids)."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int, list[int]]] = []

    def first(self, responses: Sequence[tuple[int, TokenIds]]) -> None:
        self.told += [("first", response_id, ids.tolist()) for response_id, ids in responses]

    def done(self, responses: Sequence[tuple[int, TokenIds]]) -> None:
        self.told += [("done", response_id, ids.tolist()) for response_id, ids in responses]


def sut_of(told: LoadGen) -> ServerSut:
    return ServerSut(Waiting(), SAMPLES, percentile=99, respond=told.done, respond_first=told.first)


def completion(request_id: int, *ids: int) -> Completion:
    return Completion(request_id, np.array(ids, np.int32), "stop")


def test_a_first_token_is_told_at_once_and_the_completion_holds_it_again() -> None:
    told = LoadGen()
    sut = sut_of(told)
    sut.issue([(70, 3)])
    sut.first_token(0, 5)
    assert told.told == [("first", 70, [5])]
    sut.done(completion(0, 5, 6, 2))
    assert told.told == [("first", 70, [5]), ("done", 70, [5, 6, 2])]
    assert sut.error is None
    assert sut.counts.tokens == 3


def test_samples_may_be_answered_in_another_order_than_they_came() -> None:
    told = LoadGen()
    sut = sut_of(told)
    for response_id in (70, 71):
        sut.issue([(response_id, 3)])
    for request_id in (1, 0):
        sut.first_token(request_id, 5)
        sut.done(completion(request_id, 5, 2))
    assert [(what, response_id) for what, response_id, _ in told.told] == [
        *(("first", 71), ("done", 71)),
        *(("first", 70), ("done", 70)),
    ]


@pytest.mark.parametrize(
    ("calls", "message", "num_told"),
    [
        ([("done", 5)], "without having reported its first token", 0),
        ([("first", 4), ("done", 5)], "reported 4 as the first token of sample 3", 0),
        ([("first", 5), ("first", 5)], "first token of sample 3 twice", 0),
        ([("first", 5), ("done", 5), ("first", 5)], "after its answer", 1),
        ([("first", 5), ("done", 5), ("done", 5)], "answered sample 3 twice", 1),
    ],
)
def test_an_engine_that_breaks_the_order_ends_the_run_and_is_told_why(
    calls: list[tuple[str, int]], message: str, num_told: int
) -> None:
    """LoadGen hears no completion that it would have to call an error."""
    told = LoadGen()
    sut = sut_of(told)
    sut.issue([(70, 3)])
    for what, token_id in calls:
        if what == "first":
            sut.first_token(0, token_id)
        else:
            sut.done(completion(0, token_id, 2))
    assert sut.error is not None
    assert message in str(sut.error)
    num_done = [what for what, *_ in told.told].count("done")
    assert num_done == num_told


def test_offline_takes_no_first_token_and_needs_none() -> None:
    told = LoadGen()
    sut: EngineSut = OfflineSut(Waiting(), SAMPLES, respond=told.done)
    sut.issue([(70, 3), (71, 4)])
    sut.first_token(1, 5)
    sut.done_all([completion(1, 5, 2), completion(0, 5, 2)])
    assert [what for what, *_ in told.told] == ["done", "done"]
    assert sut.latency_figures() == {}


def test_a_resumed_sample_gives_its_first_token_and_then_its_completion(tmp_path: Path) -> None:
    told = LoadGen()
    sut = sut_of(told)
    journal = Journal(tmp_path / "journal.jsonl")
    sut.keep_order(journal, {3: ("stop", np.array([8, 9, 2], np.int32))})
    sut.issue([(70, 3)])
    assert told.told == [("first", 70, [8]), ("done", 70, [8, 9, 2])]
    # In accuracy mode the order is that of issue, whoever is done first.
    sut.issue([(71, 4)])
    sut.issue([(72, 5)])
    for request_id in (2, 1):
        sut.first_token(request_id, 6)
        sut.done(completion(request_id, 6, 2))
    journal.close()
    assert [(what, response_id) for what, response_id, _ in told.told[2:]] == [
        *(("first", 71), ("first", 72)),
        *(("done", 71), ("done", 72)),
    ]
    assert sut.counts.resumed == 1


def test_latencies_so_far_are_those_of_the_percentile() -> None:
    told = LoadGen()
    sut = ServerSut(Waiting(), SAMPLES, percentile=90, respond=told.done, respond_first=told.first)
    assert sut.latency_figures() == {}
    sut.issue([(70, 3)])
    sut.first_token(0, 5)
    assert list(sut.latency_figures()) == ["ttft_p90_ms"]
    sut.done(completion(0, 5, 6, 2))
    figures = sut.latency_figures()
    assert set(figures) == {"ttft_p90_ms", "tpot_p90_ms"}
    assert all(0 <= value < 1000 for value in figures.values())
