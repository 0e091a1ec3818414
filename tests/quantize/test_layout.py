"""What is written is what compressed-tensors reads, and what our engines make of it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from toys import FORMATS_AND_KV, calibration_of, save_llama

from paceline.native.checkpoint import SafetensorsSource
from paceline.native.weights import dequantize
from paceline.quantize import QuantizeOptions, quantize

WHOLE = slice(None)
LINEARS = [
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("toy"))


def convert(toy: Path, out: Path, name: str, *, kv: bool = False, **options: Any) -> Path:
    quantize(
        toy,
        out,
        QuantizeOptions(format=name, is_kv_fp8=kv, **options),
        samples=calibration_of(toy),
        progress=lambda what, fraction: None,
    )
    return out


def decompress(folder: Path, layer: str) -> torch.Tensor:
    """The library's own reading of one layer, from the config and the tensors on disk."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from compressed_tensors.compressors import BaseCompressor
        from compressed_tensors.quantization import QuantizationConfig

    stated = json.loads((folder / "config.json").read_text())["quantization_config"]
    config = QuantizationConfig.model_validate(stated)
    tensors = load_file(folder / "model.safetensors")
    own = {n.removeprefix(f"{layer}."): t for n, t in tensors.items() if n.startswith(f"{layer}.")}
    compressor = BaseCompressor.get_value_from_registry(config.format)
    scheme = config.config_groups["group_0"]
    values: torch.Tensor = compressor.decompress(own, scheme)["weight"]
    return values.float()


def leave_multiples_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library multiplies w4a8's code and scale, and has no FP8 product to round them for."""
    monkeypatch.setattr("paceline.native.packed.round_significand", lambda value: value)


@pytest.mark.parametrize(("name", "kv"), FORMATS_AND_KV)
def test_compressed_tensors_reads_back_the_values_that_our_engines_read(
    toy: Path, tmp_path: Path, name: str, kv: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = convert(toy, tmp_path / "out", name, kv=kv)
    source = SafetensorsSource(folder)
    if name == "w4a8":
        leave_multiples_as_they_are(monkeypatch)
    for layer in (f"model.layers.1.{linear}" for linear in LINEARS):
        part = source.part(layer, rows=WHOLE, columns=WHOLE, device=torch.device("cpu"))
        ours, theirs = dequantize(part), decompress(folder, layer)
        # The library multiplies in the scale's type, bfloat16 where scales are.
        assert torch.allclose(ours, theirs, rtol=2.0**-7, atol=0.0), layer
        assert bool(((ours == 0) == (theirs == 0)).all())


@pytest.mark.parametrize(("name", "kv"), FORMATS_AND_KV)
def test_the_names_shapes_and_types_are_those_that_vllm_loads(
    toy: Path, tmp_path: Path, name: str, kv: bool
) -> None:
    """The parameters that vLLM's schemes create, by format: a name too many fails its loader."""
    folder = convert(toy, tmp_path / "out", name, kv=kv)
    tensors = load_file(folder / "model.safetensors")
    stem, (rows, columns) = "model.layers.0.mlp.down_proj", (128, 256)
    own = {
        end.removeprefix(f"{stem}."): (tuple(tensor.shape), tensor.dtype)
        for end, tensor in tensors.items()
        if end.startswith(f"{stem}.")
    }
    int4 = {
        "weight_packed": ((rows, columns // 8), torch.int32),
        "weight_scale": ((rows, columns // 128), torch.bfloat16),
        "weight_shape": ((2,), torch.int64),
    }
    expected = {
        "fp8": {
            "weight": ((rows, columns), torch.float8_e4m3fn),
            "weight_scale": ((1,), torch.float32),
            "input_scale": ((1,), torch.float32),
        },
        "fp8-token": {
            "weight": ((rows, columns), torch.float8_e4m3fn),
            "weight_scale": ((rows, 1), torch.float32),
        },
        "w4a16": int4,
        "w4a8": int4,
        "mxfp4": {
            "weight_packed": ((rows, columns // 2), torch.uint8),
            "weight_scale": ((rows, columns // 32), torch.uint8),
        },
        "nvfp4": {
            "weight_packed": ((rows, columns // 2), torch.uint8),
            "weight_scale": ((rows, columns // 16), torch.float8_e4m3fn),
            "weight_global_scale": ((1,), torch.float32),
        },
    }[name]
    assert own == expected
    kv_names = {n for n in tensors if n.endswith((".k_scale", ".v_scale"))}
    wanted = {f"model.layers.{i}.self_attn.{w}_scale" for i in range(2) for w in "kv"}
    assert kv_names == (wanted if kv else set())
    config = json.loads((folder / "config.json").read_text())
    assert config["quantization_config"]["ignore"] == ["lm_head"]
    assert (config["quantization_config"]["kv_cache_scheme"] is not None) == kv
    assert tensors["lm_head.weight"].dtype == torch.bfloat16


def test_products_that_engines_run_as_one_share_the_scale_of_the_whole(
    toy: Path, tmp_path: Path
) -> None:
    """A second rounding of two of three parts would otherwise follow when they are joined."""
    tensors = load_file(convert(toy, tmp_path / "a", "fp8") / "model.safetensors")
    stem = "model.layers.0.self_attn"
    for end in ("weight_scale", "input_scale"):
        assert len({float(tensors[f"{stem}.{p}_proj.{end}"]) for p in "qkv"}) == 1
    tensors = load_file(convert(toy, tmp_path / "b", "nvfp4") / "model.safetensors")
    assert len({float(tensors[f"{stem}.{p}_proj.weight_global_scale"]) for p in "qkv"}) == 1


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("fp8", 0.04),
        ("fp8-token", 0.04),
        ("w4a16", 0.12),
        ("w4a8", 0.12),
        ("mxfp4", 0.16),
        ("nvfp4", 0.12),
    ],
)
def test_a_weight_is_as_near_as_its_format_allows(
    toy: Path, tmp_path: Path, name: str, error: float
) -> None:
    folder = convert(toy, tmp_path / "out", name)
    before = load_file(toy / "model.safetensors")["model.layers.0.mlp.up_proj.weight"].float()
    part = SafetensorsSource(folder).part(
        "model.layers.0.mlp.up_proj", rows=WHOLE, columns=WHOLE, device=torch.device("cpu")
    )
    assert float((dequantize(part) - before).norm() / before.norm()) < error


@pytest.mark.parametrize("shard_bytes", [1 << 40, 40_000])
@pytest.mark.parametrize("name", ["fp8", "w4a8"])
def test_the_same_inputs_give_the_same_bytes(
    toy: Path, tmp_path: Path, name: str, shard_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paceline.quantize.store.SHARD_BYTES", shard_bytes)
    gptq = {"uses_gptq": True} if name == "w4a8" else {}
    first, second = (
        convert(toy, tmp_path / out, name, kv=True, smooth_alpha=0.5, **gptq) for out in "ab"
    )
    files = sorted(path.name for path in first.iterdir())
    assert files == sorted(path.name for path in second.iterdir())
    assert all((first / f).read_bytes() == (second / f).read_bytes() for f in files)
    assert ("model.safetensors.index.json" in files) == (shard_bytes == 40_000)
    SafetensorsSource(first).vector("model.norm.weight", torch.device("cpu"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "kv"), FORMATS_AND_KV)
def test_transformers_with_compressed_tensors_gives_the_references_logits(
    toy: Path, tmp_path: Path, name: str, kv: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another loader and another implementation of each format: weights, activations, cache."""
    from transformers import AutoModelForCausalLM

    from paceline.engines.reference import load_model
    from paceline.engines.reference_quantized import new_cache

    folder = convert(toy, tmp_path / "out", name, kv=kv)
    # The library widens e2m1 to bfloat16 whatever the model's type is.
    is_narrow = name in ("mxfp4", "nvfp4")
    dtype = "bfloat16" if is_narrow else "float32"
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    if name == "w4a8":
        leave_multiples_as_they_are(monkeypatch)
    ours, facts = load_model(folder, dtype, "cpu", torch)
    prompt = torch.randint(3, 320, (1, 30), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = theirs(prompt).logits.float()
        found = ours(prompt, use_cache=True, **new_cache(ours)).logits.float()
    assert facts["checkpoint_format"] == name
    error = float((found - expected).norm() / expected.norm())
    assert error < (2e-2 if is_narrow else 1e-6)
