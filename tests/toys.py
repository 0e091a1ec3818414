"""Small Llama checkpoints, and prompts for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from paceline.quantize import CalibrationSet

FORMATS_AND_KV = [
    ("fp8", True),
    ("fp8", False),
    ("fp8-token", False),
    ("w4a16", False),
    ("w4a8", True),
    ("mxfp4", False),
    ("nvfp4", False),
]


def save_llama(folder: Path, *, seed: int = 0, dtype: str = "bfloat16", **changes: Any) -> Path:
    """A Llama of two blocks whose widths hold whole groups of 128."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "vocab_size": 320,
        "max_position_embeddings": 256,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
    }
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**{**shape, **changes})).eval()
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.15)
        else:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    return folder


def calibration_of(folder: Path, *, num: int = 6, vocab_size: int = 320) -> CalibrationSet:
    """Prompts drawn for a toy, as a calibration set."""
    del folder
    rng = np.random.default_rng(5)
    prompts = tuple(
        rng.integers(3, vocab_size, size=int(rng.integers(8, 40)), dtype=np.int32)
        for _ in range(num)
    )
    return CalibrationSet(
        name="drawn.parquet",
        sha256="0" * 64,
        prompts=prompts,
        rows=tuple(range(num)),
        provenance="drawn at random for a toy",
        is_verified=True,
    )
