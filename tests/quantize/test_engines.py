"""Quantised checkpoints on both engines: the reference's plain arithmetic, and the native one's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from toys import FORMATS_AND_KV, calibration_of, save_llama

from paceline.engines.reference_quantized import load_quantized, round_fp8, stored_format_of
from paceline.native import Engine, EngineConfig, GenRequest, NativeError
from paceline.quantize import QuantizeOptions, quantize

SMALL = {"max_live_sequences": 8, "max_step_tokens": 128, "page_len": 16}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("toy"), vocab_size=48)


@pytest.fixture(scope="module")
def made(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool], Path]:
    """A checkpoint of every format."""
    folder = tmp_path_factory.mktemp("made")
    found = {}
    for name, kv in FORMATS_AND_KV:
        out = found[name, kv] = folder / f"{name}-{kv}"
        quantize(
            toy,
            out,
            QuantizeOptions(format=name, is_kv_fp8=kv),
            samples=calibration_of(toy, vocab_size=48),
            progress=lambda what, fraction: None,
        )
    return found


def prompts(num: int = 24) -> list[list[int]]:
    generator = torch.Generator().manual_seed(9)
    return [torch.randint(3, 48, (6 + i,), generator=generator).tolist() for i in range(num)]


def native(folder: Path, **options: Any) -> tuple[list[int], dict[str, Any]]:
    """The first id after each prompt, and what the engine says of itself."""
    engine = Engine(EngineConfig(weights=str(folder), **SMALL, **options))
    answers: dict[int, int] = {}
    requests = [
        GenRequest(request_id=i, token_ids=ids, max_new_tokens=1) for i, ids in enumerate(prompts())
    ]
    try:
        engine.start()
        engine.add(requests)
        engine.run_until_idle(lambda done: answers.__setitem__(done.request_id, done.token_ids[0]))
        stats = engine.stats()
    finally:
        engine.close()
    return [answers[i] for i in range(len(requests))], stats


def reference(folder: Path) -> tuple[list[int], dict[str, Any], Any]:
    stored = stored_format_of(folder)
    assert stored is not None
    model, facts = load_quantized(folder, stored, dtype=torch.float32, options={})
    ids = []
    with torch.inference_mode():
        for prompt in prompts():
            logits = model(torch.tensor([prompt]), use_cache=False).logits[0, -1].clone()
            logits[2] = -torch.inf  # no EOS before the first token
            ids.append(int(logits.argmax()))
    return ids, facts, model


@pytest.mark.parametrize(("name", "kv"), [case for case in FORMATS_AND_KV if not case[1]])
def test_both_engines_give_the_same_tokens(
    made: dict[tuple[str, bool], Path], name: str, kv: bool
) -> None:
    """A wrong nibble order, group or scale on either side leaves few of them equal."""
    ours, stats = native(made[name, kv])
    theirs, facts, _ = reference(made[name, kv])
    # An FP8 activation may fall to either side of a half by the order of a sum.
    least = 23 if stats["activation_scales"] != "none" else 24
    assert sum(a == b for a, b in zip(ours, theirs, strict=True)) >= least
    assert stats["checkpoint_format"] == facts["checkpoint_format"] == name
    assert stats["activation_scales"] == facts["activation_scales"]
    assert len(set(ours)) > 6


@pytest.mark.parametrize(("name", "kv"), FORMATS_AND_KV)
def test_a_format_changes_the_logits_and_not_by_much(
    toy: Path, made: dict[tuple[str, bool], Path], name: str, kv: bool
) -> None:
    """A format that silently ran as float32 would leave them equal."""
    from transformers import AutoModelForCausalLM

    whole = AutoModelForCausalLM.from_pretrained(toy, dtype=torch.float32).eval()
    _, _, model = reference(made[name, kv])
    prompt = torch.tensor([prompts()[5]])
    with torch.inference_mode():
        exact, rounded = whole(prompt).logits, model(prompt).logits
    error = float((rounded - exact).norm() / exact.norm())
    # The toy is random: no weight makes up for another, as in a trained model.
    assert 1e-2 < error < (0.25 if name.startswith("fp8") else 0.6)


def test_the_native_engine_runs_what_is_stored(made: dict[tuple[str, bool], Path]) -> None:
    expected = {"fp8": "fp8-tensor", "fp8-token": "fp8-token", "w4a8": "w4a8", "nvfp4": "nvfp4"}
    for (name, kv), folder in made.items():
        engine = Engine(EngineConfig(weights=str(folder), **SMALL))
        assert engine.resolved.quantization == expected.get(name, name)
        assert (engine.resolved.kv_dtype == torch.float8_e4m3fn) == kv


def test_the_cache_rounds_keys_and_values_by_the_checkpoints_scales(
    made: dict[tuple[str, bool], Path],
) -> None:
    """On the reference: `generate` with the rounding cache stores multiples of the scale."""
    from paceline.engines.reference_quantized import new_cache

    _, _, model = reference(made["fp8", True])
    cache = new_cache(model)["past_key_values"]
    with torch.inference_mode():
        model(torch.tensor([prompts()[0]]), past_key_values=cache, use_cache=True)
    scale = load_file(made["fp8", True] / "model.safetensors")[
        "model.layers.1.self_attn.k_scale"
    ].item()
    keys = cache.layers[1].keys
    assert torch.equal(round_fp8(keys, scale), keys)
    assert not torch.equal(round_fp8(keys, scale * 1.1), keys)


def test_a_checkpoint_of_four_bits_is_not_rounded_a_second_time(
    made: dict[tuple[str, bool], Path],
) -> None:
    with pytest.raises(NativeError, match="rounded a second time"):
        Engine(EngineConfig(weights=str(made["w4a16", False]), quantization="fp8-tensor", **SMALL))


def test_four_bits_are_not_made_up_on_loading(toy: Path) -> None:
    engine = Engine(EngineConfig(weights=str(toy), quantization="w4a8", **SMALL))
    with pytest.raises(NativeError, match="paceline quantize"):
        engine.start()


@pytest.mark.parametrize("ways", [2])
def test_two_ranks_hold_whole_groups_and_give_the_tokens_of_one(
    toy: Path, made: dict[tuple[str, bool], Path], tmp_path: Path, ways: int
) -> None:
    with pytest.raises(NativeError, match="does not hold whole groups of 128"):
        native(made["w4a8", True], tensor_parallel=ways)
    quantize(
        toy,
        tmp_path / "out",
        QuantizeOptions(format="w4a16", group_len=64),
        samples=None,
        progress=lambda what, fraction: None,
    )
    alone, _ = native(tmp_path / "out")
    shared, _ = native(tmp_path / "out", tensor_parallel=ways)
    assert alone == shared


def test_random_weights_come_in_every_packed_format() -> None:
    for name in ("w4a8", "w4a16", "mxfp4", "nvfp4"):
        config = EngineConfig(weights="random:llama3-8b:layers=1", quantization=name, **SMALL)
        engine = Engine(config)
        assert engine.source.stored is not None
        assert engine.source.stored.name == name
        assert engine.resolved.kv_dtype == torch.float8_e4m3fn
        whole = slice(None)
        part = engine.source.part(
            "model.layers.0.self_attn.k_proj",
            rows=slice(0, 64),
            columns=whole,
            device=torch.device("cpu"),
        )
        assert part.weight_NK.shape == (64, 2048)
        assert part.weight_scale is not None
        assert part.weight_scale.shape[1] * engine.source.stored.group_len == 4096


@pytest.mark.parametrize("name", ["w4a8", "w4a16", "mxfp4", "nvfp4"])
def test_random_packed_weights_run(name: str) -> None:
    """What `bench engine --quantization` measures a speed with."""
    engine = Engine(EngineConfig(weights="random:tiny", quantization=name, **SMALL))
    engine.start()
    made: list[list[int]] = []
    engine.add([GenRequest(request_id=0, token_ids=[5, 6, 7], max_new_tokens=4, ignore_eos=True)])
    engine.run_until_idle(lambda done: made.append(done.token_ids))
    engine.close()
    assert len(made[0]) == 4


@pytest.mark.parametrize(
    "stated",
    [
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "compressed-tensors", "format": "int-quantized", "config_groups": {}},
        {
            "quant_method": "compressed-tensors",
            "format": "float-quantized",
            "config_groups": {
                "group_0": {
                    "weights": {"num_bits": 8, "type": "float", "strategy": "channel"},
                    "input_activations": {"num_bits": 8, "type": "float", "strategy": "tensor"},
                }
            },
        },
    ],
    ids=["gptq", "int8", "fixed activations for scales a channel"],
)
def test_a_format_that_is_not_run_is_refused_by_both_engines(
    toy: Path, tmp_path: Path, stated: dict[str, Any]
) -> None:
    import json

    from paceline.errors import CheckpointError

    for file in toy.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((toy / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": stated}))
    with pytest.raises(CheckpointError, match=r"not run|config_groups"):
        stored_format_of(tmp_path)
    with pytest.raises(NativeError, match=r"not run|config_groups"):
        Engine(EngineConfig(weights=str(tmp_path), **SMALL))
