"""What this room needs of nltk and pandas, which take most of a short command's time to import.

A command that scores no text does without nltk, and one that opens no pickle without pandas.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from typing import Any

__all__ = ["porter_stem", "read_pickled_frame", "split_sentences"]


@cache
def porter_stem() -> Callable[[str], str]:
    """nltk's Porter stemmer, as rouge_score calls it."""
    from nltk.stem.porter import PorterStemmer

    stem: Callable[[str], str] = PorterStemmer().stem
    return stem


def split_sentences() -> Callable[[str], list[str]] | None:
    """nltk's splitter of English sentences; None where its data is not installed."""
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab/english")
    except LookupError:
        return None
    split: Callable[[str], list[str]] = nltk.sent_tokenize
    return split


def read_pickled_frame(data: bytes) -> Any:
    """What a pickle holds; it may be no frame. Opening it runs whatever program it holds."""
    import pandas as pd

    return pd.read_pickle(io.BytesIO(data), compression=None)  # noqa: S301
