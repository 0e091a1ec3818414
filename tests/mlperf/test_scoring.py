"""Scores from accuracy logs: the reference's figures, and findings it does not make."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from paceline.errors import DataError
from paceline.mlperf.logs import AccuracyLog, read_accuracy
from paceline.mlperf.scoring import Score, accuracy_text, bench_scoring, score_accuracy

_VOCABULARY = ["", "the", "cat", "sat", "on", "mats", "running", "dogs", "ran", "home."]
_REFERENCES = ["the cat sat on mats ", "dogs ran home.", " running dogs", "the cat ran home."]


def _decode(lists: Sequence[Sequence[int]]) -> list[str]:
    return [" " + " ".join(_VOCABULARY[i] for i in ids if i) + " " for ids in lists]


def _log(path: Path, entries: Sequence[tuple[int, Sequence[int]]]) -> AccuracyLog:
    path.write_text(
        json.dumps(
            [
                {
                    "seq_id": k,
                    "qsl_idx": index,
                    "data": np.array(ids, "<i4").tobytes().hex(),
                    "token_count": len(ids),
                }
                for k, (index, ids) in enumerate(entries)
            ]
        )
    )
    return read_accuracy(path)


def _score(log: AccuracyLog, *, num_samples: int = 4, vocab_size: int | None = None) -> Score:
    return score_accuracy(
        log, _REFERENCES, decode=_decode, num_samples=num_samples, vocab_size=vocab_size
    )


def _failing(score: Score) -> dict[str, str]:
    return {finding.rule: finding.detail for finding in score.findings if not finding.passed}


def _expected(entries: Sequence[tuple[int, Sequence[int]]]) -> dict[str, float]:
    """evaluate-accuracy.py's arithmetic, stated plainly."""
    first: dict[int, Sequence[int]] = {}
    for index, ids in entries:
        first.setdefault(index, ids)
    predictions = [text.strip() for text in _decode(list(first.values()))]
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    scores = [
        scorer.score(_REFERENCES[index].strip(), prediction)
        for index, prediction in zip(first, predictions, strict=True)
    ]
    figures = {
        metric: round(np.mean([score[metric].fmeasure for score in scores]) * 100, 4)
        for metric in ("rouge1", "rouge2", "rougeL")
    }
    num_tokens = sum(map(len, first.values()))
    return figures | {
        "gen_tok_len": num_tokens,
        "gen_num": len(first),
        "gen_len": sum(map(len, predictions)),
        "tokens_per_sample": round(num_tokens / len(first), 1),
    }


_ids = st.lists(st.integers(0, len(_VOCABULARY) - 1), max_size=12)


@given(st.lists(st.tuples(st.integers(0, 3), _ids), min_size=1, max_size=10))
def test_figures_are_those_of_the_reference(
    tmp_path_factory: pytest.TempPathFactory, entries: list[tuple[int, list[int]]]
) -> None:
    score = _score(_log(tmp_path_factory.mktemp("log") / "log", entries))
    expected = _expected(entries)
    assert {key: getattr(score, key) for key in expected} == expected
    assert score.num_tokens.sum() == score.gen_tok_len
    assert score.per_sample.shape == (score.gen_num, 3)


def test_complete_log_has_no_failing_finding(tmp_path: Path) -> None:
    score = _score(_log(tmp_path / "log", [(3, [1]), (1, [2, 0]), (0, [4]), (2, [7])]))
    assert _failing(score) == {}
    assert score.passed
    assert score.sample_index.tolist() == [3, 1, 0, 2]


def test_missing_samples_are_a_finding_with_their_indices(tmp_path: Path) -> None:
    score = _score(_log(tmp_path / "log", [(1, [1])]))
    assert score.missing == (0, 2, 3)
    assert _failing(score) == {"samples-present": "3 of 4 samples missing: 0, 2, 3"}


def test_repeated_sample_is_a_finding_and_its_first_answer_counts(tmp_path: Path) -> None:
    answers = [(0, [1, 2]), (1, [7]), (2, [6]), (3, [1]), (0, [8, 8, 8])]
    score = _score(_log(tmp_path / "log", answers))
    assert score.repeated == (0,)
    assert list(_failing(score)) == ["samples-unique"]
    assert score.gen_tok_len == 5


def test_sample_outside_the_dataset_is_a_finding_and_not_scored(tmp_path: Path) -> None:
    answers = [(k, [1]) for k in (0, 1, 2, 3, 4, 24576, -1)]
    score = _score(_log(tmp_path / "log", answers))
    assert score.out_of_range == (-1, 4, 24576)
    assert score.gen_num == 4
    assert "-1, 4, 24576" in _failing(score)["samples-in-range"]


def test_wrong_token_count_is_a_finding(tmp_path: Path) -> None:
    path = tmp_path / "log"
    _log(path, [(k, [1, 2]) for k in range(4)])
    path.write_text(path.read_text().replace('"token_count": 2', '"token_count": 3', 1))
    assert _failing(_score(read_accuracy(path)))["token-count-matches"].endswith(": 0")


def test_log_without_token_counts_is_a_finding(tmp_path: Path) -> None:
    path = tmp_path / "log"
    _log(path, [(k, [1]) for k in range(4)])
    path.write_text(path.read_text().replace(', "token_count": 1', ""))
    assert list(_failing(_score(read_accuracy(path)))) == ["token-count-matches"]


def test_ids_beyond_the_vocabulary_are_a_finding_and_not_decoded(tmp_path: Path) -> None:
    answers = [(0, [1, 2]), (1, [10, 7]), (2, [-5, 6]), (3, [])]
    score = _score(_log(tmp_path / "log", answers), vocab_size=10)
    assert "outside 0..9: 1, 2" in _failing(score)["token-ids-in-vocabulary"]
    assert score.gen_tok_len == 6


def test_damaged_log_is_a_finding(tmp_path: Path) -> None:
    path = tmp_path / "log"
    _log(path, [(k, [1]) for k in range(4)])
    path.write_text(path.read_text()[:-20])
    failing = _failing(_score(read_accuracy(path)))
    assert "did not finish" in failing["accuracy-log-sound"]
    assert failing["samples-present"] == "1 of 4 samples missing: 3"


def test_empty_log_scores_nothing_and_misses_everything(tmp_path: Path) -> None:
    score = _score(_log(tmp_path / "log", []))
    assert (score.rouge1, score.tokens_per_sample, score.gen_num) == (0.0, 0.0, 0)
    assert score.missing == (0, 1, 2, 3)


def test_dataset_that_is_too_short_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="4 references, but the run has 5 samples"):
        _score(_log(tmp_path / "log", [(0, [1])]), num_samples=5)


def test_accuracy_text_is_read_by_the_official_patterns(tmp_path: Path) -> None:
    # The patterns are the submission checker's (mlperf-rules, section 3.4).
    score = _score(_log(tmp_path / "log", [(0, [1, 2, 5]), (1, [7, 8])]))
    text = accuracy_text(score, sha256="ab12")
    for key in ("rouge1", "rouge2", "rougeL"):
        (found,) = [
            match[1]
            for line in text.splitlines()
            if (match := re.match(rf".*'{key}':\s+'?([\d.]+)'?.*", line))
        ]
        assert float(found) == getattr(score, key)
    lines = text.splitlines()
    (found,) = [
        match[1]
        for line in lines
        if (match := re.match(r".*'tokens_per_sample':\s([\d.]+).*", line))
    ]
    assert float(found) == score.tokens_per_sample == 2.5
    assert [line for line in lines if re.match(r"^hash=([\w\d]+)$", line)] == ["hash=ab12"]
    assert "np." not in text
    assert "hash" not in accuracy_text(score, sha256=None)


def test_bench_reports_what_it_did() -> None:
    figures = bench_scoring(20, 30, processes=1)
    assert (figures["samples"], figures["words"]) == (20, 30)
    assert figures["seconds"] > 0
