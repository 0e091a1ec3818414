"""Llama's tokenizer from a model directory, and token counts at the speed of a dictionary.

`load_llama_tokenizer` gives what transformers' LlamaTokenizerFast gives by default: the
directory's tokenizer.json, with the beginning-of-sequence token (BOS) in front.

`TokenCounter` says how many tokens texts have, without making them, for filters that only
ask whether the number lies between two limits. Two facts spare most of the work:

    a token covers at least one byte, and at most the longest vocabulary entry; most texts
    are short enough, and long enough, for that to answer;

    where no vocabulary entry joins two neighbouring characters, no merge crosses between
    them, so the text may be cut there, and the counts of the pieces add up. In Llama 2's
    vocabulary no entry has a space after another character, and none has a line break: the
    pieces are words, and most words have been counted before.

Both are checked on the tokenizer at hand; without them whole texts are encoded.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from paceline.errors import CheckpointError

__all__ = ["TokenCounter", "load_llama_tokenizer"]

logger = logging.getLogger(__name__)

# SentencePiece writes a space as U+2581.
_SPACE = "\u2581"
_NORMALIZER = {
    "type": "Sequence",
    "normalizers": [
        {"type": "Prepend", "prepend": _SPACE},
        {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE},
    ],
}
_PIECE = re.compile(r" *[^ \n]+| +|\n")
# 150 bytes each; a million rows of OpenOrca have several million distinct pieces.
_CACHED_PIECES_MAX = 1_000_000
_PART_CHARS = 100

# Tokens that are counted already, and pieces to count.
_Split = tuple[int, list[str]]


def load_llama_tokenizer(model_dir: Path) -> Tokenizer:
    """Load tokenizer.json, without truncation or padding, with BOS as the model wants it.

    Raises
        CheckpointError  there is no tokenizer.json, or it is damaged.
    Source
        transformers, LlamaTokenizerFast: add_bos_token True and add_eos_token False unless
        tokenizer_config.json says otherwise.
    """
    path = model_dir / "tokenizer.json"
    hint = "give a Hugging Face model directory, such as Llama-2-70b-chat-hf, with --tokenizer"
    try:
        text = path.read_text(encoding="utf-8")
        config_path = model_dir / "tokenizer_config.json"
        config = json.loads(config_path.read_text("utf-8")) if config_path.exists() else {}
    except OSError as error:
        raise CheckpointError(
            f"{path}: no tokenizer here ({error.strerror}).", hint=hint
        ) from error
    except ValueError as error:
        raise CheckpointError(
            f"{model_dir}: the tokenizer is damaged: {error}.", hint=hint
        ) from error
    try:
        tokenizer: Tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the library raises no narrower type
        raise CheckpointError(f"{path}: the tokenizer is damaged: {error}.", hint=hint) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    names = [
        _content(config.get(f"{name}_token", default))
        for name, default in (("bos", "<s>"), ("eos", "</s>"))
    ]
    adds = [bool(config.get("add_bos_token", True)), bool(config.get("add_eos_token", False))]
    ids = [tokenizer.token_to_id(name) for name in names]
    if any(add and token_id is None for add, token_id in zip(adds, ids, strict=True)):
        raise CheckpointError(f"{path}: {' or '.join(names)} is not in the vocabulary.", hint=hint)
    bos, eos = names
    tokenizer.post_processor = TemplateProcessing(
        single=[*([bos] if adds[0] else []), "$A", *([eos] if adds[1] else [])],
        special_tokens=[
            (name, token_id)
            for name, token_id in zip(names, ids, strict=True)
            if token_id is not None
        ],
    )
    return tokenizer


def _content(token: object) -> str:
    """A token of tokenizer_config.json, which is a string or an object around one."""
    return str(token.get("content")) if isinstance(token, dict) else str(token)


class TokenCounter:
    """Counts the tokens that a tokenizer would give, special tokens included."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        spec = json.loads(tokenizer.to_str())
        self._tokenizer = tokenizer
        self._num_added = tokenizer.num_special_tokens_to_add(False)
        self._pieces = _piece_tokenizer(spec)
        self._len_of_piece = _PieceLens()
        # Like the library: of the special tokens that begin at a place, the longest.
        contents = sorted((t["content"] for t in spec["added_tokens"]), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, contents)) or r"(?!)")
        # A space after one of these is joined to another space.
        self._no_cut_after = " " + "".join(content[-1:] for content in contents)
        self._entry_len_max = max(map(len, [*contents, *tokenizer.get_vocab()]))

    @property
    def is_fast(self) -> bool:
        """Whether texts may be counted piece by piece."""
        return self._pieces is not None

    def lens(self, texts: Sequence[str]) -> list[int]:
        """The number of tokens of each text."""
        if self._pieces is None:
            return [len(encoding) for encoding in self._tokenizer.encode_batch_fast(texts)]
        return self._sum([self._split(text) for text in texts], self._pieces)

    def lens_for_limits(self, texts: Sequence[str], *, low: int, limit: int) -> list[int]:
        """The number of tokens of each text, or a number on the same side of both limits."""
        if self._pieces is None:
            return self.lens(texts)
        lens = [low] * len(texts)
        unsure: dict[int, _Split] = {}
        for i, text in enumerate(texts):
            if not self._surely_in(text, low, limit):
                num, pieces = self._split(text)
                # A piece is one token or more.
                lens[i] = self._num_added + num + len(pieces)
                if lens[i] < limit:
                    unsure[i] = num, pieces
        for i, num in zip(unsure, self._sum(list(unsure.values()), self._pieces), strict=True):
            lens[i] = num
        return lens

    def _surely_in(self, text: str, low: int, limit: int) -> bool:
        if self._num_added + len(text) / self._entry_len_max < low:
            return False
        # A byte is at most a token. A space is put in front of the text, and after each
        # special token, whose two or more bytes make up for it.
        is_ascii = text.isascii()
        most = self._num_added + 1 + (len(text) if is_ascii else len(text.encode()))
        start = len(text) if _SPACE in text else 0
        while most >= limit and start < len(text):
            # Words that have been met have some four bytes a token: reading a part of the
            # text often takes off enough.
            end = text.find(" ", start + 3 * (most - limit) // 2 + _PART_CHARS)
            if end < 0 or text[end - 1] in self._no_cut_after:
                end = len(text)
            part = text[start:end]
            num, pieces = self._split(part, is_start=start == 0)
            most += num + sum(map(self._len_of_piece.__getitem__, pieces))
            most -= len(part) if is_ascii else len(part.encode())
            start = end
        return most < limit

    def _sum(self, splits: Sequence[_Split], piece_tokenizer: Tokenizer) -> list[int]:
        """Count pieces that are met for the first time, and add up."""
        met = set[str]().union(*(pieces for _, pieces in splits))
        if len(self._len_of_piece) + len(met) > _CACHED_PIECES_MAX:
            self._len_of_piece.clear()
        listed = list(met.difference(self._len_of_piece))
        encodings = piece_tokenizer.encode_batch_fast(listed)
        self._len_of_piece.update(zip(listed, map(len, encodings), strict=True))
        len_of = self._len_of_piece.__getitem__
        return [self._num_added + num + sum(map(len_of, pieces)) for num, pieces in splits]

    def _split(self, text: str, *, is_start: bool = True) -> _Split:
        """Split a text into a number of tokens that are counted, and pieces to count.

        A space is put in front of the text and after special tokens; a later part of a text
        begins with its own.
        """
        if _SPACE in text:
            return len(self._tokenizer.encode(text)) - self._num_added, []
        segments = self._special.split(text)
        pieces: list[str] = []
        for i, segment in enumerate(segments):
            if segment:
                pieces += _PIECE.findall(" " + segment if i or is_start else segment)
        return len(segments) - 1, pieces


class _PieceLens(dict[str, int]):
    """Tokens of the pieces that have been counted; of others, a bound: a token a byte."""

    def __missing__(self, piece: str) -> int:
        return len(piece.encode())


def _piece_tokenizer(spec: dict[str, Any]) -> Tokenizer | None:
    """A tokenizer for pieces, or None if cutting might alter the result."""
    model = spec["model"]
    plain = (
        spec["normalizer"] == _NORMALIZER
        and spec["pre_tokenizer"] is None
        and spec["truncation"] is None
        and spec["padding"] is None
        and model["type"] == "BPE"
        and model["byte_fallback"]
        and not any(
            model.get(key)
            for key in (
                "dropout",
                "ignore_merges",
                "continuing_subword_prefix",
                "end_of_word_suffix",
            )
        )
        and not any(
            token[flag] or len(token["content"]) < 2 or " " in token["content"]
            for token in spec["added_tokens"]
            for flag in ("single_word", "lstrip", "rstrip", "normalized")
        )
        and _no_entry_crosses(model["vocab"])
    )
    if not plain:
        logger.info("this tokenizer's texts cannot be cut into words; counting is slower")
        return None
    normalizer = _NORMALIZER["normalizers"][1]
    piece_spec = spec | {"normalizer": normalizer, "post_processor": None, "added_tokens": []}
    piece_tokenizer: Tokenizer = Tokenizer.from_str(json.dumps(piece_spec))
    return piece_tokenizer


def _no_entry_crosses(vocabulary: dict[str, int]) -> bool:
    """Whether no entry joins a space to what precedes it, or a line break to anything.

    A space and each byte must be entries, so that no character is more tokens than bytes.
    """
    if not {_SPACE, *(f"<0x{byte:02X}>" for byte in range(256))} <= vocabulary.keys():
        return False
    crossing = re.compile(f"[^{_SPACE}]{_SPACE}|\n|.<0x0A>|<0x0A>.", re.DOTALL)
    return not any(crossing.search(entry) for entry in vocabulary)
