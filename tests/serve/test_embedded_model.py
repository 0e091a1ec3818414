"""`paceline serve` as it comes: the embedded model, on the native engine, no recipe."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import openai
from serving import served

from paceline.config import embedded_model
from paceline.engines import Completion, EngineContext, Request
from paceline.engines.native import NativeConfig, NativeEngine
from paceline.mlperf.tokenizer import load_tokenizer

PROMPTS = ["The capital of France is", "Once upon a time, a small caf\u00e9 \u2615"]


class Kept:
    """A Sink that keeps completions."""

    def __init__(self) -> None:
        self.completions: dict[int, Completion] = {}

    def first_token(self, request_id: int, token_id: int) -> None:
        del request_id, token_id

    def done(self, completion: Completion) -> None:
        self.completions[completion.request_id] = completion

    def done_all(self, completions: list[Completion]) -> None:
        for completion in completions:
            self.done(completion)

    def failed(self, request_id: int, error: Exception) -> None:
        raise AssertionError(f"{request_id}: {error}")

    def progress(self, num_tokens: int) -> None:
        del num_tokens


def native_answers(prompts: list[list[int]]) -> list[list[int]]:
    context = EngineContext(
        model=embedded_model(),
        eos_token_id=2,
        vocabulary_size=49152,
        max_new_tokens=40,
        log_dir=Path(),
    )
    engine, sink = NativeEngine(NativeConfig(device="cpu"), context), Kept()
    engine.start()
    requests = [Request(i, np.asarray(ids, dtype=np.int32), 12, 0) for i, ids in enumerate(prompts)]
    engine.submit(requests, sink)
    engine.drain()
    engine.close()
    return [sink.completions[i].token_ids.tolist() for i in range(len(prompts))]


def test_the_server_gives_the_native_engines_tokens_whole_and_streamed() -> None:
    tokenizer = load_tokenizer(embedded_model())
    prompts = tokenizer.encode_batch(PROMPTS)
    expected = native_answers(prompts)
    settings = {"max_tokens": 12, "temperature": 0, "extra_body": {"return_token_ids": True}}
    with served(env=os.environ | {"OMP_NUM_THREADS": "1"}) as server:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            whole = client.completions.create(model=server.model, prompt=PROMPTS, **settings)
            parts = list(
                client.completions.create(
                    model=server.model, prompt=prompts[1], stream=True, **settings
                )
            )
            (model,) = client.models.list().data
        assert server.metric("time_to_first_token_seconds_count") == 3
    assert [choice.token_ids for choice in whole.choices] == expected
    texts = tokenizer.decode_batch(expected)
    assert [choice.text for choice in whole.choices] == texts
    choices = [part.choices[0] for part in parts]
    assert [i for choice in choices for i in choice.token_ids] == expected[1]
    assert "".join(choice.text for choice in choices) == texts[1]
    # A real stream: the answer does not come in one piece.
    assert len(parts) >= len(expected[1]) // 2
    assert (model.engine, model.simulated) == ("native", False)  # type: ignore[attr-defined]
    assert model.max_model_len == 8192  # type: ignore[attr-defined]
