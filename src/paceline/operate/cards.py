"""The accelerators: whether they are there, free, whole and at full speed.

NVIDIA's are asked through NVML; of AMD's, `amd-smi` says what they are, and the rest is unknown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from paceline.engines.server_presets import PRESETS
from paceline.operate.finding import Finding, blocker, fine, unknown, warning
from paceline.operate.subject import Asked
from paceline.submission.system_host import Host
from paceline.submission.system_nvml import Health
from paceline.submission.system_parse import Gpu, size_text
from paceline.submission.system_probe import silent_gpus

__all__ = ["card_findings", "cards_needed", "driver_problem", "visible", "wants_cards"]

_GIB = 1 << 30
# What a display server or a monitor takes of a card, at most.
_SMALL_BYTES = _GIB
# Least driver of a CUDA release: CUDA 12 runs on R525 by minor-version compatibility, 13 on R580.
_LEAST_DRIVER = {12: 525, 13: 580}


def wants_cards(asked: Asked | None, num_cards: int) -> bool:
    """Whether the recipe runs on accelerators of this machine."""
    if asked is None or asked.config.engine in ("endpoint", "fake"):
        return False
    device = getattr(asked.settings, "device", None)
    if device is not None:
        return bool(device == "cuda" or (device == "auto" and num_cards > 0))
    return PRESETS[asked.settings.preset].vendor is not None


def cards_needed(asked: Asked) -> int:
    """Cards of one copy of the model."""
    settings = asked.settings
    return int(getattr(settings, "tensor_parallel", 1) * getattr(settings, "pipeline_parallel", 1))


def visible(found: Sequence[Health], environment: Mapping[str, str]) -> list[Health]:
    """Those of the cards that CUDA_VISIBLE_DEVICES leaves."""
    named = environment.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return list(found)
    words = [word.strip() for word in named.split(",") if word.strip()]
    return [
        card
        for card in found
        if str(card.index) in words
        or any(not w.isdecimal() and (card.uuid or "").startswith(w) for w in words)
    ]


def card_findings(
    found: Sequence[Health],
    others: Sequence[Gpu],
    *,
    asked: Asked | None,
    host: Host,
    environment: Mapping[str, str],
) -> list[Finding]:
    """Findings on all visible cards; `others` are those that NVML does not know."""
    shown = visible(found, environment)
    findings = [_presence(found, shown, others, asked=asked, host=host)]
    if others and not found:
        findings.append(
            unknown(
                "gpu health",
                "amd-smi and rocm-smi are read for names and memory only",
                why="a busy, throttled or damaged card costs the run's speed, or the run",
                mend="amd-smi monitor   and   amd-smi bad-pages",
            )
        )
    for card in shown:
        name = f"gpu {card.index}"
        findings += [
            _memory(name, card),
            _speed(name, card),
            _errors(name, card),
            _paths(name, card, [other.num_links or 0 for other in shown]),
        ]
    return findings


def _presence(
    found: Sequence[Health],
    shown: Sequence[Health],
    others: Sequence[Gpu],
    *,
    asked: Asked | None,
    host: Host,
) -> Finding:
    why = "the engine needs an accelerator, and the driver that knows it"
    names = [card.name for card in shown] or [gpu.name for gpu in others]
    listed = ", ".join(f"{names.count(name)}x {name}" for name in dict.fromkeys(names))
    drivers = [card.driver for card in shown] + [gpu.driver for gpu in others]
    driver = next(filter(None, drivers), "unknown")
    hidden = len(found) - len(shown)
    if hidden:
        listed = f"{listed or 'none'} (CUDA_VISIBLE_DEVICES hides {hidden} of {len(found)})"
    wanted = cards_needed(asked) if asked and wants_cards(asked, len(names)) else 0
    # The engine's own count of copies, each on cards of its own.
    wanted *= getattr(asked.settings, "data_parallel", 1) if asked and wanted else 1
    if len(names) < wanted:
        return blocker(
            "gpus",
            f"{listed or 'none that a driver answers for'}; the recipe wants {wanted}",
            why=why,
            mend="unset CUDA_VISIBLE_DEVICES"
            if hidden
            else "nvidia-smi   (or amd-smi list): when it fails too, load or install the driver; "
            "in a container, give it the cards (docker run --gpus all)",
        )
    if not names and silent_gpus(host):
        return warning(
            "gpus",
            "cards are plugged in, but no driver answers for them",
            why=why,
            mend="nvidia-smi   (or amd-smi list): when it fails too, load or install the driver",
        )
    if hidden:
        return warning(
            "gpus", listed, why="hidden cards do no work", mend="unset CUDA_VISIBLE_DEVICES"
        )
    seen = f"{listed}, driver {driver}" if names else "none"
    return fine("gpus", seen, why=why)


def driver_problem(cuda: str | None, found: Sequence[Health]) -> tuple[int, str] | None:
    """(driver that PyTorch's CUDA needs, driver that is there) when it is too old."""
    driver = next((card.driver for card in found if card.driver), None)
    if cuda is None or driver is None:
        return None
    release, major = cuda.split(".")[0], driver.split(".")[0]
    if not (release.isdecimal() and major.isdecimal()):
        return None
    least = _LEAST_DRIVER.get(int(release))
    return (least, driver) if least is not None and int(major) < least else None


def _memory(name: str, card: Health) -> Finding:
    what, why = f"{name} memory", "what others hold is lost to the cache, or the model does not fit"
    if card.free_bytes is None or card.memory_bytes is None:
        return unknown(what, "the driver does not say", why=why, mend=f"nvidia-smi -i {card.index}")
    free, whole = (size_text(b, binary=True) for b in (card.free_bytes, card.memory_bytes))
    seen = f"{free} of {whole} free"
    if card.is_split:
        return blocker(
            what,
            f"{seen}; the card is split (MIG)",
            why="an engine gets one slice of a split card",
            mend=f"sudo nvidia-smi -i {card.index} -mig 0",
        )
    if card.pids:
        listed = ", ".join(map(str, card.pids))
        return blocker(
            what,
            f"{seen}; used by process {listed}",
            why="another process on the card takes memory and time from the run",
            mend=f"ps -o pid,user,etime,args -p {','.join(map(str, card.pids))}   then end it: "
            f"kill {' '.join(map(str, card.pids))}",
        )
    if card.memory_bytes - card.free_bytes > max(_SMALL_BYTES, card.memory_bytes // 50):
        return warning(
            what,
            f"{seen}, and no process that computes is named",
            why=why,
            mend="sudo fuser -v /dev/nvidia*   names processes of other users and containers",
        )
    if card.pids is None:
        return unknown(
            what, f"{seen}; who uses the card is not said", why=why, mend="nvidia-smi pmon -c 1"
        )
    return fine(what, f"{seen}, nobody else on it", why=why)


def _speed(name: str, card: Health) -> Finding:
    what, why = f"{name} speed", "a card that is held back slows every step of its group"
    clocks = f"{card.sm_mhz or '?'} of {card.max_sm_mhz or '?'} MHz"
    heat = "" if card.temperature_c is None else f", {card.temperature_c} C"
    seen = f"{clocks}{heat}{_power_text(card)}"
    if card.throttles is None:
        return unknown(
            what,
            f"{seen}; throttle reasons are not said",
            why=why,
            mend=f"nvidia-smi -q -d PERFORMANCE -i {card.index}",
        )
    if card.throttles:
        return warning(
            what,
            f"{seen}; held back: {', '.join(card.throttles)}",
            why=why,
            mend=f"nvidia-smi -q -d PERFORMANCE,TEMPERATURE,POWER -i {card.index}   then mend "
            "cooling, power cables or the limit",
        )
    limit, default = card.power_limit_w, card.default_limit_w
    if limit is not None and default is not None and limit < default:
        return warning(
            what,
            f"{seen}; the limit is below the card's {default:g} W",
            why="a lower limit lowers clocks under load; right under a power budget only",
            mend=f"sudo nvidia-smi -i {card.index} -pl {default:g}",
        )
    return fine(what, f"{seen}, not held back", why=why)


def _power_text(card: Health) -> str:
    if card.power_w is None and card.power_limit_w is None:
        return ""
    return f", {card.power_w or 0:.0f} W of {card.power_limit_w or 0:.0f} W"


def _errors(name: str, card: Health) -> Finding:
    what, why = f"{name} errors", "a memory error ends the run or spoils its answers"
    reset = f"sudo nvidia-smi --gpu-reset -i {card.index}"
    if card.is_row_lost:
        return blocker(
            what,
            "a bad row of memory could not be replaced",
            why=why,
            mend=f"take the card out of the run (CUDA_VISIBLE_DEVICES) and have it changed; "
            f"nvidia-smi -q -d ROW_REMAPPER -i {card.index} shows it",
        )
    if card.uncorrected_errors:
        return blocker(
            what,
            f"{card.uncorrected_errors} uncorrected memory errors since the driver was loaded",
            why=why,
            mend=f"{reset}   and, when they come back, have the card changed",
        )
    if card.is_row_pending:
        return warning(what, "a bad row of memory waits for a reset", why=why, mend=reset)
    if card.is_ecc_on is None:
        return unknown(
            what, "the driver does not say", why=why, mend=f"nvidia-smi -q -d ECC -i {card.index}"
        )
    if not card.is_ecc_on:
        return warning(
            what,
            "ECC is off: errors are not seen",
            why=why,
            mend=f"sudo nvidia-smi -i {card.index} -e 1   and restart",
        )
    if card.uncorrected_errors is None:
        return unknown(
            what,
            "ECC is on; its counters are not said",
            why=why,
            mend=f"nvidia-smi -q -d ECC -i {card.index}",
        )
    return fine(what, "ECC on, no uncorrected errors", why=why)


def _paths(name: str, card: Health, links: Sequence[int]) -> Finding:
    """PCIe and NVLink of a card; `links` are the NVLinks that are up on each card.

    How many a card should have depends on its board and bridges, which the driver does not tell,
    so cards are compared with each other.
    """
    what, why = f"{name} links", "cards that share a model wait for their links in every layer"
    width, most = card.pcie_width, card.max_pcie_width
    pcie = f"PCIe x{width} of x{most}" if width and most else "PCIe width unknown"
    nvlink = "NVLink unknown or none"
    if card.num_links is not None:
        nvlink = f"{card.num_links} of {card.num_links + (card.num_links_down or 0)} NVLinks up"
    seen = f"{pcie}, {nvlink}"
    if width and most and width < most:
        return warning(
            what,
            seen,
            why="a narrow slot or riser slows loading, and every exchange without NVLink",
            mend=f"nvidia-smi -q -i {card.index}   (GPU Link Info); reseat the card or its riser",
        )
    mend = "nvidia-smi nvlink --status   and   systemctl status nvidia-fabricmanager"
    if card.num_links is not None and card.num_links < max(links):
        seen = f"{seen}; another card has {max(links)}"
        return warning(what, seen, why=why, mend=mend)
    if card.num_links_down and len(links) > 1:
        return unknown(
            what, f"{seen} on every card, which bridges or PCIe alone explain", why=why, mend=mend
        )
    if width is None and card.num_links is None:
        return unknown(what, seen, why=why, mend="nvidia-smi topo -m")
    return fine(what, seen, why=why)
