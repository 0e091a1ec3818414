"""Several ranks give what one gives, and a rank that dies ends the run."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.native import Engine, EngineConfig, NativeError
from paceline.native.parallel import deal

from .conftest import greedy, random_prompts, requests_of, run, save_toy

SMALL = {"max_live_sequences": 4, "max_step_tokens": 24, "page_len": 16}


def test_two_ranks_give_the_ids_of_one(tmp_path: Path) -> None:
    model = save_toy(tmp_path)
    prompts = random_prompts(5, vocab_size=320)
    results, _ = run(
        requests_of(prompts, 8), weights=str(tmp_path), tensor_parallel=2, kv_pages=20, **SMALL
    )
    assert [results[i].token_ids for i in range(5)] == [greedy(model, p, 8) for p in prompts]


@pytest.mark.gpu
def test_two_gpus_give_the_ids_of_one(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU here; this needs two")
    model = save_toy(tmp_path)
    prompts = random_prompts(12, vocab_size=320)
    results, _ = run(
        requests_of(prompts, 8),
        weights=str(tmp_path),
        device="cuda",
        dtype="float32",
        kv_pages=40,
        tensor_parallel=2,
        **SMALL,
    )
    assert [results[i].token_ids for i in range(12)] == [greedy(model, p, 8) for p in prompts]


def test_a_rank_that_dies_ends_the_run_in_an_error(tmp_path: Path) -> None:
    save_toy(tmp_path)
    engine = Engine(EngineConfig(weights=str(tmp_path), tensor_parallel=2, kv_pages=40, **SMALL))
    engine.start()
    try:
        engine.add(requests_of(random_prompts(4, vocab_size=320), 40))
        engine.step()
        (child,) = multiprocessing.active_children()
        child.kill()
        child.join()
        with pytest.raises(NativeError, match="rank"):
            engine.run_until_idle(lambda result: None)
    finally:
        engine.close()


def test_a_width_that_does_not_divide_is_refused(tmp_path: Path) -> None:
    save_toy(tmp_path, num_attention_heads=4, num_key_value_heads=1)
    engine = Engine(EngineConfig(weights=str(tmp_path), tensor_parallel=2, **SMALL))
    try:
        with pytest.raises(NativeError, match="num_kv_heads"):
            engine.start()
    finally:
        engine.close()


@given(costs=st.lists(st.integers(1, 1000), max_size=60), num_engines=st.integers(1, 8))
def test_deal_gives_every_request_to_one_engine_and_loads_them_alike(
    costs: list[int], num_engines: int
) -> None:
    dealt = deal(costs, num_engines)
    assert sorted(index for part in dealt for index in part) == list(range(len(costs)))
    loads = [sum(costs[index] for index in part) for part in dealt]
    assert max(loads) - min(loads) <= max(costs, default=0)
