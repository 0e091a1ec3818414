"""Text and token ids, for scoring and for building datasets; no torch, no transformers.

    tokenizer = load_tokenizer(path)     tokenizer.json, a checkpoint's folder, or a GGUF file
    tokenizer.decode_batch(ids)          -> texts without special tokens
    tokenizer.encode_batch(texts)        -> ids, special tokens in the text recognised

A GGUF file carries its vocabulary and merges; the byte-level BPE that they describe (GPT-2's
family, `smollm` among it) is put together here. `tests/mlperf/test_tokenizer.py` holds it to
what transformers makes of the same file.

Source: GGUF keys, ggml-org/ggml docs/gguf.md, section "Tokenizer"; split pattern of `smollm`,
ggml-org/llama.cpp src/llama-vocab.cpp, LLAMA_VOCAB_PRE_TYPE_SMOLLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from paceline.errors import CheckpointError
from paceline.mlperf.gguf_keys import read_gguf_keys

__all__ = ["TextTokenizer", "load_tokenizer"]

_GGUF_KEYS = (
    "tokenizer.ggml.model",
    "tokenizer.ggml.tokens",
    "tokenizer.ggml.token_type",
    "tokenizer.ggml.merges",
)
# ggml's token types: 3 is a control token, 4 user defined.
_SPECIAL_TYPES = frozenset({3, 4})
_CONTROL_TYPE = 3


class TextTokenizer:
    """A tokenizer with the operations that paceline needs."""

    def __init__(self, inner: Tokenizer) -> None:
        self._inner = inner

    @property
    def vocabulary_size(self) -> int:
        return int(self._inner.get_vocab_size())

    def token_of(self, index: int) -> str | None:
        """The text of one token, special or not."""
        token: str | None = self._inner.id_to_token(index)
        return token

    def as_json(self) -> str:
        """What tokenizer.json holds."""
        return str(self._inner.to_str(pretty=True))

    def encode_batch(self, texts: Sequence[str], *, add_special: bool = False) -> list[list[int]]:
        """Ids of each text. `add_special` adds what the tokenizer's template adds (BOS)."""
        encoded = self._inner.encode_batch_fast(list(texts), add_special_tokens=add_special)
        return [list(one.ids) for one in encoded]

    def decode_batch(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Text of each list of ids, special tokens left out."""
        return list(self._inner.decode_batch([list(one) for one in ids], skip_special_tokens=True))

    def ids_of(self, text: str) -> list[int]:
        """Ids of a text; special tokens in it are recognised, none is added."""
        return list(self._inner.encode(text, add_special_tokens=False).ids)

    def text_of(self, token_ids: Sequence[int]) -> str:
        """Text of ids, special tokens included."""
        return str(self._inner.decode(list(token_ids), skip_special_tokens=False))


def load_tokenizer(path: Path) -> TextTokenizer:
    """Read a tokenizer. Raises CheckpointError when there is none that can be read."""
    if path.is_dir():
        path = path / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(
            f"There is no tokenizer at {path}.",
            hint="--set data.tokenizer=PATH to a tokenizer.json, its folder or a GGUF file "
            "(a folder with tokenizer.model only: save it once with transformers' "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...))",
        )
    if path.suffix == ".gguf":
        return TextTokenizer(_from_gguf(path))
    try:
        return TextTokenizer(Tokenizer.from_file(str(path)))
    except Exception as error:  # the Rust side raises a bare Exception
        raise CheckpointError(f"{path} is not a tokenizer that can be read: {error}") from error


def _from_gguf(path: Path) -> Tokenizer:
    try:
        fields = read_gguf_keys(path, _GGUF_KEYS)
        kind, tokens, types, merges = (fields[key] for key in _GGUF_KEYS)
    except (KeyError, ValueError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a GGUF file with a tokenizer: {error}.", hint="check the download"
        ) from error
    if kind != "gpt2":
        raise CheckpointError(
            f"{path} has a '{kind}' tokenizer; only byte-level BPE ('gpt2') is read from GGUF.",
            hint="--set data.tokenizer=PATH to the model's tokenizer.json",
        )
    return _byte_level_bpe(tokens, types, [tuple(merge.split(" ")) for merge in merges])


def _byte_level_bpe(
    tokens: Sequence[str], types: Sequence[int], merges: Sequence[Any]
) -> Tokenizer:
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    for index, kind in enumerate(types):
        if kind in _SPECIAL_TYPES:
            special = AddedToken(tokens[index], special=kind == _CONTROL_TYPE, normalized=False)
            (tokenizer.add_special_tokens if special.special else tokenizer.add_tokens)([special])
    return tokenizer
