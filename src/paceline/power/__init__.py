"""Watts: what cards, processors and nodes draw, over time, and a cap on the sum.

    sampler     meters, each read by a thread of its own; the newest reading of every device
    cards       NVIDIA by NVML, AMD by the kernel's sensors, amd-smi or rocm-smi
    host        RAPL's counters, IPMI
    tools       a vendor's program, run for what it prints
    redfish     a BMC
    nodes       files of other nodes
    energy      energy and mean power of a window of time
    cap         how near the sum is to a cap
    limits      lower power limits of cards, and back; `keeper` is the process that does it

What cannot be read is said, never estimated.
"""

from __future__ import annotations

from paceline.power.cap import NEAR, CapWatch
from paceline.power.energy import sum_over_time, summarise
from paceline.power.limits import Limits
from paceline.power.nodes import NodeFiles, file_name, open_nodes
from paceline.power.readings import Meter, Reading
from paceline.power.sampler import Board, Sampler, host_name, open_meters
from paceline.power.settings import NONE, PowerSettings, parse_watts, resolve_power

__all__ = [
    "NEAR",
    "NONE",
    "Board",
    "CapWatch",
    "Limits",
    "Meter",
    "NodeFiles",
    "PowerSettings",
    "Reading",
    "Sampler",
    "file_name",
    "host_name",
    "open_meters",
    "open_nodes",
    "parse_watts",
    "resolve_power",
    "sum_over_time",
    "summarise",
]
