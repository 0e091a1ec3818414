"""config.json's `quantization_config`, as compressed-tensors writes it and vLLM reads it.

Source
    vllm-project/vllm, model_executor/layers/quantization/compressed_tensors: which `format`,
    strategy and group size choose which kernels; compressed-tensors 0.20.0, quantization/
    quant_scheme.py: the presets FP8, FP8_DYNAMIC, W4A16, W4AFP8, MXFP4A16, NVFP4A16.
"""

from __future__ import annotations

from typing import Any

__all__ = ["quantization_config"]

_LAYOUTS = {
    "fp8": "float-quantized",
    "fp8-token": "float-quantized",
    "w4a16": "pack-quantized",
    "w4a8": "pack-quantized",
    "mxfp4": "mxfp4-pack-quantized",
    "nvfp4": "nvfp4-pack-quantized",
}
_PER_TENSOR = {"num_bits": 8, "type": "float", "strategy": "tensor"}
_PER_TOKEN = {"num_bits": 8, "type": "float", "strategy": "token"}


def quantization_config(name: str, *, group_len: int, is_kv_fp8: bool) -> dict[str, Any]:
    """The config of one format for all linear layers but the output layer."""
    group: dict[str, Any] = {
        "targets": ["Linear"],
        "weights": _args(_weights(name, group_len), dynamic=False),
        "input_activations": None,
        "output_activations": None,
        "format": _LAYOUTS[name],
    }
    if name == "fp8":
        group["input_activations"] = _args(_PER_TENSOR, dynamic=False)
    elif name in ("fp8-token", "w4a8"):
        group["input_activations"] = _args(_PER_TOKEN, dynamic=True)
    return {
        "config_groups": {"group_0": group},
        "format": _LAYOUTS[name],
        "ignore": ["lm_head"],
        "kv_cache_scheme": _args(_PER_TENSOR, dynamic=False) if is_kv_fp8 else None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
    }


def _weights(name: str, group_len: int) -> dict[str, Any]:
    if name == "fp8":
        return _PER_TENSOR
    if name == "fp8-token":
        return _PER_TENSOR | {"strategy": "channel"}
    if name in ("w4a16", "w4a8"):
        return {"num_bits": 4, "type": "int", "strategy": "group", "group_size": group_len}
    micro = {"num_bits": 4, "type": "float", "group_size": group_len}
    if name == "mxfp4":
        return micro | {"strategy": "group", "scale_dtype": "torch.uint8"}
    return micro | {"strategy": "tensor_group", "scale_dtype": "torch.float8_e4m3fn"}


def _args(stated: dict[str, Any], *, dynamic: bool) -> dict[str, Any]:
    return {"symmetric": True, "group_size": None, **stated, "dynamic": dynamic}
