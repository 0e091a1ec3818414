"""Checkpoints of every layout: the values that reach the layers are the values stored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from paceline.native import Engine, EngineConfig, NativeError
from paceline.native.checkpoint import SafetensorsSource
from paceline.native.fused import FP8_DTYPE
from paceline.native.gemm import quantize_weight

from .conftest import greedy, random_prompts, requests_of, run, save_toy

SMALL = {"max_live_sequences": 4, "max_step_tokens": 64, "page_len": 16}
COMPRESSED_TENSORS = {"quant_method": "compressed-tensors", "format": "float-quantized"}
MODELOPT = {"quant_method": "modelopt", "quant_algo": "FP8"}


def quantize_checkpoint(
    directory: Path, *, layout: dict[str, str], per_channel: bool, has_input_scales: bool
) -> Any:
    """A toy checkpoint rewritten in FP8; returns transformers' model of its dequantised values."""
    model = save_toy(directory)
    tensors = load_file(directory / "model.safetensors")
    for name, weight in list(tensors.items()):
        if "_proj" not in name:
            continue
        codes, scale = quantize_weight(weight, per_channel=per_channel)
        stem = name.removesuffix(".weight")
        tensors[name] = codes
        is_compressed = layout is COMPRESSED_TENSORS
        tensors[f"{stem}.weight_scale"] = (
            scale[:, None] if per_channel else (scale.reshape(1) if is_compressed else scale)
        ).contiguous()
        if has_input_scales:
            tensors[f"{stem}.input_scale"] = torch.tensor(0.05)
        value = codes.float() * (scale[:, None] if per_channel else scale)
        model.get_parameter(name).data.copy_(value)
    for layer in range(2):
        stem = f"model.layers.{layer}.self_attn"
        own = "" if layout is COMPRESSED_TENSORS else "{}_proj."
        for which in "kv":
            tensors[f"{stem}.{own.format(which)}{which}_scale"] = torch.tensor(0.25)
    save_file(tensors, directory / "model.safetensors")
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": layout}))
    return model


@pytest.mark.parametrize("layout", [COMPRESSED_TENSORS, MODELOPT], ids=["compressed", "modelopt"])
@pytest.mark.parametrize("per_channel", [False, True], ids=["tensor", "channel"])
def test_an_fp8_checkpoint_means_its_dequantised_values(
    tmp_path: Path, layout: dict[str, str], per_channel: bool
) -> None:
    model = quantize_checkpoint(
        tmp_path, layout=layout, per_channel=per_channel, has_input_scales=False
    )
    prompts = random_prompts(3, vocab_size=320)
    results, _ = run(requests_of(prompts, 10), weights=str(tmp_path), quantization="none", **SMALL)
    assert [results[i].token_ids for i in range(3)] == [greedy(model, p, 10) for p in prompts]


@pytest.mark.parametrize("layout", [COMPRESSED_TENSORS, MODELOPT], ids=["compressed", "modelopt"])
def test_fp8_codes_and_scales_are_kept_where_the_layout_allows(
    tmp_path: Path, layout: dict[str, str]
) -> None:
    quantize_checkpoint(tmp_path, layout=layout, per_channel=False, has_input_scales=True)
    stored = load_file(tmp_path / "model.safetensors")
    engine = Engine(EngineConfig(weights=str(tmp_path), quantization="fp8-tensor", **SMALL))
    engine.start()
    layer = engine.executor.llama.weights.layers[1]
    codes = stored["model.layers.1.mlp.down_proj.weight"]
    assert torch.equal(layer.down.weight_NK.view(torch.uint8), codes.view(torch.uint8))
    assert layer.down.input_scale is not None
    assert float(layer.down.input_scale) == pytest.approx(0.05)
    assert engine.stats()["activation_scales"] == "fixed"
    assert (layer.kv_scale.key, layer.kv_scale.value) == (0.25, 0.25)


def test_parts_of_different_scale_are_requantised_to_one(tmp_path: Path) -> None:
    quantize_checkpoint(
        tmp_path, layout=COMPRESSED_TENSORS, per_channel=False, has_input_scales=False
    )
    stored = load_file(tmp_path / "model.safetensors")
    engine = Engine(EngineConfig(weights=str(tmp_path), quantization="fp8-tensor", **SMALL))
    engine.start()
    fused = engine.executor.llama.weights.layers[0].qkv
    parts = []
    for name in "qkv":
        stem = f"model.layers.0.self_attn.{name}_proj"
        parts.append(stored[f"{stem}.weight"].float() * stored[f"{stem}.weight_scale"])
    want = torch.cat(parts)
    got = fused.weight_NK.float() * fused.weight_scale
    assert fused.weight_NK.dtype == FP8_DTYPE
    assert (got - want).norm() / want.norm() < 0.05
    # Without a fixed scale in the checkpoint, the activations' is found per token.
    assert fused.input_scale is None


@pytest.mark.parametrize("quantization", ["fp8-tensor", "fp8-token"])
def test_fp8_arithmetic_stays_near_float32(tmp_path: Path, quantization: str) -> None:
    """A wrong scale anywhere in the FP8 path would leave no first token the same."""
    model = save_toy(tmp_path, vocab_size=24)
    prompts = random_prompts(24, vocab_size=24)
    results, stats = run(
        requests_of(prompts, 1), weights=str(tmp_path), quantization=quantization, **SMALL
    )
    same = sum(results[i].token_ids == greedy(model, p, 1) for i, p in enumerate(prompts))
    assert same >= 18
    assert stats["kv_dtype"] == "float8_e4m3fn"


def test_random_weights_have_the_named_shape_and_layer_count() -> None:
    engine = Engine(EngineConfig(weights="random:tiny:layers=3", quantization="fp8-tensor"))
    assert engine.source.config.num_layers == 3
    engine.start()
    assert engine.executor.llama.weights.layers[2].gate_up.weight_NK.shape == (256, 64)


def test_llama2_70b_has_the_linear_parameters_of_the_model() -> None:
    engine = Engine(EngineConfig(weights="random:llama2-70b"))
    assert engine.source.config.linear_parameters == 68_451_041_280


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    save_toy(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    engine = Engine(EngineConfig(weights=str(tmp_path), **SMALL))
    with pytest.raises(NativeError, match=r"layers\.1\.mlp\.up_proj"):
        engine.start()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "not llama"),
        ({"attention_bias": True}, "bias"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "yarn"),
    ],
)
def test_another_architecture_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    save_toy(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(NativeError, match=message):
        SafetensorsSource(tmp_path)


def test_progress_reaches_the_end(tmp_path: Path) -> None:
    save_toy(tmp_path)
    seen: list[tuple[str, float]] = []
    Engine(EngineConfig(weights=str(tmp_path), **SMALL)).start(
        lambda stage, fraction: seen.append((stage, fraction))
    )
    assert ("weights", 0.5) in seen
    assert ("weights", 1.0) in seen
    assert ("cache", 1.0) in seen
