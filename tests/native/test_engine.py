"""The engine against transformers: the same ids, alone and in any company."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from paceline.native import Engine, EngineConfig, GenRequest, NativeError
from paceline.native.executor import warm_up_shapes

from .conftest import (
    GGUF_NAME,
    embedded_model_dir,
    greedy,
    random_prompts,
    requests_of,
    run,
    save_toy,
)

SMALL = {"max_live_sequences": 8, "max_step_tokens": 32, "page_len": 16}

TEXTS = [
    "The capital of France is",
    "<|im_start|>user\nWrite a haiku about rivers.<|im_end|>\n<|im_start|>assistant\n",
    "def fibonacci(n):\n",
    "<|im_start|>user\nHow many legs have three spiders?<|im_end|>\n<|im_start|>assistant\n",
    "Once upon a time, in a village by the sea, there lived an old clockmaker who",
    "List the planets of the solar system in order from the sun:\n1.",
]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_key_value_heads": 4},
        {"num_attention_heads": 8, "num_key_value_heads": 2},
        {"tie_word_embeddings": True},
        {"head_dim": 64},
        {"head_dim": 128},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 5e5,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ],
    ids=lambda changes: "-".join(f"{key}" for key in changes) or "grouped",
)
def test_toy_checkpoints_give_the_ids_of_transformers(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    model = save_toy(tmp_path, **changes)
    prompts = random_prompts(6, vocab_size=320)
    results, _ = run(requests_of(prompts, 12), weights=str(tmp_path), **SMALL)
    for i, prompt in enumerate(prompts):
        assert results[i].token_ids == greedy(model, prompt, 12)


def test_shards_load_as_one_file_does(tmp_path: Path) -> None:
    model = save_toy(tmp_path, shard="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    prompts = random_prompts(2, vocab_size=320)
    results, _ = run(requests_of(prompts, 8), weights=str(tmp_path), **SMALL)
    assert results[0].token_ids == greedy(model, prompts[0], 8)


@pytest.mark.parametrize("budget", [3, 17, 256])
@pytest.mark.parametrize("pages", [6, 40])
def test_ids_do_not_depend_on_the_company_the_chunks_or_preemption(
    tmp_path: Path, budget: int, pages: int
) -> None:
    model = save_toy(tmp_path)
    prompts = random_prompts(10, vocab_size=320, longest=50)
    results, stats = run(
        requests_of(prompts, 20),
        weights=str(tmp_path),
        max_step_tokens=budget,
        max_live_sequences=5,
        page_len=16,
        kv_pages=pages,
    )
    for i, prompt in enumerate(prompts):
        assert results[i].token_ids == greedy(model, prompt, 20)
    if pages == 6:
        assert stats["preemptions"] > 0
    assert stats["kv_used_fraction"] == 0.0


def test_the_first_end_of_sequence_ends_the_output_and_is_kept_once(tmp_path: Path) -> None:
    model = save_toy(tmp_path)
    prompt = random_prompts(1, vocab_size=320)[0]
    ids = greedy(model, prompt, 12)
    eos = ids[4]
    length = ids.index(eos) + 1
    request = GenRequest(request_id=0, token_ids=prompt, max_new_tokens=12)
    results, stats = run([request], weights=str(tmp_path), eos_token_id=eos, **SMALL)
    if length > 1:
        assert results[0].token_ids == ids[:length]
    assert results[0].finish_reason == "stop"
    assert results[0].token_ids.count(eos) == 1
    assert results[0].first_token_ns <= results[0].done_ns
    assert stats["dropped_tokens"] == 1


def test_min_new_tokens_bans_the_end_of_sequence_as_transformers_does(tmp_path: Path) -> None:
    model = save_toy(tmp_path)
    prompt = random_prompts(1, vocab_size=320)[0]
    eos = greedy(model, prompt, 1)[0]
    model.generation_config.eos_token_id = eos
    expected = greedy(model, prompt, 6)
    request = GenRequest(request_id=0, token_ids=prompt, max_new_tokens=6)
    results, _ = run([request], weights=str(tmp_path), eos_token_id=eos, **SMALL)
    assert results[0].token_ids == expected
    assert results[0].token_ids[0] != eos


def test_ignore_eos_runs_to_the_limit(tmp_path: Path) -> None:
    model = save_toy(tmp_path)
    prompt = random_prompts(1, vocab_size=320)[0]
    eos = greedy(model, prompt, 3)[2]
    request = GenRequest(request_id=7, token_ids=prompt, max_new_tokens=9, ignore_eos=True)
    results, _ = run([request], weights=str(tmp_path), eos_token_id=eos, **SMALL)
    assert len(results[7].token_ids) == 9
    assert results[7].finish_reason == "length"


def test_a_nan_in_the_weights_ends_in_an_error_and_no_token(tmp_path: Path) -> None:
    save_toy(tmp_path)
    engine = Engine(EngineConfig(weights=str(tmp_path), **SMALL))
    engine.start()
    norm_D = engine.executor.llama.weights.final_norm_D.clone()
    norm_D[3] = float("nan")
    engine.executor.llama.weights.final_norm_D = norm_D
    engine.add(requests_of([[5, 6, 7]], 4))
    results: list[Any] = []
    with pytest.raises(NativeError, match="NaN"):
        engine.run_until_idle(results.append)
    assert results == []
    with pytest.raises(NativeError, match="NaN"):
        engine.step()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "dtype"),
        ({"quantization": "fp4"}, "quantization"),
        ({"page_len": 20}, "page_len"),
        ({"kv_dtype": "bfloat16"}, "kv_dtype"),
        ({"weights": "random:gpt"}, "random:gpt"),
        ({"weights": "/nowhere"}, "/nowhere"),
        ({"max_step_tokens": 0}, "max_step_tokens"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(NativeError, match=message):
        Engine(EngineConfig(**{"weights": "random:tiny", **options}))


def test_an_id_outside_the_vocabulary_is_refused() -> None:
    engine = Engine(EngineConfig(weights="random:tiny", **SMALL))
    engine.start()
    with pytest.raises(NativeError, match="not under 128"):
        engine.add(requests_of([[1, 128]], 4))


@pytest.mark.parametrize(
    ("budget", "live"), [(1, 1), (64, 8), (2048, 512), (2047, 4096), (9000, 3)]
)
def test_warm_up_fills_the_step_and_no_chunk_outgrows_a_page_table_row(
    budget: int, live: int
) -> None:
    # A longer chunk reads past the page table: an illegal address, when the memory there is not 0.
    config = Engine(
        EngineConfig(
            weights="random:tiny",
            max_step_tokens=budget,
            max_live_sequences=live,
            max_context_len=1024,
        )
    ).resolved
    shapes = warm_up_shapes(config)
    assert max(num_decodes + sum(chunks) for num_decodes, chunks in shapes) == budget
    assert all(0 < length <= 1024 for _, chunks in shapes for length in chunks)


RECORDED: dict[str, Any] = {
    "weights": "random:llama3-8b:layers=2",
    "device": "cuda",
    "dtype": "bfloat16",
    # The end-of-sequence id is given: a recorded step must not read a tensor that it replaced.
    "eos_token_id": 5,
    "max_live_sequences": 64,
    "max_context_len": 512,
    "kv_pages": 1500,
}


def launched_and_recorded(
    requests: list[GenRequest], quantization: str
) -> tuple[list[list[int]], list[list[int]]]:
    """The ids of each request, steps launched kernel by kernel and steps recorded."""
    options = {**RECORDED, "quantization": quantization}
    launched, _ = run(requests, use_cuda_graphs=False, **options)
    recorded, stats = run(requests, **options)
    assert stats["graph_steps"] > 10
    return [launched[i].token_ids for i in launched], [recorded[i].token_ids for i in launched]


@pytest.mark.gpu
@pytest.mark.parametrize("quantization", ["none", "fp8-token", "fp8-tensor"])
def test_a_recorded_step_gives_the_ids_of_a_launched_one(quantization: str) -> None:
    # 64 sequences that begin and end together: no recorded step has a padding row.
    requests = requests_of(random_prompts(64, vocab_size=128, longest=30), 24, ignore_eos=True)
    launched, recorded = launched_and_recorded(requests, quantization)
    assert recorded == launched


# Not fp8-tensor: cuBLASLt chooses that product by the number of rows, so that padding changes
# sums as another batch does; two launched runs of 64 and 48 live sequences agree on 58 of 90.
@pytest.mark.gpu
@pytest.mark.parametrize("quantization", ["none", "fp8-token"])
def test_recorded_steps_give_the_ids_of_launched_ones(quantization: str) -> None:
    requests = requests_of(random_prompts(90, vocab_size=128, longest=300), 24, ignore_eos=True)
    launched, recorded = launched_and_recorded(requests, quantization)
    same = sum(one == other for one, other in zip(recorded, launched, strict=True))
    assert same >= 0.9 * len(launched)  # padding rows may change the order of a sum


def test_requests_may_come_while_the_engine_runs(tmp_path: Path) -> None:
    model = save_toy(tmp_path)
    prompts = random_prompts(3, vocab_size=320)
    engine = Engine(EngineConfig(weights=str(tmp_path), **SMALL))
    engine.start()
    requests = requests_of(prompts, 6)
    results = {}
    for request in requests:
        engine.add([request])
        for result in engine.step():
            results[result.request_id] = result
    engine.run_until_idle(lambda result: results.__setitem__(result.request_id, result))
    assert [results[i].token_ids for i in range(3)] == [greedy(model, p, 6) for p in prompts]


@pytest.mark.slow
def test_the_embedded_model_gives_the_ids_of_transformers_in_any_company() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory = embedded_model_dir()
    torch.set_num_threads(2)
    tokenizer = AutoTokenizer.from_pretrained(directory, gguf_file=GGUF_NAME)
    model = AutoModelForCausalLM.from_pretrained(
        directory, gguf_file=GGUF_NAME, dtype=torch.float32
    ).eval()
    model.generation_config.eos_token_id = 2
    prompts = [tokenizer(text)["input_ids"] for text in TEXTS]
    expected = [greedy(model, prompt, 40) for prompt in prompts]
    weights = str(directory / GGUF_NAME)
    options = {"weights": weights, "max_context_len": 512, "page_len": 32}
    alone, _ = run(requests_of(prompts, 40), **options, max_live_sequences=1)
    order = list(range(len(prompts)))
    random.Random(3).shuffle(order)
    requests = requests_of(prompts, 40)
    mixed, _ = run(
        [requests[i] for i in order], **options, max_live_sequences=4, max_step_tokens=24
    )
    for i, ids in enumerate(expected):
        assert alone[i].token_ids == ids
        assert mixed[i].token_ids == ids
