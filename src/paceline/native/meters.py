"""Instruments of the bench: the board's power and clocks, and the time of each kernel.

Shape letters (this file)
    T   tokens of a step
    K   width of a product's input
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable
from statistics import mean
from types import TracebackType
from typing import Any

import torch

from paceline.native.fused import Target, quantize_rows
from paceline.native.gemm import linear
from paceline.native.model import Llama

__all__ = ["BoardMeter", "kernel_times", "product_ms"]

# Names of kernels, first match wins; cuBLASLt's FP8 products are the nvjet kernels of type qq.
_PARTS = (
    ("attention_decode", ("_decode_attention", "_merge_splits", "decode")),
    ("attention_prefill", ("_chunk_attention",)),
    ("fused", ("_add_rms_norm", "_rotary_write", "_silu_mul", "_quantize_rows")),
    ("gemm", ("_qq", "e4m3", "f8f8")),
    ("head", ("_argmax_rows", "nvjet", "gemm", "cutlass")),
)


class BoardMeter:
    """Samples power and clock twice a second while it is open; nothing without NVML."""

    def __init__(self, device: torch.device) -> None:
        self._samples: list[tuple[float, int]] = []
        self._limit_w: float | None = None
        self._stop = threading.Event()
        self._handle: Any = None
        if device.type == "cuda":
            try:
                import pynvml
            except ImportError:
                return
            pynvml.nvmlInit()
            self._nvml = pynvml
            self._handle = pynvml.nvmlDeviceGetHandleByIndex(device.index or 0)
            self._limit_w = pynvml.nvmlDeviceGetPowerManagementLimit(self._handle) / 1e3

    def __enter__(self) -> BoardMeter:
        if self._handle is not None:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._handle is not None:
            self._thread.join()

    def figures(self) -> dict[str, Any]:
        """Power in watts and the multiprocessors' clock in MHz, of the middle of the time."""
        count = len(self._samples)
        middle = self._samples[count // 4 : max(count // 4 + 1, 3 * count // 5)]
        if not middle:
            return {}
        return {
            "power_w": round(mean(power for power, _ in middle)),
            "power_limit_w": self._limit_w,
            "clock_mhz": round(mean(clock for _, clock in middle)),
        }

    def _run(self) -> None:
        while not self._stop.wait(0.5):
            power = self._nvml.nvmlDeviceGetPowerUsage(self._handle) / 1e3
            clock = self._nvml.nvmlDeviceGetClockInfo(self._handle, self._nvml.NVML_CLOCK_SM)
            self._samples.append((power, clock))


def kernel_times(step: Callable[[], Any], *, num_settling: int, num_steps: int) -> dict[str, Any]:
    """Milliseconds of device time a step, by part, over `num_steps` steps.

    The profiler's own start leaves the device idle, and its clocks rise; `num_settling` steps
    under it bring them back to what the load sustains.
    """
    schedule = torch.profiler.schedule(wait=0, warmup=num_settling, active=num_steps, repeat=1)
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities, schedule=schedule) as profiler:
        for done in range(num_settling + num_steps):
            if done:
                profiler.step()
            step()
    totals: dict[str, float] = defaultdict(float)
    kernels: dict[str, float] = defaultdict(float)
    events = profiler.key_averages()
    # The profiler sees whole steps that were queued before it or waited for after it.
    seen = sum(event.count for event in events if event.key == "_argmax_rows") or num_steps
    for event in events:
        ms = event.self_device_time_total / 1e3 / seen
        if event.key.startswith("ProfilerStep"):
            continue
        totals[_part(event.key)] += ms
        kernels[event.key[:60]] += ms
    top = sorted(kernels.items(), key=lambda item: -item[1])[:14]
    return {
        "parts_ms": {part: round(ms, 2) for part, ms in sorted(totals.items())},
        "device_ms": round(sum(totals.values()), 2),
        "kernels_ms": {name: round(ms, 3) for name, ms in top},
    }


def product_ms(llama: Llama, num_tokens: int, *, seconds: float) -> float:
    """Milliseconds that the linear layers alone take for `num_tokens`, sustained for `seconds`."""
    device = llama.weights.embed_VD.device
    inputs: dict[int, Any] = {}
    for layer in llama.weights.layers[:1]:
        for linear_layer in (layer.qkv, layer.out, layer.gate_up, layer.down):
            width = linear_layer.width
            x_TK = torch.randn((num_tokens, width), device=device).to(llama.dtype)
            fixed = torch.tensor(0.01, device=device) if linear_layer.packed is None else None
            is_fp8 = linear_layer.takes_fp8
            inputs[width] = quantize_rows(x_TK, target=Target(is_fp8, fixed if is_fp8 else None))
    count, elapsed = 0, 0.0
    for begun in (time.monotonic(), None):
        # The first pass brings the clocks to what products alone sustain.
        start, count = time.monotonic() if begun is None else begun, 0
        while (elapsed := time.monotonic() - start) < seconds:
            for layer in llama.weights.layers:
                for linear_layer in (layer.qkv, layer.out, layer.gate_up, layer.down):
                    x = inputs[linear_layer.width]
                    linear(x, linear_layer, llama.dtype)
            torch.cuda.synchronize(device)
            count += 1
    return 1e3 * elapsed / count


def _part(kernel: str) -> str:
    for part, names in _PARTS:
        if any(name in kernel for name in names):
            return part
    return "other"
