"""NVIDIA accelerators through the driver's own library, libnvidia-ml.so.1, by ctypes.

No package is needed and nothing is started: what `nvidia-smi` knows is read from where it reads
it. A machine without the library has no NVIDIA accelerators; a question that the driver or the
device does not answer leaves its fact unknown.

Source of names and values: nvml.h of CUDA 12 and 13, whose functions here are unchanged since
CUDA 10.
"""

from __future__ import annotations

import ctypes
import re
from typing import Any

from paceline.submission.system_parse import Gpu

__all__ = ["gpus"]

_LIBRARY = "libnvidia-ml.so.1"
_TEXT_BYTES = 96
_CLOCK_SM = 1
_MAX_LINKS = 18
_FEATURE_ENABLED = 1


class _Memory(ctypes.Structure):
    _fields_ = (
        ("total", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


def gpus(library: str = _LIBRARY) -> list[Gpu]:
    """The NVIDIA accelerators of this host; empty when there is no driver."""
    try:
        nvml = ctypes.CDLL(library)
    except OSError:
        return []
    if not _call(nvml, "nvmlInit_v2"):
        return []
    try:
        count = _number(nvml, "nvmlDeviceGetCount_v2") or 0
        driver = _text(nvml, "nvmlSystemGetDriverVersion")
        return [_gpu(nvml, index, driver) for index in range(count)]
    finally:
        _call(nvml, "nvmlShutdown")


def _gpu(nvml: Any, index: int, driver: str | None) -> Gpu:
    device = ctypes.c_void_p()
    _call(nvml, "nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(device))
    name = _text(nvml, "nvmlDeviceGetName", device) or "unknown NVIDIA device"
    held = _Memory()
    known = _call(nvml, "nvmlDeviceGetMemoryInfo", device, ctypes.byref(held))
    generation = _number(nvml, "nvmlDeviceGetMaxPcieLinkGeneration", device)
    width = _number(nvml, "nvmlDeviceGetMaxPcieLinkWidth", device)
    links = _links(nvml, device)
    return Gpu(
        name=name,
        memory_bytes=int(held.total) if known else None,
        memory_kind=_memory_kind(nvml, device, name),
        clock_mhz=_number(nvml, "nvmlDeviceGetMaxClockInfo", device, ctypes.c_int(_CLOCK_SM)),
        pcie=f"PCIe Gen{generation} x{width}" if generation and width else None,
        num_links=links,
        link_kind="NVLink" if links else None,
        driver=driver,
        ecc=_ecc(nvml, device),
    )


def _memory_kind(nvml: Any, device: Any, name: str) -> str | None:
    """The kind where the product's name has it; else the width of the bus."""
    named = re.search(r"\b(HBM\w*|GDDR\w*)", name)
    if named:
        return named[1]
    width = _number(nvml, "nvmlDeviceGetMemoryBusWidth", device)
    return f"{width}-bit memory bus" if width else None


def _links(nvml: Any, device: Any) -> int | None:
    """NVLink connections that are up; None when the driver does not say."""
    states = [
        _number(nvml, "nvmlDeviceGetNvLinkState", device, ctypes.c_uint(link))
        for link in range(_MAX_LINKS)
    ]
    known = [state for state in states if state is not None]
    return sum(state == _FEATURE_ENABLED for state in known) if known else None


def _ecc(nvml: Any, device: Any) -> bool | None:
    current, pending = ctypes.c_uint(), ctypes.c_uint()
    known = _call(
        nvml, "nvmlDeviceGetEccMode", device, ctypes.byref(current), ctypes.byref(pending)
    )
    return current.value == _FEATURE_ENABLED if known else None


def _number(nvml: Any, name: str, *arguments: Any) -> int | None:
    value = ctypes.c_uint()
    return value.value if _call(nvml, name, *arguments, ctypes.byref(value)) else None


def _text(nvml: Any, name: str, *arguments: Any) -> str | None:
    buffer = ctypes.create_string_buffer(_TEXT_BYTES)
    done = _call(nvml, name, *arguments, buffer, ctypes.c_uint(_TEXT_BYTES))
    return buffer.value.decode("utf-8", errors="replace") if done else None


def _call(nvml: Any, name: str, *arguments: Any) -> bool:
    """Whether the function exists and answered."""
    function = getattr(nvml, name, None)
    return function is not None and function(*arguments) == 0
