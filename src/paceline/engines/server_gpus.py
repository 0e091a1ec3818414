"""Which GPUs a host has and how much memory each, asked of the drivers; no torch, no CUDA context.

    visible_gpus("nvidia")    nvidia-smi, narrowed by CUDA_VISIBLE_DEVICES
    visible_gpus("amd")       the amdgpu driver's files, narrowed by HIP_VISIBLE_DEVICES or
                              ROCR_VISIBLE_DEVICES

A GPU's `name` is what goes into the visibility variable of the server that gets it: an index, or
the UUID by which the variable named it.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from paceline.errors import EnvironmentProblem, InputError

__all__ = ["VISIBILITY", "Gpu", "gpu_groups", "visible_gpus"]

VISIBILITY = {"nvidia": "CUDA_VISIBLE_DEVICES", "amd": "HIP_VISIBLE_DEVICES"}
_ASKED = {
    "nvidia": ("CUDA_VISIBLE_DEVICES",),
    "amd": ("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"),
}
_NVIDIA_QUERY = (
    "nvidia-smi",
    "--query-gpu=index,uuid,memory.total",
    "--format=csv,noheader,nounits",
)
_TIMEOUT_S = 30.0
_KFD_NODES = Path("/sys/class/kfd/kfd/topology/nodes")


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU by the name that a visibility variable takes, and its memory."""

    name: str
    memory_gib: float


def visible_gpus(vendor: str) -> list[Gpu]:
    """The GPUs that this process may use. Raises EnvironmentProblem when there are none."""
    present = _nvidia() if vendor == "nvidia" else _amd(_KFD_NODES)
    if not present:
        raise EnvironmentProblem(
            f"No {vendor.upper()} GPU was found"
            + (" (nvidia-smi)." if vendor == "nvidia" else f" ({_KFD_NODES})."),
            hint="a preset for this machine's hardware: --set engine.managed.preset=llamacpp or "
            "paceline runs on a CPU",
        )
    for variable in _ASKED[vendor]:
        asked = os.environ.get(variable)
        if asked is not None:
            return _narrowed(present, asked, variable)
    return [gpu for _, gpu in present]


def gpu_groups(gpus: Sequence[Gpu], size: int) -> list[tuple[Gpu, ...]]:
    """The GPUs in groups of `size`, one a server. Raises InputError when some are left over."""
    if len(gpus) < size or len(gpus) % size:
        raise InputError(
            f"{len(gpus)} GPUs do not make groups of {size} (tensor_parallel x pipeline_parallel).",
            hint="--set engine.managed.gpus=0,1,... to name those to use, or another group size",
        )
    return [tuple(gpus[first : first + size]) for first in range(0, len(gpus), size)]


def _narrowed(present: list[tuple[str, Gpu]], asked: str, variable: str) -> list[Gpu]:
    """What the variable names, by index or (a beginning of) UUID, in its order."""
    found = []
    for name in filter(None, map(str.strip, asked.split(","))):
        match = [gpu for uuid, gpu in present if name == gpu.name or uuid.startswith(name)]
        if len(match) != 1:
            raise EnvironmentProblem(
                f"{variable} names GPU '{name}', which is not one of this machine's "
                f"{len(present)}.",
                hint=f"unset {variable}, or name GPUs 0 to {len(present) - 1}",
            )
        found.append(Gpu(name, match[0].memory_gib))
    if not found:
        raise EnvironmentProblem(
            f"{variable} is empty: it hides every GPU.", hint=f"unset {variable}"
        )
    return found


def _nvidia() -> list[tuple[str, Gpu]]:
    try:
        done = subprocess.run(
            _NVIDIA_QUERY, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return []
    found = []
    for line in done.stdout.splitlines() if done.returncode == 0 else []:
        index, uuid, memory_mib = (word.strip() for word in line.split(","))
        # Chips that share their memory with the CPU say "[N/A]".
        memory_gib = float(memory_mib) / 1024 if memory_mib.isdigit() else 0.0
        found.append((uuid, Gpu(index, memory_gib)))
    return found


def _amd(nodes: Path) -> list[tuple[str, Gpu]]:
    """GPUs in the order that HIP counts them: that of the compute driver's nodes."""
    found: list[tuple[str, Gpu]] = []
    for node in sorted(nodes.glob("*"), key=lambda path: int(path.name)):
        try:
            properties = dict(
                line.split() for line in (node / "properties").read_text().splitlines()
            )
            banks = (node / "mem_banks").glob("*/properties")
            sizes = [
                int(dict(line.split() for line in bank.read_text().splitlines())["size_in_bytes"])
                for bank in banks
            ]
        except (OSError, ValueError, KeyError):
            continue
        if int(properties.get("simd_count", 0)) > 0:  # CPUs are nodes too, without SIMDs
            uuid = f"GPU-{int(properties.get('unique_id', 0)):x}"
            found.append((uuid, Gpu(str(len(found)), sum(sizes) / 2**30)))
    return found
