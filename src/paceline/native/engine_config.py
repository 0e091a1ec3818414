"""What the engine is told, and how every "auto" of it becomes a value."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from paceline.native.checkpoint import Source
from paceline.native.errors import NativeError
from paceline.native.executor import ExecutorConfig
from paceline.native.formats import PACKED_KINDS

__all__ = ["EngineConfig"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_QUANTIZATIONS = ("auto", "none", "fp8-tensor", "fp8-token", *PACKED_KINDS)


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    """What runs, where, and how much of it at once. Lengths and budgets are in tokens.

    weights               a directory, a .gguf file, or "random:NAME[:layers=N]"
    quantization          how linear layers multiply: "auto" as the checkpoint is stored;
                          "none" in dtype (a quantised checkpoint is dequantised); "fp8-tensor"
                          a scale per weight, activations' scales fixed where the checkpoint
                          fixes them and per token where not; "fp8-token" a scale per output
                          channel and per token; "w4a8", "w4a16", "mxfp4" and "nvfp4" only of
                          checkpoints of four bits
    kv_dtype              "auto" is FP8 if the checkpoint says so or FP8 products are asked for,
                          else dtype
    kv_memory_fraction    of the memory that weights and activations leave, for the cache
    kv_pages              the cache's size itself, instead
    max_context_len       None is the checkpoint's; prompt and output together
    eos_token_id          None is the checkpoint's
    """

    weights: str
    device: str = "cpu"
    dtype: str = "float32"
    quantization: str = "auto"
    kv_dtype: str = "auto"
    max_step_tokens: int = 2048
    max_live_sequences: int = 1024
    page_len: int = 32
    kv_memory_fraction: float = 0.95
    kv_pages: int | None = None
    max_context_len: int | None = None
    tensor_parallel: int = 1
    eos_token_id: int | None = None
    use_cuda_graphs: bool = True

    def resolve(self, source: Source) -> ExecutorConfig:
        """Every "auto" as a value.

        Raises
            NativeError  a value is not one of its kind's, or two do not go together.
        """
        quantization = self._quantization(source)
        self._check(quantization)
        dtype, stored = _DTYPES[self.dtype], source.stored
        kv_dtypes = {**_DTYPES, "fp8": torch.float8_e4m3fn}
        is_asked = self.quantization.startswith("fp8")
        is_stored = stored is not None and stored.is_kv_fp8 and quantization != "none"
        kv_dtypes["auto"] = torch.float8_e4m3fn if is_asked or is_stored else dtype
        return ExecutorConfig(
            device=torch.device("cuda:0" if self.device == "cuda" else self.device),
            dtype=dtype,
            quantization=quantization,
            kv_dtype=kv_dtypes[self.kv_dtype],
            max_step_tokens=self.max_step_tokens,
            max_live_sequences=self.max_live_sequences,
            page_len=self.page_len,
            kv_memory_fraction=self.kv_memory_fraction,
            kv_pages=self.kv_pages,
            max_context_len=self.max_context_len or source.config.max_context_len,
            use_cuda_graphs=self.use_cuda_graphs,
            eos_token_ids=(
                source.config.eos_token_ids if self.eos_token_id is None else (self.eos_token_id,)
            ),
        )

    def _quantization(self, source: Source) -> str:
        stored = source.stored
        if self.quantization == "auto":
            name = "none" if stored is None else stored.name
            return {"fp8": "fp8-tensor"}.get(name, name)
        if stored is not None and stored.kind and self.quantization.startswith("fp8"):
            raise NativeError(
                f"quantization is {self.quantization}, and the checkpoint is {stored.name}: its "
                "values would be rounded a second time",
                hint=f"quantization auto, {stored.name} or none",
            )
        return self.quantization

    def _check(self, quantization: str) -> None:
        choices = {
            "dtype": tuple(_DTYPES),
            "quantization": _QUANTIZATIONS,
            "kv_dtype": ("auto", "fp8", *_DTYPES),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise NativeError(f"{name} {getattr(self, name)!r} is not one of {allowed}")
        for name in ("max_step_tokens", "max_live_sequences", "tensor_parallel"):
            if getattr(self, name) < 1:
                raise NativeError(f"{name} must be at least 1")
        if self.page_len < 16 or self.page_len % 16:
            raise NativeError(f"page_len {self.page_len} is not a multiple of 16")
        if not 0.0 < self.kv_memory_fraction <= 1.0:
            raise NativeError("kv_memory_fraction must be in (0, 1]")
        is_cuda = torch.device(self.device).type == "cuda"
        if is_cuda and not torch.cuda.is_available():
            raise NativeError("device is cuda and torch finds none", hint="use device cpu")
        if is_cuda and quantization != "none" and self.dtype == "float32":
            raise NativeError("quantised products give 16-bit results: dtype bfloat16 or float16")
        if self.kv_dtype not in ("auto", "fp8", self.dtype):
            raise NativeError(f"kv_dtype {self.kv_dtype} must be fp8 or the dtype, {self.dtype}")
