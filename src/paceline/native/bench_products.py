"""The four products of a layer, each alone: how fast a format's kernel is beside FP8's.

    paceline bench products --weights random:llama2-70b --tokens 512,1024

Each product runs for `seconds` on end, formats in turn, so that clocks and power are those of that
product. The rate counts 2 T N K operations whatever the weight's bits; `against_fp8` is the time of
`torch._scaled_mm` with one scale a tensor over the format's, for the same product.

Shape letters (this file)
    T   tokens of the step
    N   output width
    K   input width
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from paceline.native.errors import NativeError
from paceline.native.formats import PACKED_KINDS
from paceline.native.fused import Quantized, Target, quantize_rows
from paceline.native.gemm import Linear, linear
from paceline.native.model import LayerWeights
from paceline.native.parallel import TensorGroup
from paceline.native.random_weights import RandomSource
from paceline.native.weights import LoadOptions, load

__all__ = ["ProductOptions", "run_products"]

_BASE = "fp8-tensor"
_FORMATS = {_BASE, "fp8-token", *PACKED_KINDS}
_PRODUCTS = ("qkv", "out", "gate_up", "down")


@dataclass(frozen=True, kw_only=True, slots=True)
class ProductOptions:
    """What to time. `weights` is random:NAME; each product is repeated for `seconds`."""

    weights: str = "random:llama2-70b"
    formats: tuple[str, ...] = ("fp8-token", "w4a8", "w4a16", "mxfp4", "nvfp4")
    tokens: tuple[int, ...] = (512, 1024)
    seconds: float = 1.0
    device: str = "cuda"


def run_products(options: ProductOptions) -> dict[str, Any]:
    """Time every product; rows in the order of `options`, FP8 per tensor first.

    Raises
        NativeError  the weights' name or a format is not known, or there is no such device.
    """
    if strange := set(options.formats) - _FORMATS:
        raise NativeError(
            f"{', '.join(sorted(strange))} is no format with a kernel of its own",
            hint=f"of {', '.join(sorted(_FORMATS))}",
        )
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise NativeError("torch sees no CUDA device", hint="--device cpu times the definitions")
    formats = (_BASE, *(name for name in options.formats if name != _BASE))
    layers = {name: _layer(options.weights, name, device) for name in formats}
    rows = []
    for num_tokens in options.tokens:
        for product in _PRODUCTS:
            base_s = None
            for name in formats:
                layer: Linear = getattr(layers[name], product)
                took_s = _time(layer, num_tokens, device, options.seconds)
                base_s = took_s if base_s is None else base_s
                operations = 2 * num_tokens * layer.num_out * layer.width
                rows.append(
                    {
                        "tokens": num_tokens,
                        "product": product,
                        "n": layer.num_out,
                        "k": layer.width,
                        "format": name,
                        "us": round(took_s * 1e6, 2),
                        "tflops": round(operations / took_s / 1e12, 2),
                        "against_fp8": round(base_s / took_s, 4),
                    }
                )
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {"device": name, "torch": torch.__version__, "products": rows}


def _layer(weights: str, quantization: str, device: torch.device) -> LayerWeights:
    spec = f"{weights.removeprefix('random:')}:layers=1"
    loaded = load(
        RandomSource(spec, quantization=quantization),
        LoadOptions(device=device, dtype=torch.bfloat16, quantization=quantization),
        group=TensorGroup(),
    )
    return loaded.layers[0]


def _time(layer: Linear, num_tokens: int, device: torch.device, seconds: float) -> float:
    """Seconds of one product, in the second half of a run of `seconds`."""
    x = _input(layer, num_tokens, device)
    count, mark_s = 0, 0.0
    start_s = time.perf_counter()
    while True:
        for _ in range(8):
            linear(x, layer, torch.bfloat16)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        now_s = time.perf_counter()
        if mark_s:
            count += 8
            if now_s - start_s >= seconds:
                return (now_s - mark_s) / count
        elif now_s - start_s >= seconds / 2:
            mark_s = now_s


def _input(layer: Linear, num_tokens: int, device: torch.device) -> torch.Tensor | Quantized:
    x_TK = torch.randn((num_tokens, layer.width), device=device).to(torch.bfloat16)
    fixed = layer.input_scale if layer.packed is None else None
    return quantize_rows(x_TK, target=Target(layer.takes_fp8, fixed)) if layer.takes_fp8 else x_TK
