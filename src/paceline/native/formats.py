"""Quantised formats, as compressed-tensors stores them: which there are, what codes mean.

    name       weight                        scale of a weight             activations
    fp8        e4m3                          one, float32                  e4m3, scale fixed
    fp8-token  e4m3                          one an output, float32        e4m3, scale per token
    w4a16      int4, -8 to 7                 one a group (128), bfloat16   16 bit
    w4a8       int4, -8 to 7                 one a group (128), bfloat16   e4m3, scale per token
    mxfp4      e2m1                          2^n for 32 values             16 bit
    nvfp4      e2m1                          e4m3 for 16 values / global   16 bit

A scale is for dequantisation: value ~ code * scale. Codes of four bits lie two in a byte, the
lower four bits first; int4 is stored with 8 added.

FP8 tensor cores take e4m3 numbers on both sides, so a weight of w4a8 is code * scale rounded to the
four significant bits of one (`round_significand`): products then need no scale for each group.

Shape letters (this file)
    N   output width of a weight
    K   input width
    G   groups of K that share a scale

Source
    e2m1 and its scale of powers of two: OCP Microscaling Formats 1.0 (2023), sections 5.3.3, 6.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from paceline.native.errors import NativeError

__all__ = [
    "FORMATS",
    "PACKED_KINDS",
    "StoredFormat",
    "fp4_values",
    "pack_nibbles",
    "power_of_two",
    "round_significand",
    "stored_format",
    "unpack_nibbles",
]

FORMATS = ("fp8", "fp8-token", "w4a16", "w4a8", "mxfp4", "nvfp4")
# What a byte of a packed weight holds, by format.
PACKED_KINDS = {"w4a16": "int4", "w4a8": "int4-e4m3", "mxfp4": "fp4", "nvfp4": "fp4"}
_FP4_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredFormat:
    """How a checkpoint's linear layers are stored. `group_len` is 0 where a scale has no group."""

    name: str
    group_len: int = 0
    is_kv_fp8: bool = False

    @property
    def kind(self) -> str | None:
        """int4, int4-e4m3 or fp4 where weights are packed, None where they are not."""
        return PACKED_KINDS.get(self.name)


def stored_format(config: Mapping[str, Any]) -> StoredFormat | None:
    """The format that a config.json states; None when the weights are not quantised.

    Raises
        NativeError  it is quantised in a way that is not run.
    """
    stated = config.get("quantization_config")
    if not stated:
        return None
    method = stated.get("quant_method")
    if method == "modelopt" and str(stated.get("quant_algo", "")).upper() == "FP8":
        is_kv_fp8 = "FP8" in str(stated.get("kv_cache_quant_algo", "")).upper()
        return StoredFormat(name="fp8", is_kv_fp8=is_kv_fp8)
    if method != "compressed-tensors":
        raise NativeError(f"quant_method {method!r} is not run; compressed-tensors is")
    groups = list((stated.get("config_groups") or {}).values())
    is_kv_fp8 = stated.get("kv_cache_scheme") is not None
    if not groups and stated.get("format") == "float-quantized":
        return StoredFormat(name="fp8", is_kv_fp8=is_kv_fp8)
    if len(groups) != 1:
        raise NativeError(f"quantization_config has {len(groups)} config_groups; one is run")
    weights = groups[0].get("weights") or {}
    name = _name(str(stated.get("format")), weights, groups[0].get("input_activations"))
    group_len = weights.get("group_size") if name in PACKED_KINDS else None
    return StoredFormat(name=name, group_len=group_len or 0, is_kv_fp8=is_kv_fp8)


def _name(layout: str, weights: Mapping[str, Any], inputs: Mapping[str, Any] | None) -> str:
    """The name in FORMATS of one config group.

    Raises
        NativeError  there is none.
    """
    taken = _activations(inputs)
    asked = (layout, weights.get("num_bits"), weights.get("type"), weights.get("strategy"), taken)
    known = {
        ("float-quantized", 8, "float", "tensor", "fixed"): "fp8",
        ("float-quantized", 8, "float", "tensor", "token"): "fp8",
        ("float-quantized", 8, "float", "channel", "token"): "fp8-token",
        ("pack-quantized", 4, "int", "group", "16 bit"): "w4a16",
        ("pack-quantized", 4, "int", "group", "token"): "w4a8",
        ("mxfp4-pack-quantized", 4, "float", "group", "16 bit"): "mxfp4",
        ("nvfp4-pack-quantized", 4, "float", "tensor_group", "16 bit"): "nvfp4",
    }
    if asked not in known or not weights.get("symmetric", True) or weights.get("actorder"):
        raise NativeError(
            f"quantization_config: {layout}, weights {weights}, activations {inputs} is not run",
            hint=f"what is: {', '.join(FORMATS)}, symmetric, as `paceline quantize` writes them",
        )
    return known[asked]


def _activations(inputs: Mapping[str, Any] | None) -> str:
    """ "16 bit", "fixed" or "token"; "other" for what is not run."""
    if not inputs:
        return "16 bit"
    is_fp8 = (inputs.get("num_bits"), inputs.get("type")) == (8, "float")
    kinds = {("tensor", False): "fixed", ("token", True): "token"}
    kind = kinds.get((str(inputs.get("strategy")), inputs.get("dynamic") is True), "other")
    return kind if is_fp8 and inputs.get("symmetric", True) else "other"


def pack_nibbles(code_NK: Tensor) -> Tensor:
    """Four-bit codes 0 to 15, two in a byte, the lower bits first: (N, K) to (N, K / 2) uint8."""
    code_NK = code_NK.to(torch.uint8)
    return code_NK[:, 0::2] | (code_NK[:, 1::2] << 4)


def unpack_nibbles(packed: Tensor) -> Tensor:
    """The reverse of `pack_nibbles`."""
    low, high = packed & 0xF, packed >> 4
    return torch.stack((low, high), dim=-1).flatten(-2)


def fp4_values(code: Tensor) -> Tensor:
    """The float32 values of e2m1 codes: bit 3 is the sign."""
    table = torch.tensor(_FP4_MAGNITUDES, device=code.device)
    magnitude = table[(code & 7).long()]
    return torch.where(code >= 8, -magnitude, magnitude)


def round_significand(value: Tensor) -> Tensor:
    """float32 values to the nearest of four significant bits, ties to even; no limit of range."""
    bits = value.contiguous().view(torch.int32)
    bits = bits + 0x7FFFF + (bits >> 20 & 1)
    return (bits & ~0xFFFFF).view(torch.float32)


def power_of_two(exponent: Tensor) -> Tensor:
    """E8M0 exponents, uint8 with 127 added, as bfloat16 scales, exactly."""
    # A bfloat16's exponent is the same eight bits; 0 stands for 2^-127, which is subnormal there.
    bits = torch.where(exponent == 0, 0x40, exponent.to(torch.int16) << 7)
    return bits.to(torch.int16).view(torch.bfloat16)
