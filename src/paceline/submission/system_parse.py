"""What the machine's own tools print, as facts. Every function here takes text.

    cpu          lscpu -J                        processors, cores, caches, frequency
    memory       /proc/meminfo                   bytes
    dimms        dmidecode --type memory         modules, when an administrator let us read them
    disks        lsblk -J -b                     capacity and kind
    os_name      /etc/os-release
    gpus_amd_smi, gpus_rocm_smi                  AMD accelerators, JSON of the two generations
    links        nvidia-smi topo -m              how accelerators are joined

A tool that prints something else than it should gives no facts: nothing here raises, and nothing
is guessed.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = [
    "Cpu",
    "Gpu",
    "cpu",
    "dimms",
    "disks",
    "gpus_amd_smi",
    "gpus_rocm_smi",
    "links",
    "memory",
    "os_name",
    "size_text",
]

_UNITS = ("B", "KB", "MB", "GB", "TB", "PB")
_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_MIB = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Cpu:
    """The processors of a host; None for what lscpu does not say."""

    model: str | None
    sockets: int | None
    cores_per_socket: int | None
    caches: str | None
    frequency: str | None
    virtual: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """One accelerator; None for what its driver does not say."""

    name: str
    memory_bytes: int | None = None
    memory_kind: str | None = None
    clock_mhz: int | None = None
    pcie: str | None = None
    num_links: int | None = None
    link_kind: str | None = None
    driver: str | None = None
    ecc: bool | None = None


def size_text(num_bytes: float, *, binary: bool = False) -> str:
    """A size as people write it: 141 GB, 1.5 TiB."""
    step, units = (1024, _BINARY) if binary else (1000, _UNITS)
    power = 0
    while num_bytes >= step and power < len(units) - 1:
        num_bytes /= step
        power += 1
    return f"{num_bytes:.4g} {units[power]}"


def cpu(text: str) -> Cpu:
    """From `lscpu -J`."""
    words = dict(_lscpu_fields(_json(text)))
    caches = [
        f"{level} {words[f'{level} cache']}"
        for level in ("L1d", "L1i", "L2", "L3")
        if f"{level} cache" in words
    ]
    fastest = _whole(words.get("CPU max MHz"))
    slowest = _whole(words.get("CPU min MHz"))
    frequency = f"{fastest} MHz max" if fastest else None
    if fastest and slowest:
        frequency = f"{slowest} to {fastest} MHz"
    return Cpu(
        model=words.get("Model name"),
        sockets=_whole(words.get("Socket(s)")),
        cores_per_socket=_whole(words.get("Core(s) per socket")),
        caches=", ".join(caches) or None,
        frequency=frequency,
        virtual=words.get("Hypervisor vendor"),
    )


def memory(text: str) -> int | None:
    """Bytes of memory, from /proc/meminfo."""
    found = re.search(r"^MemTotal:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def dimms(text: str) -> str | None:
    """Memory modules, as "16x 64 GB DDR5 4800 MT/s Samsung M321R8GA0BB0", from dmidecode."""
    kinds: Counter[str] = Counter()
    for block in text.split("Memory Device")[1:]:
        words: dict[str, str] = dict(re.findall(r"^\s+([\w ]+): (.+)$", block, re.MULTILINE))
        size = words.get("Size", "")
        if not re.match(r"\d", size):
            continue  # an empty slot
        speed = words.get("Configured Memory Speed", words.get("Speed", ""))
        named = [words.get(name, "") for name in ("Type", "Manufacturer", "Part Number")]
        known = [word.strip() for word in (size, named[0], speed, *named[1:]) if _is_word(word)]
        kinds[" ".join(known)] += 1
    return ", ".join(f"{count}x {kind}" for kind, count in sorted(kinds.items())) or None


def disks(text: str) -> list[tuple[str, int]]:
    """(kind, bytes) of each disk, from `lsblk -J -b -o NAME,TYPE,SIZE,ROTA,TRAN`."""
    found = []
    for device in _list(_json(text), "blockdevices"):
        size = device.get("size")
        if device.get("type") != "disk" or not isinstance(size, int) or size <= 0:
            continue
        found.append((_disk_kind(device), size))
    return found


def os_name(text: str) -> str | None:
    """The distribution, from /etc/os-release."""
    found = re.search(r'^PRETTY_NAME="?([^"\n]+)', text, re.MULTILINE)
    return found[1] if found else None


def gpus_amd_smi(text: str) -> list[Gpu]:
    """From `amd-smi static --json`: a list of devices, or {"gpu_data": [...]} of newer ones."""
    value = _json(text)
    devices = value if isinstance(value, list) else _list(value, "gpu_data")
    found = []
    for device in devices:
        if not isinstance(device, Mapping) or "asic" not in device:
            continue
        vram, bus = _map(device, "vram"), _map(device, "bus")
        name = _map(device, "asic").get("market_name") or _map(device, "board").get("product_name")
        kind = str(vram.get("type", ""))
        clock = _map(_map(device, "clock"), "sys").get("max_clk")
        found.append(
            Gpu(
                name=str(name),
                memory_bytes=_mebibytes(vram.get("size")),
                memory_kind=kind if _is_word(kind) else None,
                clock_mhz=_whole(_amount(clock)),
                pcie=_pcie(bus.get("pcie_interface_version"), bus.get("max_pcie_width")),
                driver=_text(_map(device, "driver").get("version")),
            )
        )
    return found


def gpus_rocm_smi(text: str) -> list[Gpu]:
    """From `rocm-smi --showproductname --showmeminfo vram --showdriverversion --json`."""
    value = _json(text)
    if not isinstance(value, Mapping):
        return []
    driver = _text(_map(value, "system").get("Driver version"))
    found = []
    for card in sorted(name for name in value if re.fullmatch(r"card\d+", str(name))):
        words = _map(value, card)
        name = words.get("Card Series") or words.get("Card series") or words.get("Card Model")
        found.append(
            Gpu(
                name=str(name),
                memory_bytes=_whole(words.get("VRAM Total Memory (B)")),
                driver=driver,
            )
        )
    return found


def links(text: str) -> str | None:
    """How accelerators are joined, from `nvidia-smi topo -m`: one word when all pairs agree."""
    rows = [
        line.split() for line in re.sub(r"\x1b\[[\d;]*m", "", text).splitlines() if line.strip()
    ]
    table = {row[0]: row[1:] for row in rows if re.fullmatch(r"GPU\d+", row[0]) and "X" in row}
    names = list(table)
    pairs = [table[a][j] for i, a in enumerate(names) for j in range(len(names)) if i != j]
    if not pairs:
        return None
    counted = Counter(pairs)
    if len(counted) == 1:
        return f"all pairs {pairs[0]}"
    return ", ".join(f"{count // 2} pairs {kind}" for kind, count in sorted(counted.items()))


def _lscpu_fields(value: Any) -> Iterable[tuple[str, str]]:
    """Newer versions of lscpu nest their fields."""
    entries = _list(value, "lscpu") if isinstance(value, Mapping) else value
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, Mapping):
            yield str(entry.get("field", "")).rstrip(":"), str(entry.get("data", ""))
            yield from _lscpu_fields(entry.get("children", []))


def _disk_kind(device: Mapping[str, Any]) -> str:
    name, bus = str(device.get("name", "")), str(device.get("tran") or "")
    if bus == "nvme" or name.startswith("nvme"):
        return "NVMe SSD"
    if name.startswith(("vd", "xvd")):
        return "virtual disk"
    return f"{bus.upper()} {'HDD' if device.get('rota') else 'SSD'}".strip()


def _pcie(version: Any, width: Any) -> str | None:
    generation = re.search(r"\d+", str(version))
    lanes = re.search(r"\d+", str(_amount(width)))
    return f"PCIe Gen{generation[0]} x{lanes[0]}" if generation and lanes else None


def _mebibytes(value: Any) -> int | None:
    amount = _whole(_amount(value))
    unit = value.get("unit", "MB") if isinstance(value, Mapping) else "MB"
    return amount * (_MIB * 1024 if unit == "GB" else _MIB) if amount else None


def _amount(value: Any) -> Any:
    """amd-smi writes {"value": 256, "unit": "MB"}, older ones "256 MB"."""
    return value.get("value") if isinstance(value, Mapping) else value


def _whole(value: Any) -> int | None:
    found = re.match(r"\s*(\d+)", str(value))
    return int(found[1]) if found else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and _is_word(value) else None


def _is_word(text: str) -> bool:
    return text.strip().lower() not in ("", "unknown", "n/a", "not specified", "none")


def _map(value: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    inner = value.get(name)
    return inner if isinstance(inner, Mapping) else {}


def _list(value: Any, name: str) -> list[Any]:
    inner = value.get(name) if isinstance(value, Mapping) else None
    return (
        [entry for entry in inner if isinstance(entry, Mapping)] if isinstance(inner, list) else []
    )


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
