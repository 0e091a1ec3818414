"""Weights of a named shape, drawn on the device: speed without a download.

Shape letters (this file)
    N   output width of a weight
    G   groups of the input width that share a scale
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from paceline.native.checkpoint import Part
from paceline.native.errors import NativeError
from paceline.native.formats import StoredFormat
from paceline.native.fused import FP8_DTYPE, FP8_MAX
from paceline.native.model import ModelConfig
from paceline.native.rotary import RopeConfig

__all__ = ["RandomSource"]

# Values that share a scale, by format.
_GROUPS = {"w4a16": 128, "w4a8": 128, "mxfp4": 32, "nvfp4": 16}


def _named(layers: int, sizes: tuple[int, int, int, int, int], vocab: int) -> ModelConfig:
    hidden, inter, heads, kv_heads, head_size = sizes
    return ModelConfig(
        num_layers=layers,
        hidden_size=hidden,
        intermediate_size=inter,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_size=head_size,
        vocab_size=vocab,
        rms_norm_eps=1e-5,
        max_context_len=4096,
        rope=RopeConfig(theta=10000.0, head_size=head_size),
        eos_token_ids=(2,),
    )


_NAMED = {
    "llama2-70b": _named(80, (8192, 28672, 64, 8, 128), 32000),
    "llama2-7b": _named(32, (4096, 11008, 32, 32, 128), 32000),
    "llama3-8b": _named(32, (4096, 14336, 32, 8, 128), 128256),
    "smollm2-135m": _named(30, (576, 1536, 9, 3, 64), 49152),
    "tiny": _named(2, (64, 128, 4, 2, 16), 128),
}


class RandomSource:
    """Weights of a named shape, drawn on the device: speed without a download.

    Values are normal with standard deviation 0.02; FP8 codes are normal with 32, so that all
    mantissa bits change and the products draw the power that real weights draw.
    """

    _CODE_STD = 32.0
    _VALUE_STD = 0.02
    # Bounds of what the next product reads: a norm's output, attention's, the MLP's.
    _INPUT_SCALE: ClassVar = {"o_proj": 0.02, "down_proj": 0.2}

    def __init__(self, spec: str, *, quantization: str) -> None:
        name, *options = spec.split(":")
        if name not in _NAMED:
            raise NativeError(f"random:{name} is not one of {', '.join(sorted(_NAMED))}")
        self.config = _NAMED[name]
        for option in options:
            if not (match := re.fullmatch(r"layers=(\d+)", option)):
                raise NativeError(f"random:{name}: {option!r} is not layers=N")
            self.config = replace(self.config, num_layers=int(match[1]))
        self._is_fp8 = quantization.startswith("fp8")
        # The cache is FP8 unless told otherwise, as it is beside FP8 weights.
        self.stored = (
            StoredFormat(name=quantization, group_len=_GROUPS[quantization], is_kv_fp8=True)
            if quantization in _GROUPS
            else None
        )
        self._generators: dict[str, torch.Generator] = {}

    def part(self, name: str, *, rows: slice, columns: slice, device: torch.device) -> Part:
        num_rows, num_columns = self._shape(name)
        shape = (len(range(num_rows)[rows]), len(range(num_columns)[columns]))
        is_linear = name.startswith("model.layers.")
        if is_linear and self.stored is not None:
            return self._packed(shape, self.stored, device)
        if not (self._is_fp8 and is_linear):
            return Part(self._normal(shape, device) * self._VALUE_STD)
        codes = torch.empty(shape, dtype=FP8_DTYPE, device=device)
        for start in range(0, shape[0], 2048):
            block = codes[start : start + 2048]
            values = self._normal((block.shape[0], shape[1]), device) * self._CODE_STD
            block.copy_(values.clamp_(-FP8_MAX, FP8_MAX).to(FP8_DTYPE))
        scale = torch.tensor(self._VALUE_STD / self._CODE_STD, device=device)
        input_scale = self._INPUT_SCALE.get(name.rsplit(".", 1)[1], 0.02)
        return Part(codes, scale, torch.tensor(input_scale, device=device))

    def _packed(self, shape: tuple[int, int], stored: StoredFormat, device: torch.device) -> Part:
        """Uniform codes, whose standard deviation is near 4.6; scales within a factor of two."""
        rows, columns = shape
        generator = self._generator(device)
        # A width that no group divides, as the tiny model's, has narrower ones.
        group_len = min(stored.group_len, columns & -columns)
        packed = torch.empty((rows, columns // 2), dtype=torch.uint8, device=device)
        packed.random_(0, 256, generator=generator)
        scale_NG = torch.empty((rows, columns // group_len), device=device)
        scale_NG.uniform_(0.75 * 2.0**-8, 1.5 * 2.0**-8, generator=generator)
        scale_NG = scale_NG.to(torch.bfloat16)
        if stored.name == "mxfp4":
            scale_NG = torch.full_like(scale_NG, 2.0**-8)
        part = Part(packed, scale_NG, kind=stored.kind)
        if stored.name == "nvfp4":
            part.weight_scale = torch.ones_like(scale_NG).to(FP8_DTYPE)
            part.global_scale = torch.tensor(2.0**8, device=device)
        return part

    def vector(self, name: str, device: torch.device) -> Tensor:
        return torch.ones(self.config.hidden_size, device=device)

    def kv_scale(self, layer: int) -> tuple[float, float]:
        return 1.0, 1.0

    def _normal(self, shape: tuple[int, int], device: torch.device) -> Tensor:
        return torch.randn(shape, generator=self._generator(device), device=device)

    def _generator(self, device: torch.device) -> torch.Generator:
        key = str(device)
        if key not in self._generators:
            self._generators[key] = torch.Generator(device=device).manual_seed(0)
        return self._generators[key]

    def _shape(self, name: str) -> tuple[int, int]:
        config = self.config
        width = config.hidden_size
        heads, kv_heads = (n * config.head_size for n in (config.num_heads, config.num_kv_heads))
        return {
            "embed_tokens": (config.vocab_size, width),
            "lm_head": (config.vocab_size, width),
            "q_proj": (heads, width),
            "k_proj": (kv_heads, width),
            "v_proj": (kv_heads, width),
            "o_proj": (width, heads),
            "gate_proj": (config.intermediate_size, width),
            "up_proj": (config.intermediate_size, width),
            "down_proj": (width, config.intermediate_size),
        }[name.rsplit(".", 1)[-1]]
