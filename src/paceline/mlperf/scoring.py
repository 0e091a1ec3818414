"""From an accuracy log to the four accuracy figures, and to all that is wrong with the log.

The figures are those of the reference's evaluate-accuracy.py, digit for digit: samples in
the order of the log, the first answer of a repeated sample, every logged id counted
(an end-of-sequence token too), texts stripped, F-measures averaged and rounded alike. Unlike
that script, `score_accuracy` also says which samples are missing, repeated or unknown, and
which token counts or ids are impossible.

Source: mlcommons/inference b66003e1, language/llama2-70b/evaluate-accuracy.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paceline.errors import DataError
from paceline.mlperf.accuracy_log import AccuracyLog, Finding
from paceline.mlperf.late import split_sentences
from paceline.mlperf.rouge import METRICS, rouge_scores
from paceline.mlperf.rule_kinds import Benchmark

__all__ = [
    "Score",
    "accuracy_text",
    "bench_scoring",
    "gate",
    "mean_percent",
    "score_accuracy",
    "tokens_per_sample",
]

_DECODED_AT_ONCE = 1024
_INDICES_SHOWN = 20


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Score:
    """The figures of an accuracy run over the n samples that could be scored.

    Units
        rouge1, rouge2, rougeL  mean F-measure times 100, rounded to 4 decimals
        tokens_per_sample       gen_tok_len / gen_num, rounded to 1 decimal
        gen_len                 characters of the answers, sentences joined by one newline
                                where nltk's punkt_tab data is installed (else as they are)
    Shapes
        sample_index, num_tokens  (n,) int64, in the order of the log
        per_sample                (n, 3) float64: rouge1, rouge2, rougeL, in [0, 1]
    """

    rouge1: float
    rouge2: float
    rougeL: float
    tokens_per_sample: float
    gen_len: int
    gen_num: int
    gen_tok_len: int
    sample_index: NDArray[np.int64]
    num_tokens: NDArray[np.int64]
    per_sample: NDArray[np.float64]
    missing: tuple[int, ...]
    repeated: tuple[int, ...]
    out_of_range: tuple[int, ...]
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether every finding holds. The accuracy targets are another matter."""
        return all(finding.passed for finding in self.findings)


def score_accuracy(
    log: AccuracyLog,
    references: Sequence[str],
    *,
    decode: Callable[[Sequence[Sequence[int]]], list[str]],
    num_samples: int,
    vocab_size: int | None = None,
    processes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Score:
    """Score every sample that has an answer and a reference.

    `decode` turns lists of ids into texts without special tokens. Ids that are negative, or
    not below `vocab_size`, are left out of its input, and are a failing finding.

    Raises
        DataError  `references` are fewer than `num_samples`.
    """
    if len(references) < num_samples:
        raise DataError(
            f"The dataset has {len(references)} references, but the run has {num_samples} samples.",
            hint="score with the dataset that the run used; its manifest names it",
        )
    chosen = _select(log, num_samples)
    sample_index, num_tokens = log.qsl_idx[chosen.entries], log.tokens.lens[chosen.entries]
    answers = [text.strip() for text in _decode(log, chosen.entries, decode, vocab_size)]
    per_sample = rouge_scores(
        [references[i].strip() for i in sample_index.tolist()],
        answers,
        processes=processes,
        progress=progress,
    )
    gen_num, gen_tok_len = len(answers), int(num_tokens.sum())
    rouge1, rouge2, rouge_l = (mean_percent(per_sample[:, k]) for k in range(len(METRICS)))
    return Score(
        rouge1=rouge1,
        rouge2=rouge2,
        rougeL=rouge_l,
        tokens_per_sample=tokens_per_sample(gen_tok_len, gen_num),
        gen_len=_gen_len(answers),
        gen_num=gen_num,
        gen_tok_len=gen_tok_len,
        sample_index=sample_index,
        num_tokens=num_tokens,
        per_sample=per_sample,
        missing=chosen.missing,
        repeated=chosen.repeated,
        out_of_range=chosen.out_of_range,
        findings=_findings(log, chosen, num_samples=num_samples, vocab_size=vocab_size),
    )


def accuracy_text(score: Score, *, sha256: str | None) -> str:
    """The text of accuracy.txt, as the official checker's regular expressions read it.

    `sha256` is the hash of the whole accuracy log, which stands for it once the log is
    truncated for submission. rougeLsum, which nobody checks, is left out.

    Source: mlcommons/inference b66003e1, tools/submission, ACC_PATTERN and the hash line of
    truncate_accuracy_log.py.
    """
    figures = {
        "rouge1": score.rouge1,
        "rouge2": score.rouge2,
        "rougeL": score.rougeL,
        "gen_len": score.gen_len,
        "gen_num": score.gen_num,
        "gen_tok_len": score.gen_tok_len,
        "tokens_per_sample": score.tokens_per_sample,
    }
    text = f"\nResults\n\n{figures}\n"
    return text if sha256 is None else f"{text}\nhash={sha256}\n"


def bench_scoring(
    num_samples: int = 24576, num_words: int = 200, *, processes: int | None = None
) -> dict[str, float]:
    """Time `rouge_scores` on made-up texts with the word frequencies of English (Zipf's law).

    Returns seconds, samples, words (of one side of one sample) and samples_per_second.
    """
    rng = np.random.default_rng(0)
    letters = list("etaoinshrdlucmfwypvbgkjqxz")
    vocabulary = np.array(
        ["".join(rng.choice(letters, rng.integers(2, 12))) for _ in range(30_000)]
    )
    weights = 1 / (np.arange(len(vocabulary)) + 2.7)
    words = rng.choice(vocabulary, (2 * num_samples, num_words), p=weights / weights.sum())
    texts = [" ".join(row) for row in words]
    start = time.perf_counter()
    rouge_scores(texts[:num_samples], texts[num_samples:], processes=processes)
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "samples": num_samples,
        "words": num_words,
        "samples_per_second": num_samples / seconds,
    }


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Chosen:
    """The entries of the log that are scored, (n,) int64, and the samples that are amiss."""

    entries: NDArray[np.int64]
    missing: tuple[int, ...]
    repeated: tuple[int, ...]
    out_of_range: tuple[int, ...]


def _select(log: AccuracyLog, num_samples: int) -> _Chosen:
    known = (log.qsl_idx >= 0) & (log.qsl_idx < num_samples)
    entries = np.flatnonzero(known)
    indices, first, counts = np.unique(log.qsl_idx[entries], return_index=True, return_counts=True)
    return _Chosen(
        entries=entries[np.sort(first)],
        missing=tuple(np.setdiff1d(np.arange(num_samples), indices).tolist()),
        repeated=tuple(indices[counts > 1].tolist()),
        out_of_range=tuple(np.unique(log.qsl_idx[~known]).tolist()),
    )


def _findings(
    log: AccuracyLog, chosen: _Chosen, *, num_samples: int, vocab_size: int | None
) -> tuple[Finding, ...]:
    repeated = "repeated (the first answer is scored)"
    return (
        _complete(log),
        _none("samples-present", "missing", chosen.missing, num_samples),
        _none("samples-unique", repeated, chosen.repeated, num_samples),
        _none("samples-in-range", "not in the dataset", chosen.out_of_range, num_samples),
        _token_count(log, num_samples),
        _vocabulary(log, vocab_size, num_samples),
    )


def _decode(
    log: AccuracyLog,
    kept: NDArray[np.int64],
    decode: Callable[[Sequence[Sequence[int]]], list[str]],
    vocab_size: int | None,
) -> Iterable[str]:
    end = np.iinfo(np.int32).max if vocab_size is None else vocab_size
    for start in range(0, len(kept), _DECODED_AT_ONCE):
        batch = [log.tokens[i] for i in kept[start : start + _DECODED_AT_ONCE].tolist()]
        yield from decode([ids[(ids >= 0) & (ids < end)].tolist() for ids in batch])


def mean_percent(scores: NDArray[np.float64]) -> float:
    """Mean of (n,) F-measures times 100, rounded as the reference rounds; 0 of none."""
    # A contiguous copy is summed pairwise, in the same order as the reference's list.
    return float(np.round(np.mean(np.ascontiguousarray(scores)) * 100, 4)) if len(scores) else 0.0


def tokens_per_sample(num_tokens: int, num_samples: int) -> float:
    """Tokens of an answer in the mean, rounded as the reference rounds; 0 of none."""
    return round(num_tokens / num_samples, 1) if num_samples else 0.0


def gate(benchmark: Benchmark, figures: Mapping[str, float]) -> tuple[Finding, ...]:
    """Whether each figure, by its metric's name, holds the benchmark's bounds."""
    return tuple(
        Finding(
            rule=metric,
            passed=bounds.hold(figures[metric]),
            detail=f"{figures[metric]}, {bounds}",
        )
        for metric, bounds in benchmark.accuracy.items()
    )


def _gen_len(answers: Sequence[str]) -> int:
    split = split_sentences()
    if split is None:
        return sum(map(len, answers))
    return sum(len("\n".join(split(text))) for text in answers)


def _listed(indices: Sequence[int]) -> str:
    shown = ", ".join(map(str, indices[:_INDICES_SHOWN]))
    more = len(indices) - _INDICES_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


def _none(rule: str, what: str, indices: Sequence[int], num_samples: int) -> Finding:
    detail = f"0 of {num_samples} samples {what}"
    if indices:
        detail = f"{len(indices)} of {num_samples} samples {what}: {_listed(indices)}"
    return Finding(rule=rule, passed=not indices, detail=detail)


def _complete(log: AccuracyLog) -> Finding:
    faults = [f"line {fault.line_no}: {fault.detail}" for fault in log.malformed[:5]]
    if len(log.malformed) > len(faults):
        faults.append(f"{len(log.malformed) - len(faults)} more such places")
    if not log.closed:
        faults.append("the closing bracket is missing: LoadGen did not finish")
    detail = "; ".join(faults) or f"{len(log)} entries, all sound"
    return Finding(rule="accuracy-log-sound", passed=not faults, detail=f"{log.path}: {detail}")


def _token_count(log: AccuracyLog, num_samples: int) -> Finding:
    rule = "token-count-matches"
    if log.token_count is None:
        # LoadGen writes the count whenever use_token_latencies is on, as the benchmark asks.
        return Finding(rule=rule, passed=False, detail="the log has no token_count")
    wrong = log.qsl_idx[log.token_count != log.tokens.lens].tolist()
    what = "report another number of tokens than they answered"
    return _none(rule, what, sorted(set(wrong)), num_samples)


def _vocabulary(log: AccuracyLog, vocab_size: int | None, num_samples: int) -> Finding:
    flat = log.tokens.flat
    bad = flat < 0
    if vocab_size is not None:
        bad |= flat >= vocab_size
    entries = np.searchsorted(log.tokens.offsets, np.flatnonzero(bad), side="right") - 1
    samples = np.unique(log.qsl_idx[entries]).tolist()
    limit = "negative" if vocab_size is None else f"outside 0..{vocab_size - 1}"
    return _none("token-ids-in-vocabulary", f"answer with ids {limit}", samples, num_samples)
