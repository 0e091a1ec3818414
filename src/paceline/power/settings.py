"""What a run's config says about power, and watts as people write them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paceline.errors import RecipeError

__all__ = ["NONE", "PowerSettings", "parse_watts", "resolve_power"]

NONE = "none"
_WATTS = re.compile(r"(\d+(?:\.\d+)?)\s*(k?)w", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class PowerSettings:
    """The cap in watts, whether limits may be lowered for it, and where else power is read.

    `nodes` is a folder with the files of `paceline power` of other nodes.
    """

    cap_w: float | None = None
    lower_limits: bool = False
    nodes: Path | None = None
    redfish: str | None = None
    redfish_verify_tls: bool = True


def parse_watts(text: str) -> float:
    """Watts of "10kW", "9.5 kW" or "800W". Raises RecipeError."""
    match = _WATTS.fullmatch(text.strip())
    watts = float(match[1]) * (1000 if match[2] else 1) if match else 0.0
    if watts <= 0:
        raise RecipeError(
            f"'{text}' is no power.", hint="a number with its unit: --power-cap 10kW, or 9500W"
        )
    return watts


def resolve_power(value: Mapping[str, Any]) -> PowerSettings:
    """The keys under `power.`, decided. Raises RecipeError."""
    cap = value["power.cap"]
    cap_w = None if cap == NONE else parse_watts(cap)
    if value["power.lower_limits"] and cap_w is None:
        raise RecipeError(
            "power.lower_limits would do nothing: there is no cap.",
            hint="--power-cap 10kW, or leave --lower-limits out",
        )
    nodes, redfish = value["power.nodes"], value["power.redfish"]
    if nodes != NONE and not Path(nodes).expanduser().is_dir():
        raise RecipeError(
            f"power.nodes is '{nodes}', which is no folder.",
            hint="on every other node: paceline power --out DIR, in a folder that all see",
        )
    return PowerSettings(
        cap_w=cap_w,
        lower_limits=value["power.lower_limits"],
        nodes=None if nodes == NONE else Path(nodes).expanduser().resolve(),
        redfish=None if redfish == NONE else redfish,
        redfish_verify_tls=value["power.redfish_verify_tls"],
    )
