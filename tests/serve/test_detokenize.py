"""Text that comes token by token is the text of the whole, in whole characters."""

from __future__ import annotations

import itertools
from functools import cache

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from paceline.config import embedded_model
from paceline.mlperf.tokenizer import TextTokenizer, load_tokenizer
from paceline.serve.detokenize import Detokenizer, StopFinder


@cache
def byte_level() -> TextTokenizer:
    return load_tokenizer(embedded_model())


@cache
def byte_fallback() -> TextTokenizer:
    """Llama-2's kind: a space is written before a word, unknown characters as bytes."""
    words = ["<unk>", "\u2581the", "\u2581", "cat", "s"]
    vocabulary = {word: i for i, word in enumerate(words)}
    vocabulary |= {f"<0x{byte:02X}>": len(words) + byte for byte in range(256)}
    inner = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    inner.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return TextTokenizer(inner)


def in_parts(tokenizer: TextTokenizer, ids: list[int], sizes: list[int]) -> list[str]:
    detokenizer, parts, start = Detokenizer(tokenizer), [], 0
    for size in [*sizes, *[1] * len(ids)]:
        if start < len(ids):
            parts.append(detokenizer.add(ids[start : start + size]))
            start += size
    return [*parts, detokenizer.flush()]


@pytest.mark.parametrize("kind", [byte_level, byte_fallback])
@settings(deadline=None, max_examples=60)
# The vocabulary lacks a byte of the first two: six broken ones come before a whole character.
@example(text="\U00040000\U00040000\U000c0000", sizes=[])
@given(text=st.text(max_size=40), sizes=st.lists(st.integers(1, 5), max_size=10))
def test_the_parts_of_a_text_are_whole_characters_and_make_it_up(kind, text, sizes) -> None:
    tokenizer = kind()
    if kind is byte_fallback:  # it has no merges: its tokens are bytes, as for a rare script
        ids = [5 + byte for byte in text.encode()]
    else:
        (ids,) = tokenizer.encode_batch([text])
    parts = in_parts(tokenizer, ids, sizes)
    (whole,) = tokenizer.decode_batch([ids])
    assert "".join(parts) == whole
    if "\ufffd" not in whole:
        assert not any("\ufffd" in part for part in parts)


def test_a_character_of_four_tokens_comes_with_its_last() -> None:
    ids = [5 + byte for byte in "a\U0001f600b".encode()]
    assert in_parts(byte_fallback(), ids, []) == ["a", "", "", "", "\U0001f600", "b", ""]


def test_spaces_between_words_are_kept() -> None:
    parts = in_parts(byte_fallback(), [1, 1, 2, 3, 4, 1], [])
    assert parts == ["the", " the", " ", "cat", "s", " the", ""]


def test_bytes_that_never_make_a_character_are_not_held_for_ever() -> None:
    ids = [5 + 0xC3] * 30
    parts = in_parts(byte_fallback(), ids, [])
    assert "".join(parts).count("\ufffd") == 30
    assert any(parts[:15])


@settings(deadline=None)
@given(
    text=st.text(alphabet="ab ", max_size=30),
    stops=st.lists(st.text(alphabet="ab ", min_size=1, max_size=4), min_size=1, max_size=3),
    cuts=st.lists(st.integers(0, 30), max_size=6),
)
def test_what_is_given_is_the_text_before_the_first_stop(text, stops, cuts) -> None:
    finder, given_parts = StopFinder(stops), []
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    for start, end in itertools.pairwise(edges):
        given_parts.append(finder.add(text[start:end]))
        if finder.found is not None:
            break
    else:
        given_parts.append(finder.flush())
    got = "".join(given_parts)
    if finder.found is None:
        assert got == text
        assert not any(stop in text for stop in stops)
    else:
        assert text.startswith(got + finder.found)
        assert not any(stop in got for stop in stops)
