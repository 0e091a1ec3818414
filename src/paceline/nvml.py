"""NVIDIA's management library, libnvidia-ml.so.1, by ctypes: the one door to it.

    with opened() as nvml:            None when there is no driver
        for device in devices(nvml):
            watts(nvml, "nvmlDeviceGetPowerUsage", device)

No package is needed and nothing is started. A question that the driver or the device does not
answer gives None. Source of names and values: nvml.h of CUDA 12 and 13.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from typing import Any

__all__ = [
    "CLOCK_SM",
    "LIBRARY",
    "NO_PERMISSION",
    "call",
    "code",
    "devices",
    "limit_range_w",
    "number",
    "opened",
    "set_limit_w",
    "text",
    "throttles",
    "watts",
    "wide",
]

LIBRARY = "libnvidia-ml.so.1"
CLOCK_SM = 1
NO_PERMISSION = 4
_NO_FUNCTION = 13
_TEXT_BYTES = 96
# nvmlClocksEventReason*: bits that say why clocks are lower than they could be. Idle, the user's
# own clocks and groups of synchronised cards are no trouble.
_THROTTLES = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "thermal (software)",
    0x40: "thermal (hardware)",
    0x80: "power brake",
}


@contextlib.contextmanager
def opened(library: str = LIBRARY) -> Iterator[Any]:
    """The library, ready to be asked; None where it is missing or does not start."""
    try:
        nvml = ctypes.CDLL(library)
    except OSError:
        yield None
        return
    if not call(nvml, "nvmlInit_v2"):
        yield None
        return
    try:
        yield nvml
    finally:
        call(nvml, "nvmlShutdown")


def devices(nvml: Any) -> list[Any]:
    """A handle of each device, in the driver's order."""
    handles = []
    for index in range(number(nvml, "nvmlDeviceGetCount_v2") or 0):
        device = ctypes.c_void_p()
        call(nvml, "nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(device))
        handles.append(device)
    return handles


def throttles(nvml: Any, device: Any) -> tuple[str, ...] | None:
    """Why the clocks of a device are lowered."""
    for word in ("Event", "Throttle"):
        mask = wide(nvml, f"nvmlDeviceGetCurrentClocks{word}Reasons", device)
        if mask is not None:
            return tuple(words for bit, words in _THROTTLES.items() if mask & bit)
    return None


def limit_range_w(nvml: Any, device: Any) -> tuple[float, float] | None:
    """The least and the highest power limit that the device takes."""
    least, most = ctypes.c_uint(), ctypes.c_uint()
    name = "nvmlDeviceGetPowerManagementLimitConstraints"
    if not call(nvml, name, device, ctypes.byref(least), ctypes.byref(most)):
        return None
    return least.value / 1000, most.value / 1000


def set_limit_w(nvml: Any, device: Any, limit_w: float) -> int:
    """Set a device's power limit; the library's code, 0 when it is done."""
    milliwatts = ctypes.c_uint(round(limit_w * 1000))
    return code(nvml, "nvmlDeviceSetPowerManagementLimit", device, milliwatts)


def number(nvml: Any, name: str, *arguments: Any) -> int | None:
    """The answer of a function that gives an unsigned int."""
    value = ctypes.c_uint()
    return value.value if call(nvml, name, *arguments, ctypes.byref(value)) else None


def wide(nvml: Any, name: str, *arguments: Any) -> int | None:
    """The answer of a function that gives an unsigned long long."""
    value = ctypes.c_ulonglong()
    return value.value if call(nvml, name, *arguments, ctypes.byref(value)) else None


def watts(nvml: Any, name: str, device: Any) -> float | None:
    """The answer of a function that gives milliwatts."""
    milliwatts = number(nvml, name, device)
    return None if milliwatts is None else milliwatts / 1000


def text(nvml: Any, name: str, *arguments: Any) -> str | None:
    """The answer of a function that fills a buffer."""
    buffer = ctypes.create_string_buffer(_TEXT_BYTES)
    done = call(nvml, name, *arguments, buffer, ctypes.c_uint(_TEXT_BYTES))
    return buffer.value.decode("utf-8", errors="replace") if done else None


def call(nvml: Any, name: str, *arguments: Any) -> bool:
    """Whether the function exists and answered."""
    return code(nvml, name, *arguments) == 0


def code(nvml: Any, name: str, *arguments: Any) -> int:
    """What the function returned; the library's own code for one that this driver lacks."""
    function = getattr(nvml, name, None)
    return _NO_FUNCTION if function is None else int(function(*arguments))
