"""A dataset of the real lengths and no meaning, to rehearse whole runs without the real one.

Rows have the columns of the benchmark's frame. Texts are words `w3` ... `w31999`, one token each
under the word-level tokenizer that is written beside the dataset, so that answers decode and
score like real ones. Lengths are drawn from the figures published for the benchmark: reference
answers around 294 tokens with the percentiles below, prompts log-normal with a mean of 277.

    build_synthetic(folder, num_samples) -> folder/dataset.parquet, folder/tokenizer.json

A run on it measures a harness and a schedule, never a model, and can never be a submission: its
checksum is not the benchmark's.

Source of the lengths: 586 outputs in the published TEST06 logs of llama2-70b, rounds v4.1-v6.0.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from tokenizers import Tokenizer, models, pre_tokenizers

from paceline.rundir import make_folder, write_atomically

__all__ = ["build_synthetic", "draw_lengths"]

_ORIGINS = ("cot", "flan", "niv", "t0")
_VOCABULARY = 32000
_FIRST_WORD = 3
_OUTPUT_QUANTILES = (0.0, 0.01, 0.05, 0.10, 0.25, 0.50, 0.75, 0.90, 0.95, 0.99, 1.0)
_OUTPUT_LENS = (10.0, 34.0, 75.0, 110.0, 175.0, 263.0, 383.0, 536.0, 622.0, 918.0, 1022.0)
_PROMPT_LOG_MEAN, _PROMPT_LOG_SIGMA = 5.4, 0.7
_PROMPT_LENS = (20, 1022)
_SEED = 1337
_EOS = 2


def build_synthetic(folder: Path, num_samples: int) -> Path:
    """Write the dataset and its tokenizer; returns the dataset's path.

    Raises EnvironmentProblem when the folder cannot be written.
    """
    make_folder(folder)
    frame = _frame(num_samples)
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    write_atomically(folder / "tokenizer.json", _tokenizer().to_str())
    path = folder / "dataset.parquet"
    write_atomically(path, buffer.getvalue())
    return path


def draw_lengths(
    num_samples: int, rng: np.random.Generator | None = None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Prompt and output lengths of samples, (n,) int64 each, in tokens; the same every time."""
    rng = rng or np.random.default_rng(_SEED)
    output_lens = np.interp(rng.random(num_samples), _OUTPUT_QUANTILES, _OUTPUT_LENS)
    prompt_lens = rng.lognormal(_PROMPT_LOG_MEAN, _PROMPT_LOG_SIGMA, num_samples)
    return np.clip(prompt_lens.astype(np.int64), *_PROMPT_LENS), output_lens.astype(np.int64)


def _frame(num_samples: int) -> pd.DataFrame:
    rng = np.random.default_rng(_SEED)
    prompt_lens, output_lens = draw_lengths(num_samples, rng)
    prompts = [_words(rng, length) for length in prompt_lens]
    answers = [_words(rng, length) for length in output_lens]
    origins = [_ORIGINS[row * len(_ORIGINS) // num_samples] for row in range(num_samples)]
    return pd.DataFrame(
        {
            "id": [f"{origin}.{row}" for row, origin in enumerate(origins)],
            "system_prompt": "",
            "question": [_text(prompt) for prompt in prompts],
            "output": [_text(answer) for answer in answers],
            "input": [_text(prompt) for prompt in prompts],
            "origin": origins,
            "tok_input": [prompt.tolist() for prompt in prompts],
            "tok_output": [[*answer.tolist(), _EOS] for answer in answers],
            "tok_input_length": prompt_lens.astype(np.int64),
            "tok_output_length": output_lens.astype(np.int64) + 1,
        }
    )


def _words(rng: np.random.Generator, length: int) -> npt.NDArray[np.int64]:
    return rng.integers(_FIRST_WORD, _VOCABULARY, length)


def _text(ids: npt.NDArray[np.int64]) -> str:
    return " ".join(f"w{token_id}" for token_id in ids.tolist())


def _tokenizer() -> Tokenizer:
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": _EOS}
    vocabulary |= {f"w{token_id}": token_id for token_id in range(_FIRST_WORD, _VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))  # noqa: S106 - a token, no secret
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer
