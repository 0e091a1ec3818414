"""A sample that is too long for the engine is refused before anything starts, with the way out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paceline import config
from paceline.engines import EngineContext
from paceline.engines.context_limit import refuse_samples, stored_limit
from paceline.engines.managed_settings import ManagedConfig
from paceline.engines.native import NativeConfig, NativeEngine
from paceline.engines.reference_settings import ReferenceConfig
from paceline.engines.replicas_settings import ReplicasConfig
from paceline.errors import InputError
from paceline.harness import preflight
from paceline.harness.run import run
from paceline.harness.samples import read_samples
from paceline.mlperf import dataset, rules

LENS = dataset.load_dataset(config.demo_dataset()).prompt_lens
LONGEST, ANSWER = int(LENS.max()), rules.benchmark("smollm2-135m-99").max_new_tokens
NUM_LONGEST = int((LENS == LONGEST).sum())


def settings_of(*overrides: str) -> dict[str, config.Setting]:
    return config.read_settings(None, overrides)


def checkpoint(folder: Path, positions: int) -> Path:
    """As much of a checkpoint as is read before an engine loads it."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": positions}))
    return folder


def test_as_long_as_the_context_fits_and_one_token_more_does_not() -> None:
    limit = stored_limit(100)
    assert limit is not None
    refuse_samples(limit, [10, 90], 10)
    refuse_samples(limit, [], 10)
    with pytest.raises(InputError) as refusal:
        refuse_samples(limit, [10, 91, 95], 10)
    assert refusal.value.message == (
        "Too long for the engine: 2 of 3 samples; the longest prompt has 95 tokens and its answer "
        "up to 10, 105 together, and the checkpoint's context is 100."
    )
    assert "a context of 105 tokens or more" in str(refusal.value.hint)


@pytest.mark.parametrize("engine", ["native", "reference", "replicas"])
def test_a_run_is_refused_before_its_directory_is_made(tmp_path: Path, engine: str) -> None:
    model = checkpoint(tmp_path / "model", LONGEST + ANSWER - 1)
    settings = settings_of(f"engine.name={engine}", f"model.path={model}")
    decided = config.resolve(settings, None)
    with pytest.raises(
        InputError, match=f"{NUM_LONGEST} of {len(LENS)} samples; the longest prompt has {LONGEST}"
    ):
        run(decided, tmp_path / "run", settings=settings, recipe=None, observer=lambda _: None)
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="Too long for the engine"):  # preflight, tune, forecast
        preflight.examine(decided, seconds=0, observer=lambda _: None)


def test_only_the_samples_of_the_run_count(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "model", LONGEST + ANSWER - 1)
    words = (f"model.path={model}", "run.num_samples=1", "engine.name=native")
    decided = config.resolve(settings_of(*words), None)
    prompts = read_samples(decided).prompts
    config.refuse_long_samples(decided, [len(prompt) for prompt in prompts])


def test_a_checkpoint_that_does_not_say_is_left_to_the_engine(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "model", 16)
    assert config.context_limit(NativeConfig(), model) is not None
    (model / "config.json").write_text("{}")
    assert config.context_limit(NativeConfig(), model) is None
    (model / "config.json").write_text("no json")
    assert config.context_limit(ReferenceConfig(), model) is None
    assert config.context_limit(NativeConfig(), Path("random:tiny")) is None


def test_a_gguf_says_its_context_in_its_header() -> None:
    limit = config.context_limit(ReferenceConfig(), config.embedded_model())
    assert limit is not None
    assert limit.tokens == 8192


def test_the_smaller_of_context_and_given_cache_holds() -> None:
    cache = NativeConfig(kv_pages=8, page_len=32).context_limit(8192)
    assert cache is not None
    assert (cache.tokens, cache.said) == (256, "the KV cache of 8 pages")
    assert "kv_pages=9," in cache.mend(257)
    stored = NativeConfig(kv_pages=8, page_len=32).context_limit(100)
    assert stored is not None
    assert stored.tokens == 100
    copied = ReplicasConfig(inner=NativeConfig(kv_pages=8, page_len=32)).context_limit(8192)
    assert copied is not None
    assert copied.tokens == 256
    assert ReplicasConfig(engine="fake").context_limit(8192) is None


@pytest.mark.parametrize("preset", ["vllm", "vllm-rocm", "sglang", "trtllm", "llamacpp"])
def test_servers_hold_what_they_are_told_to(preset: str) -> None:
    limit = ManagedConfig(preset=preset, max_model_len=1000).context_limit(8192)
    assert limit is not None
    assert limit.tokens == 1000
    assert limit.mend(1200) == "--set engine.managed.max_model_len=1200"


@pytest.mark.parametrize(
    ("preset", "extra"),
    [
        ("vllm", "--max_model_len 4096"),
        ("sglang", "--context-length=4096"),
        ("trtllm", "--config own.yaml"),
        ("llamacpp", "-np 2"),
        ("llama-cpp-python", "--n_ctx 4096"),
    ],
)
def test_flags_of_the_users_own_leave_it_to_the_server(preset: str, extra: str) -> None:
    assert ManagedConfig(preset=preset).context_limit(8192) is not None
    assert ManagedConfig(preset=preset, extra_args=extra).context_limit(8192) is None


def test_a_server_without_such_a_flag_holds_what_the_checkpoint_does() -> None:
    limit = ManagedConfig(preset="paceline").context_limit(300)
    assert limit is not None
    assert limit.tokens == 300


@pytest.mark.parametrize(
    ("options", "longest", "words"),
    [
        ({}, 4096, "the checkpoint's context is 4096"),
        ({"kv_pages": 4}, 128, "the KV cache of 4 pages is 128"),
    ],
)
def test_the_native_engine_says_at_its_start_what_only_it_knows(
    tmp_path: Path, options: dict[str, int], longest: int, words: str
) -> None:
    """Weights drawn at random have positions that no file says."""
    pytest.importorskip("torch")
    for prompt_len, fits in ((longest - 8, True), (longest - 7, False)):
        engine = NativeEngine(
            NativeConfig(device="cpu", max_live_sequences=2, page_len=32, **options),  # type: ignore[arg-type]
            EngineContext(
                model=Path("random:tiny"),
                eos_token_id=2,
                vocabulary_size=128,
                max_new_tokens=8,
                log_dir=tmp_path,
                longest_prompt_len=prompt_len,
            ),
        )
        if fits:
            engine.start()
        else:
            with pytest.raises(InputError, match=words):
                engine.start()
        engine.close()
