"""Triton where it is installed, and which calls use it.

A laptop's torch comes without Triton; the definitions beside the kernels run there, and the
kernels are then plain functions that nothing calls.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from typing import Any

from torch import Tensor

__all__ = ["HAS_TRITON", "pow2", "tl", "triton", "uses_kernel"]

HAS_TRITON = importlib.util.find_spec("triton") is not None


class _NoTriton:
    """Stands in for the module: decorating works, launching does not."""

    @staticmethod
    def jit(function: Any = None, **_options: Any) -> Any:
        return function if function is not None else lambda inner: inner


triton: Any = importlib.import_module("triton") if HAS_TRITON else _NoTriton()
tl: Any = importlib.import_module("triton.language") if HAS_TRITON else _NoTriton()

# The interpreter runs kernels on CPU tensors; the tests of addresses and masks use it.
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def uses_kernel(x: Tensor) -> bool:
    """True if an entry launches its kernel for `x`, False if it runs the definition."""
    return x.is_cuda or (_INTERPRETED and HAS_TRITON)


def pow2(width: int) -> int:
    """The least power of two that is not under `width`."""
    return 1 << (width - 1).bit_length()
