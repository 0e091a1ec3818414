"""Hardware categories: teams compete with those who have the same kind of hardware.

A category is found from the accelerator's name alone, as system descriptions and drivers write
it. A name that none of the words fits is in a category of its own, and never in someone else's.
"""

from __future__ import annotations

import re

__all__ = ["CATEGORIES", "CPU_ONLY", "MIXED", "category_of"]

CPU_ONLY = "CPU only"
MIXED = "Mixed accelerators"
_OTHER = "Other accelerators"

_WORDS = (
    (
        "NVIDIA GPUs",
        (
            r"nvidia|geforce|quadro|tesla|jetson|orin|\brtx\b|\bg?[bh][123]00\b|\bgb[23]00\b|\bgh200\b"
            r"|\b[avp]100\b|\ba[34]0\b|\bl4(0s?)?\b|\bt4\b"
        ),
    ),
    ("AMD GPUs", r"\bamd\b|instinct|radeon|\bmi\d{3}[a-z]?\b"),
    ("Intel GPUs", r"\barc\b|data cent(er|re) gpu|gaudi|\bpvc\b|\bhl-?\d|intel.*(gpu|graphics)"),
    ("Google TPUs", r"\btpu|trillium|ironwood"),
)
CATEGORIES = (*(name for name, _ in _WORDS), MIXED, _OTHER, CPU_ONLY)


def category_of(accelerator: str, num_accelerators: int) -> str:
    """The hardware category of a system with so many accelerators of that name."""
    if num_accelerators <= 0:
        return CPU_ONLY
    found = [name for name, words in _WORDS if re.search(words, accelerator, re.IGNORECASE)]
    if len(found) > 1:
        return MIXED
    return found[0] if found else _OTHER
