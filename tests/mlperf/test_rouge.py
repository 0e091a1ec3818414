"""ROUGE: the same bits as rouge_score, whatever the text."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from paceline.mlperf.rouge import METRICS, rouge_scores

_SCORER = RougeScorer(list(METRICS), use_stemmer=True)

_WORDS = """running runs ran dying lying innings skies news a an the is generalizations oscillators
    happy happiness relational 42 4th x1y2z3 it's don't U.S.A. e-mail naive caresses ponies
    agreed owed hopping falling filing sssss yyyyy aeiou bbbb"""
_word = st.sampled_from(_WORDS.split())
_sentence = st.lists(_word, max_size=30).map(" ".join)
# Letters that lower-case to ASCII (Kelvin sign, dotted I), other scripts, breaks, nulls.
_odd = st.text(
    alphabet=st.sampled_from(
        "aAbB09 \n\t.\x00\x1f\xa0_-'\u2019\u212a\u0130\xdf\xe9\u4e2d\U0001f600"
    )
)
_text = st.one_of(_sentence, _odd, st.text(max_size=60))


def _expected(reference: str, prediction: str) -> list[float]:
    scores = _SCORER.score(reference, prediction)
    return [scores[metric].fmeasure for metric in METRICS]


@given(reference=_text, prediction=_text)
def test_scores_equal_rouge_score_bit_for_bit(reference: str, prediction: str) -> None:
    assert rouge_scores([reference], [prediction])[0].tolist() == _expected(reference, prediction)


@given(st.lists(st.tuples(_sentence, _sentence), max_size=5))
def test_pairs_do_not_disturb_each_other(pairs: list[tuple[str, str]]) -> None:
    references, predictions = [a for a, _ in pairs], [b for _, b in pairs]
    scores = rouge_scores(references, predictions)
    assert scores.shape == (len(pairs), 3)
    assert scores.tolist() == [_expected(a, b) for a, b in pairs]


@pytest.mark.parametrize(
    ("reference", "prediction"),
    [
        ("", ""),
        ("", "word"),
        ("word", ""),
        ("one", "one"),
        ("!!! ...", "\u4e2d\u6587"),
        ("same words here", "same words here"),
        ("a b " * 400, "b a " * 300),
        ("repeat " * 500, "repeat " * 3),
        ("x" * 20_000, "x" * 20_000 + " y"),
        (" ".join(f"w{i}" for i in range(700)), " ".join(f"w{i}" for i in range(700, 0, -1))),
    ],
    ids=lambda text: f"{len(text)}-characters",
)
def test_edge_texts_score_as_in_rouge_score(reference: str, prediction: str) -> None:
    assert rouge_scores([reference], [prediction])[0].tolist() == _expected(reference, prediction)


def test_two_processes_give_the_scores_of_one_in_order() -> None:
    rng = np.random.default_rng(5)
    texts = [" ".join(f"word{i}ing" for i in row) for row in rng.integers(0, 40, (8000, 6))]
    calls: list[tuple[int, int]] = []
    two = rouge_scores(
        texts[:4000], texts[4000:], processes=2, progress=lambda *call: calls.append(call)
    )
    assert np.array_equal(two, rouge_scores(texts[:4000], texts[4000:], processes=1))
    assert calls == sorted(calls)
    assert calls[-1] == (4000, 4000)


def test_lists_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match="2 references but 1 predictions"):
        rouge_scores(["a", "b"], ["a"])
