"""Settings of the native engine; read by the command line, so nothing heavy is imported."""

from __future__ import annotations

from dataclasses import dataclass, field

from paceline.engines.context_limit import ContextLimit, stored_limit
from paceline.engines.knobs import ANSWERS, Knob, divisors, powers
from paceline.errors import InputError

__all__ = ["NativeConfig"]

_CHOICES = {
    "device": ("auto", "cpu", "cuda"),
    "dtype": ("auto", "float32", "bfloat16", "float16"),
    "quantization": ("auto", "none", "fp8-tensor", "fp8-token", "w4a16", "w4a8", "mxfp4", "nvfp4"),
    "kv_dtype": ("auto", "float32", "bfloat16", "float16", "fp8"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class NativeConfig:
    """Settings of the native engine. Lengths and budgets are in tokens."""

    device: str = field(default="auto", metadata=ANSWERS)
    """cpu, cuda, or auto: the first GPU if the machine has one."""

    dtype: str = field(default="auto", metadata=ANSWERS)
    """float32, bfloat16 or float16; auto: float32 on a CPU, bfloat16 on a GPU."""

    quantization: str = field(default="auto", metadata=ANSWERS)
    """auto (as stored), none, fp8-tensor, fp8-token, w4a16, w4a8, mxfp4 or nvfp4."""

    kv_dtype: str = field(default="auto", metadata=ANSWERS)
    """auto (fp8 if stored or with fp8 products), float32, bfloat16, float16 or fp8."""

    max_step_tokens: int = 2048
    """Tokens of one step, prompts and outputs together."""

    max_live_sequences: int = 1024
    """Most sequences in the cache at once."""

    page_len: int = 32
    """Tokens of a page of the cache."""

    kv_memory_fraction: float = 0.95
    """Share of the memory left by the weights that the cache takes."""

    kv_pages: int = 0
    """Pages of the cache; 0: by kv_memory_fraction."""

    tensor_parallel: int = 1
    """Devices that share one copy of the model."""

    data_parallel: int = 1
    """Copies of the model, one a device."""

    use_cuda_graphs: bool = True
    """Replay recorded steps where that pays."""

    @property
    def in_flight(self) -> int:
        """Requests that keep the engine full: a quarter more than live at once."""
        return self.max_live_sequences * 5 // 4 * self.data_parallel

    @property
    def places(self) -> int:
        """Sequences that live at once, at most."""
        return self.max_live_sequences * self.data_parallel

    @property
    def is_longest_first(self) -> bool:
        """Of requests that wait, the longest prompts are taken first."""
        return True

    @property
    def step_tokens(self) -> int:
        """Tokens that one step of all copies has room for, prompts and outputs together."""
        return self.max_step_tokens * self.data_parallel

    def context_limit(self, stored_len: int | None) -> ContextLimit | None:
        """The checkpoint's, or all of a cache whose pages are given."""
        stored = stored_limit(stored_len)
        if not self.kv_pages:
            return stored
        cache = self.cache_limit(self.kv_pages)
        return cache if stored is None or cache.tokens < stored.tokens else stored

    def cache_limit(self, num_pages: int) -> ContextLimit:
        """What a cache of so many pages holds of one sample."""

        def mend(need: int) -> str:
            if self.kv_pages:
                pages = -(-need // self.page_len)
                return f"--set engine.native.kv_pages={pages}, or 0 for what the memory holds"
            return "raise engine.native.kv_memory_fraction or engine.native.tensor_parallel"

        return ContextLimit(
            tokens=num_pages * self.page_len,
            said=f"the KV cache of {num_pages} pages",
            mend=mend,
        )

    def knobs(self, num_gpus: int) -> tuple[Knob, ...]:
        """What may make it faster: budgets, pages, and on GPUs the share of memory and copies."""
        found = [
            Knob("max_step_tokens", powers(128, 8192)),
            Knob("max_live_sequences", powers(16, 2048)),
            Knob("page_len", (16, 32, 64)),
        ]
        if self.device != "cpu" and num_gpus:
            found += [
                Knob("kv_memory_fraction", (0.85, 0.9, 0.93, 0.95, 0.97)),
                Knob("use_cuda_graphs", (True, False)),
                Knob("quantization", ("auto", "none", "fp8-tensor", "fp8-token")),
                Knob("kv_dtype", ("auto", "fp8")),
            ]
        if self.device != "cpu" and num_gpus > 1:
            sizes = tuple(divisors(num_gpus))
            found += [Knob("tensor_parallel", sizes), Knob("data_parallel", sizes)]
        return tuple(found)

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise InputError(
                    f"engine.native.{name} is '{getattr(self, name)}'.",
                    hint=f"one of {', '.join(choices)}",
                )
        if self.data_parallel > 1 and self.tensor_parallel > 1:
            raise InputError(
                "engine.native: data_parallel and tensor_parallel are both more than 1.",
                hint="set one of them to 1",
            )
        counts = ("max_step_tokens", "max_live_sequences", "tensor_parallel", "data_parallel")
        if any(getattr(self, name) < 1 for name in counts) or self.kv_pages < 0:
            raise InputError(
                f"engine.native: {', '.join(counts)} are at least 1.", hint="and kv_pages 0 or more"
            )
