"""Raw rows that nobody wrote, to time `paceline data build` on; and its slow twin.

write_raw_rows           a raw parquet of any length, with the faults that the filters drop
train_llama_tokenizer    a tokenizer of Llama's form, from words
per_row_rows_per_second  the reference's way: each text of each row encoded by itself
peak_memory_bytes        of this process
"""

from __future__ import annotations

import resource
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tokenizers import (
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from paceline.mlperf.orca_scan import llama_prompt, raw_batches, raw_columns
from paceline.mlperf.tokens import load_llama_tokenizer

__all__ = [
    "peak_memory_bytes",
    "per_row_rows_per_second",
    "train_llama_tokenizer",
    "write_raw_rows",
]

_SPACE = "\u2581"
_ORIGINS = ("flan", "t0", "cot", "niv")
_ORIGIN_SHARES = (0.48, 0.356, 0.09, 0.074)
_SYSTEM_PROMPTS = (
    "You are an AI assistant. You will be given a task. You must generate a detailed answer.",
    "You are a helpful assistant, who always provide explanation.\nThink step by step.",
    "Explain how you used the definition to come up with the answer.",
    "",
)
_NUM_WORDS = 40_000
_FOREIGN_SHARE = 0.03
_LOG_MEAN_WORDS, _LOG_SIGMA_WORDS = 4.8, 0.8
_ROWS_PER_WRITE = 10_000
_PER_ROW_SAMPLE = 2_000
_VOCABULARY = 8_000
_SEED = 7


def write_raw_rows(path: Path, num_rows: int) -> list[str]:
    """Write `num_rows` raw rows; returns the distinct words, the most frequent first."""
    rng = np.random.default_rng(_SEED)
    letters = list("etaoinshrdlucmfwypvbgkjqxz")
    frequency = np.linspace(3, 1, len(letters))
    spelled = rng.choice(letters, (_NUM_WORDS, 10), p=frequency / frequency.sum())
    sizes = rng.integers(2, 11, _NUM_WORDS)
    words = ["".join(row[:size]) for row, size in zip(spelled, sizes, strict=True)]
    ends = np.array(["", ",", ".", ".\n", ":\n\n", "?", "'s"])
    forms = np.array(words)
    names = ("id", "system_prompt", "question", "response")
    schema = pa.schema([(name, pa.string()) for name in names])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, num_rows, _ROWS_PER_WRITE):
            num = min(_ROWS_PER_WRITE, num_rows - start)
            origins = rng.choice(_ORIGINS, num, p=_ORIGIN_SHARES)
            columns = [
                [f"{origin}.{start + i}" for i, origin in enumerate(origins)],
                rng.choice(_SYSTEM_PROMPTS, num).tolist(),
                _texts(rng, num, forms=forms, ends=ends),
                _texts(rng, num, forms=forms, ends=ends),
            ]
            writer.write_table(pa.table(dict(zip(names, columns, strict=True)), schema=schema))
    return words


def _texts(
    rng: np.random.Generator, num: int, *, forms: NDArray[np.str_], ends: NDArray[np.str_]
) -> list[str]:
    lens = rng.lognormal(_LOG_MEAN_WORDS, _LOG_SIGMA_WORDS, num).astype(int) + 1
    weights = 1 / (np.arange(len(forms)) + 2.7)
    total = int(lens.sum())
    words = rng.choice(forms, total, p=weights / weights.sum())
    tails = rng.choice(ends, total, p=[0.86, 0.05, 0.05, 0.01, 0.01, 0.01, 0.01])
    joined = np.char.add(words, tails)
    parts = np.split(joined, np.cumsum(lens)[:-1])
    foreign = rng.random(num) < _FOREIGN_SHARE
    return [
        " ".join(part) + (" \u00e9" if odd else "")
        for part, odd in zip(parts, foreign, strict=True)
    ]


def train_llama_tokenizer(words: list[str]) -> Tokenizer:
    """A small byte-fallback BPE of the form of Llama 2's: no pre-tokenizer, U+2581 for space."""
    unknown = "<unk>"
    tokenizer = Tokenizer(models.BPE(unk_token=unknown, fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)]
    )
    # Words are kept apart while it learns, so that no entry has a space inside.
    tokenizer.pre_tokenizer = pre_tokenizers.Split(_SPACE, "merged_with_next")
    special = [unknown, "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        show_progress=False,
        special_tokens=[*special, *(f"<0x{byte:02X}>" for byte in range(256))],
        initial_alphabet=[chr(code) for code in range(33, 127)],
    )
    weighted = (f"{word} " * (1 + 2000 // (rank + 3)) for rank, word in enumerate(words))
    tokenizer.train_from_iterator(weighted, trainer)
    tokenizer.pre_tokenizer = None
    return tokenizer


def per_row_rows_per_second(parquet: Path, tokenizer_dir: Path) -> float:
    """How many rows a second the tokenizer encodes text by text, over the first rows."""
    tokenizer = load_llama_tokenizer(tokenizer_dir)
    _, _, batch = next(raw_batches(parquet, _PER_ROW_SAMPLE))
    _, systems, questions, responses = raw_columns(batch)
    start = time.perf_counter()
    for system, question, response in zip(systems, questions, responses, strict=True):
        _ = tokenizer.encode(llama_prompt(system, question)).ids
        _ = tokenizer.encode(response).ids
    return len(batch) / (time.perf_counter() - start)


def peak_memory_bytes() -> int:
    """The most memory that this process has had resident.

    Linux carries ru_maxrss over from the parent process, so VmHWM is asked first.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
