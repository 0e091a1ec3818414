"""Token ids to text while they come, and the stop texts that end it.

A token may hold half a character (byte-level BPE, byte fallback), and some tokenizers write a
word's space only when another word comes before it. So the text of a new token is what the text
of a short window of tokens gains by it, and text that ends in the replacement character waits for
the token that completes it. What is left when the answer ends is given as it is.

`StopFinder` holds back the end of the text as long as it may be the beginning of a stop text.
"""

from __future__ import annotations

from collections.abc import Sequence

from paceline.mlperf.tokenizer import TextTokenizer

__all__ = ["Detokenizer", "StopFinder"]

# What a decoder writes for bytes that are no character (yet).
_REPLACEMENT = "\ufffd"
# A model may emit broken bytes for ever: waiting longer than this would hold them back as long.
_MAX_HELD_TOKENS = 8
# A character is at most four bytes, so that three tokens may be the beginning of one.
_MAX_BEGUN_TOKENS = 3


class Detokenizer:
    """The text of one answer, token by token. Special tokens give none."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        # Tokens from _prefix to _read gave text already and are the context of the next ones.
        self._prefix = 0
        self._read = 0

    def add(self, token_ids: Sequence[int]) -> str:
        """The text that became certain by these tokens."""
        self._ids += token_ids
        before, after = self._tokenizer.decode_batch(
            [self._ids[self._prefix : self._read], self._ids[self._prefix :]]
        )
        if after.endswith(_REPLACEMENT):
            return self._add_whole(before)
        self._prefix, self._read = self._read, len(self._ids)
        return after[len(before) :]

    def flush(self) -> str:
        """What is still held back, broken characters as they are. The answer has ended."""
        before, after = self._tokenizer.decode_batch(
            [self._ids[self._prefix : self._read], self._ids[self._prefix :]]
        )
        self._prefix = self._read = len(self._ids)
        return after[len(before) :]

    def _add_whole(self, before: str) -> str:
        """The text ends in half a character: what of it stands before that."""
        newest = len(self._ids)
        oldest = max(self._read, newest - _MAX_HELD_TOKENS)
        for end in range(newest - 1, oldest, -1):
            (text,) = self._tokenizer.decode_batch([self._ids[self._prefix : end]])
            if not text.endswith(_REPLACEMENT):
                self._prefix, self._read = self._read, end
                return text[len(before) :]
        if newest - self._read <= _MAX_HELD_TOKENS:
            return ""
        end = newest - _MAX_BEGUN_TOKENS
        (text,) = self._tokenizer.decode_batch([self._ids[self._prefix : end]])
        self._prefix, self._read = self._read, end
        return text[len(before) :]


class StopFinder:
    """Cuts a text, given in parts, before the first stop text."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.found: str | None = None

    def add(self, text: str) -> str:
        """What of the text so far is sure to be outside any stop text."""
        if not self._stops:
            return text
        self._held += text
        hits = [(at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if hits:
            at, self.found = min(hits)
            return self._held[:at]
        keep = max(self._overlap(stop) for stop in self._stops)
        given = self._held[: len(self._held) - keep]
        self._held = self._held[len(given) :]
        return given

    def flush(self) -> str:
        """What was held back: the answer ended without the rest of a stop text."""
        held, self._held = self._held, ""
        return held

    def _overlap(self, stop: str) -> int:
        """Length of the longest beginning of `stop` that the held text ends with."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)
