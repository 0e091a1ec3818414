"""Instruments of the bench: the board's power and clocks, and the time of each kernel."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable
from statistics import mean
from types import TracebackType
from typing import Any

import torch

__all__ = ["BoardMeter", "kernel_times"]

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


def kernel_times(step: Callable[[], Any], num_steps: int) -> dict[str, Any]:
    """Milliseconds of device time a step, by part, over `num_steps` steps."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(num_steps):
            step()
        torch.cuda.synchronize()
    totals: dict[str, float] = defaultdict(float)
    kernels: dict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        ms = event.self_device_time_total / 1e3
        totals[_part(event.key)] += ms
        kernels[event.key[:60]] += ms
    # `num_steps` calls queue as many steps, and wait for all but the last.
    parts = {f"{part}_ms": round(ms / num_steps, 3) for part, ms in sorted(totals.items())}
    top = sorted(kernels.items(), key=lambda item: -item[1])[:14]
    return {
        "parts": parts,
        "device_ms": round(sum(totals.values()) / num_steps, 2),
        "kernels": {name: round(ms / num_steps, 3) for name, ms in top},
    }


def _part(kernel: str) -> str:
    for part, names in _PARTS:
        if any(name in kernel for name in names):
            return part
    return "other"
