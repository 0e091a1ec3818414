"""Settings of the reference engine; read by the command line, so nothing heavy is imported."""

from __future__ import annotations

from dataclasses import dataclass, field

from paceline.engines.context_limit import ContextLimit, stored_limit
from paceline.engines.knobs import ANSWERS, Knob, powers
from paceline.errors import InputError

__all__ = ["ReferenceConfig"]

_DTYPES = ("float32", "bfloat16", "float16")
_DEVICES = ("auto", "cpu", "cuda", "rocm")


@dataclass(frozen=True, kw_only=True, slots=True)
class ReferenceConfig:
    """Settings of the reference engine."""

    dtype: str = field(default="float32", metadata=ANSWERS)
    """float32, bfloat16 or float16: weights, activations and KV cache."""

    device: str = field(default="auto", metadata=ANSWERS)
    """cpu, cuda, rocm, or auto: the first GPU if the machine has one."""

    batch_size: int = 64
    """Most prompts decoded together."""

    max_padded_tokens: int = 8192
    """Most prompt tokens of a batch, its padding counted."""

    num_threads: int = 0
    """CPU threads of PyTorch; 0 leaves PyTorch's own choice."""

    @property
    def in_flight(self) -> int:
        """Requests that keep the engine full: a batch, and the next one."""
        return 2 * self.batch_size

    def context_limit(self, stored_len: int | None) -> ContextLimit | None:
        """The checkpoint's: past it transformers goes on, at positions the model never saw."""
        return stored_limit(stored_len)

    def knobs(self, num_gpus: int) -> tuple[Knob, ...]:
        """What may make it faster: the batches."""
        del num_gpus
        return (Knob("batch_size", powers(1, 256)), Knob("max_padded_tokens", powers(512, 65536)))

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES:
            raise InputError(
                f"engine.reference.dtype is '{self.dtype}'.",
                hint=f"one of {', '.join(_DTYPES)}; FP8 and four bits are a checkpoint's: "
                "paceline quantize, then --model OUT",
            )
        if self.device not in _DEVICES:
            raise InputError(
                f"engine.reference.device is '{self.device}'.",
                hint=f"one of {', '.join(_DEVICES)}",
            )
        if self.batch_size < 1 or self.max_padded_tokens < 1 or self.num_threads < 0:
            raise InputError(
                "engine.reference: batch_size, max_padded_tokens or num_threads is too small.",
                hint="batch_size and max_padded_tokens are at least 1, num_threads at least 0",
            )
