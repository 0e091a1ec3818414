"""Which device the native engine runs on. PyTorch is given, as importing it takes seconds."""

from __future__ import annotations

import contextlib
from typing import Any

from paceline.errors import EngineError

__all__ = ["on_device", "resolve_device"]


def resolve_device(device: str, torch: Any) -> str:
    """cpu or cuda, which "auto" becomes one of. Raises EngineError for a GPU that is not there."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise EngineError(
            f"engine.native.device is 'cuda', and this PyTorch ({torch.__version__}) sees no GPU.",
            hint="install a CUDA build of PyTorch, or --set engine.native.device=cpu",
        )
    return device


def on_device(device: str, torch: Any) -> Any:
    """Kernels launch on the thread's current device."""
    return torch.cuda.device(device) if device.startswith("cuda") else contextlib.nullcontext()
