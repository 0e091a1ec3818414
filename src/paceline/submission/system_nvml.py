"""NVIDIA accelerators through the driver's own library (`paceline.nvml`).

What `nvidia-smi` knows is read from where it reads it. A machine without the library has no NVIDIA
accelerators; a question that the driver or the device does not answer leaves its fact unknown.

    gpus()      what the accelerators are
    health()    how they are at this moment: memory, other processes, clocks, power, errors

Source of names and values: nvml.h of CUDA 12 and 13. What `gpus` asks is unchanged since CUDA 10;
what an older driver lacks of `health` is unknown.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from paceline.nvml import (
    CLOCK_SM,
    LIBRARY,
    call,
    devices,
    number,
    opened,
    text,
    throttles,
    watts,
    wide,
)
from paceline.submission.system_parse import Gpu

__all__ = ["Health", "gpus", "health"]

_Answer = TypeVar("_Answer")

_MAX_LINKS = 18
_FEATURE_ENABLED = 1
_MAX_PROCESSES = 256
_VOLATILE, _UNCORRECTED = 0, 1
_GPU_CORE = 0


class _Memory(ctypes.Structure):
    _fields_ = (
        ("total", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


class _Process(ctypes.Structure):
    _fields_ = (
        ("pid", ctypes.c_uint),
        ("used", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Health:
    """How one accelerator is at this moment; None for what its driver does not say.

    `pids` are the processes that compute on it. `throttles` says why its clocks are lowered.
    `uncorrected_errors` are those of its memory since the driver was loaded; `is_row_pending` that
    a bad row waits for a reset, `is_row_lost` that one could not be replaced.
    """

    index: int
    uuid: str | None
    name: str
    driver: str | None
    memory_bytes: int | None
    free_bytes: int | None
    pids: tuple[int, ...] | None
    sm_mhz: int | None
    max_sm_mhz: int | None
    throttles: tuple[str, ...] | None
    temperature_c: int | None
    power_w: float | None
    power_limit_w: float | None
    default_limit_w: float | None
    pcie_width: int | None
    max_pcie_width: int | None
    num_links: int | None
    num_links_down: int | None
    is_ecc_on: bool | None
    uncorrected_errors: int | None
    is_row_pending: bool | None
    is_row_lost: bool | None
    is_split: bool | None


def gpus(library: str = LIBRARY) -> list[Gpu]:
    """The NVIDIA accelerators of this host; empty when there is no driver."""
    return _each(library, _gpu)


def health(library: str = LIBRARY) -> list[Health]:
    """How the NVIDIA accelerators of this host are; empty when there is no driver."""
    return _each(library, _health)


def _each(library: str, ask: Callable[[Any, Any, int, str | None], _Answer]) -> list[_Answer]:
    """What `ask` gives for each device."""
    with opened(library) as nvml:
        if nvml is None:
            return []
        driver = text(nvml, "nvmlSystemGetDriverVersion")
        return [ask(nvml, device, index, driver) for index, device in enumerate(devices(nvml))]


def _health(nvml: Any, device: Any, index: int, driver: str | None) -> Health:
    held = _Memory()
    known = call(nvml, "nvmlDeviceGetMemoryInfo", device, ctypes.byref(held))
    states = _link_states(nvml, device)
    row = _row_states(nvml, device)
    return Health(
        index=index,
        uuid=text(nvml, "nvmlDeviceGetUUID", device),
        name=text(nvml, "nvmlDeviceGetName", device) or "unknown NVIDIA device",
        driver=driver,
        memory_bytes=int(held.total) if known else None,
        free_bytes=int(held.free) if known else None,
        pids=_pids(nvml, device),
        sm_mhz=number(nvml, "nvmlDeviceGetClockInfo", device, ctypes.c_int(CLOCK_SM)),
        max_sm_mhz=number(nvml, "nvmlDeviceGetMaxClockInfo", device, ctypes.c_int(CLOCK_SM)),
        throttles=throttles(nvml, device),
        temperature_c=number(nvml, "nvmlDeviceGetTemperature", device, ctypes.c_int(_GPU_CORE)),
        power_w=watts(nvml, "nvmlDeviceGetPowerUsage", device),
        power_limit_w=watts(nvml, "nvmlDeviceGetEnforcedPowerLimit", device),
        default_limit_w=watts(nvml, "nvmlDeviceGetPowerManagementDefaultLimit", device),
        pcie_width=number(nvml, "nvmlDeviceGetCurrPcieLinkWidth", device),
        max_pcie_width=number(nvml, "nvmlDeviceGetMaxPcieLinkWidth", device),
        num_links=states.count(_FEATURE_ENABLED) if states else None,
        num_links_down=len(states) - states.count(_FEATURE_ENABLED) if states else None,
        is_ecc_on=_ecc(nvml, device),
        uncorrected_errors=wide(
            nvml,
            "nvmlDeviceGetTotalEccErrors",
            device,
            ctypes.c_int(_UNCORRECTED),
            ctypes.c_int(_VOLATILE),
        ),
        is_row_pending=row[0] if row else None,
        is_row_lost=row[1] if row else None,
        is_split=_is_split(nvml, device),
    )


def _pids(nvml: Any, device: Any) -> tuple[int, ...] | None:
    """Processes that compute on a device; None when the driver does not say, or names too many."""
    count, found = ctypes.c_uint(_MAX_PROCESSES), (_Process * _MAX_PROCESSES)()
    for version in ("_v3", "_v2"):
        name = f"nvmlDeviceGetComputeRunningProcesses{version}"
        if call(nvml, name, device, ctypes.byref(count), found):
            return tuple(found[place].pid for place in range(count.value))
    return None


def _row_states(nvml: Any, device: Any) -> tuple[bool, bool] | None:
    """Whether a bad row of memory waits for a reset, and whether one could not be replaced."""
    corrected, uncorrected, pending, lost = (ctypes.c_uint() for _ in range(4))
    places = [ctypes.byref(value) for value in (corrected, uncorrected, pending, lost)]
    if not call(nvml, "nvmlDeviceGetRemappedRows", device, *places):
        return None
    return bool(pending.value), bool(lost.value)


def _is_split(nvml: Any, device: Any) -> bool | None:
    current, pending = ctypes.c_uint(), ctypes.c_uint()
    known = call(nvml, "nvmlDeviceGetMigMode", device, ctypes.byref(current), ctypes.byref(pending))
    return current.value == _FEATURE_ENABLED if known else None


def _gpu(nvml: Any, device: Any, index: int, driver: str | None) -> Gpu:
    del index
    name = text(nvml, "nvmlDeviceGetName", device) or "unknown NVIDIA device"
    held = _Memory()
    known = call(nvml, "nvmlDeviceGetMemoryInfo", device, ctypes.byref(held))
    generation = number(nvml, "nvmlDeviceGetMaxPcieLinkGeneration", device)
    width = number(nvml, "nvmlDeviceGetMaxPcieLinkWidth", device)
    links = _links(nvml, device)
    return Gpu(
        name=name,
        memory_bytes=int(held.total) if known else None,
        memory_kind=_memory_kind(nvml, device, name),
        clock_mhz=number(nvml, "nvmlDeviceGetMaxClockInfo", device, ctypes.c_int(CLOCK_SM)),
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
    width = number(nvml, "nvmlDeviceGetMemoryBusWidth", device)
    return f"{width}-bit memory bus" if width else None


def _links(nvml: Any, device: Any) -> int | None:
    """NVLink connections that are up; None when the driver does not say."""
    states = _link_states(nvml, device)
    return states.count(_FEATURE_ENABLED) if states else None


def _link_states(nvml: Any, device: Any) -> list[int]:
    """The state of each NVLink connection of which the driver knows."""
    states = [
        number(nvml, "nvmlDeviceGetNvLinkState", device, ctypes.c_uint(link))
        for link in range(_MAX_LINKS)
    ]
    return [state for state in states if state is not None]


def _ecc(nvml: Any, device: Any) -> bool | None:
    current, pending = ctypes.c_uint(), ctypes.c_uint()
    known = call(nvml, "nvmlDeviceGetEccMode", device, ctypes.byref(current), ctypes.byref(pending))
    return current.value == _FEATURE_ENABLED if known else None
