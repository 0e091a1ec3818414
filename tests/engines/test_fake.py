"""The fake engine: the same answers every time, at the pace it was told."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from paceline.engines import Completion, EngineContext, Request
from paceline.engines.fake import FakeConfig, FakeEngine
from paceline.errors import InputError, PacelineError

pytestmark = pytest.mark.timed


class Collector:
    """A Sink that keeps everything."""

    def __init__(self) -> None:
        self.completions: dict[int, Completion] = {}
        self.failures: dict[int, PacelineError] = {}
        self.first: dict[int, int] = {}
        self.made = 0
        self.first_s: dict[int, float] = {}
        self.done_s: dict[int, float] = {}

    def first_token(self, request_id: int, token_id: int) -> None:
        self.first[request_id] = token_id
        self.first_s[request_id] = time.perf_counter()

    def done(self, completion: Completion) -> None:
        assert completion.request_id not in self.completions
        self.completions[completion.request_id] = completion
        self.done_s[completion.request_id] = time.perf_counter()

    def done_all(self, completions: Sequence[Completion]) -> None:
        for completion in completions:
            self.done(completion)

    def failed(self, request_id: int, error: PacelineError) -> None:
        self.failures[request_id] = error

    def progress(self, num_tokens: int) -> None:
        self.made += num_tokens


def requests(count: int, *, max_new_tokens: int = 1024) -> list[Request]:
    rng = np.random.default_rng(5)
    return [
        Request(i, rng.integers(3, 32000, 20).astype(np.int32), max_new_tokens)
        for i in range(count)
    ]


def answers(config: FakeConfig, asked: list[Request]) -> Collector:
    context = EngineContext(
        model=None,
        eos_token_id=2,
        vocabulary_size=32000,
        max_new_tokens=1024,
        log_dir=Path(),
    )
    engine, sink = FakeEngine(config, context), Collector()
    engine.start()
    engine.submit(asked, sink)
    engine.drain()
    engine.close()
    return sink


def test_answers_depend_on_the_prompt_alone() -> None:
    first = answers(FakeConfig(output_len=30), requests(8)).completions
    again = answers(FakeConfig(output_len=30), list(reversed(requests(8)))).completions
    for request_id, completion in first.items():
        np.testing.assert_array_equal(completion.token_ids, again[request_id].token_ids)


def test_an_answer_ends_with_one_eos_and_holds_no_special_token_before() -> None:
    for completion in answers(FakeConfig(output_len=50), requests(20)).completions.values():
        assert completion.token_ids[-1] == 2
        assert (completion.token_ids[:-1] >= 3).all()
        assert (completion.token_ids < 32000).all()
        assert len(completion.token_ids) == 50


def test_an_answer_is_never_longer_than_its_limit() -> None:
    made = answers(FakeConfig(output_len=300), requests(4, max_new_tokens=10))
    assert {len(c.token_ids) for c in made.completions.values()} == {10}


def test_the_pace_is_kept() -> None:
    start_s = time.perf_counter()
    made = answers(FakeConfig(output_len=100, tokens_per_second=2000), requests(10))
    elapsed_s = time.perf_counter() - start_s
    assert made.made == 1000
    assert 0.49 <= elapsed_s < 1.5


def test_requests_at_once_share_the_pace_and_the_others_wait() -> None:
    """A queue whose capacity is known: 2,000 tokens/s, of which each of four gets 500."""
    config = FakeConfig(output_len=50, tokens_per_second=2000, concurrency=4)
    start_s = time.perf_counter()
    made = answers(config, requests(8))
    elapsed_s = time.perf_counter() - start_s
    assert 0.19 <= elapsed_s < 1.0
    assert list(made.completions) == list(range(8))
    assert 0.09 <= made.first_s[4] - made.first_s[0] < 0.5
    assert 0.09 <= made.done_s[0] - made.first_s[0] < 0.5


def test_requests_that_come_later_are_taken_up_meanwhile() -> None:
    context = EngineContext(
        model=None, eos_token_id=2, vocabulary_size=32000, max_new_tokens=1024, log_dir=Path()
    )
    config = FakeConfig(output_len=100, tokens_per_second=400, concurrency=2)
    engine, sink = FakeEngine(config, context), Collector()
    engine.start()
    first, second = requests(2)
    engine.submit([first], sink)
    time.sleep(0.1)
    engine.submit([second], sink)
    engine.drain()
    engine.close()
    assert sink.first_s[1] < sink.done_s[0] < sink.done_s[1]


def test_the_first_token_is_that_of_the_answer() -> None:
    made = answers(FakeConfig(), requests(5))
    assert made.first == {i: int(c.token_ids[0]) for i, c in made.completions.items()}


def test_a_failure_on_request_is_told_once_and_the_rest_is_answered() -> None:
    made = answers(FakeConfig(fail_after=3), requests(6))
    assert list(made.failures) == [3]
    assert len(made.completions) == 5


def test_answers_of_a_file_that_is_no_dataset_are_refused(tmp_path: Path) -> None:
    bad = tmp_path / "answers.parquet"
    bad.write_bytes(b"no parquet")
    with pytest.raises(InputError, match=r"answers\.parquet"):
        answers(FakeConfig(answers=str(bad)), requests(1))
    pq.write_table(pa.table({"other": [1]}), bad)
    with pytest.raises(InputError, match=r"answers\.parquet"):
        answers(FakeConfig(answers=str(bad)), requests(1))


def test_prompts_that_a_file_has_not_are_answered_by_the_formula_and_counted(
    tmp_path: Path,
) -> None:
    asked = requests(3)
    table = {"tok_input": [asked[0].token_ids.tolist()], "tok_output": [[7, 8, 2]]}
    pq.write_table(pa.table(table), tmp_path / "one.parquet")
    engine = FakeEngine(
        FakeConfig(answers=str(tmp_path / "one.parquet"), output_len=5),
        EngineContext(
            model=None, eos_token_id=2, vocabulary_size=32000, max_new_tokens=9, log_dir=Path()
        ),
    )
    sink = Collector()
    engine.start()
    engine.submit(asked, sink)
    engine.drain()
    engine.close()
    assert [len(sink.completions[i].token_ids) for i in range(3)] == [3, 5, 5]
    assert engine.describe()["notes"] == [f"2 prompts are not in {tmp_path / 'one.parquet'}."]


@pytest.mark.parametrize("options", [{"tokens_per_second": -1.0}, {"output_len": 1}])
def test_impossible_settings_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(InputError):
        FakeConfig(**options)
