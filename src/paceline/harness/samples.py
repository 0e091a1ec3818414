"""The run's samples: their prompts, how each is asked for, how long its answer is expected to be.

    samples = read_samples(config)
    samples.request(request_id, index)

Random weights never end an answer: asked as a model is, each sample would take all the tokens that
the benchmark allows, several times as many as a model gives. Their answers are therefore asked for
with exactly the length that the sample's is expected to have, so that a rehearsal runs the
benchmark's lengths.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from paceline.config import RANDOM_WEIGHTS, RunConfig
from paceline.engines import Request, TokenIds
from paceline.mlperf import dataset, rules

__all__ = ["Samples", "output_lens", "read_samples"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    """By sample index: the prompt, and the tokens of the answer that is expected.

    An answer has from `min_new_tokens` to `max_new_tokens` tokens, as the model ends it; exactly
    the expected ones with `are_lens_fixed`.
    """

    prompts: Sequence[TokenIds]
    expected_lens: Sequence[int]
    max_new_tokens: int
    min_new_tokens: int
    are_lens_fixed: bool = False

    @property
    def note(self) -> str:
        """What a reader of figures made with these samples must know; empty for a model's own."""
        if not self.are_lens_fixed:
            return ""
        mean = statistics.fmean(self.expected_lens)
        return (
            "random weights end no answer: each has the length that is expected of it, "
            f"{mean:.4g} tokens in the mean"
        )

    def request(self, request_id: int, index: int) -> Request:
        """The sample as the engine is asked for it."""
        if self.are_lens_fixed:
            length = self.expected_lens[index]
            return Request(request_id, self.prompts[index], length, length)
        return Request(request_id, self.prompts[index], self.max_new_tokens, self.min_new_tokens)

    def requests(self, indices: Iterable[int]) -> list[Request]:
        """Those samples, each with its index as its id."""
        return [self.request(index, index) for index in indices]


def read_samples(config: RunConfig) -> Samples:
    """The samples of a run. Raises DataError."""
    loaded = dataset.load_dataset(config.data_path, trust_pickle=config.trust_pickle)
    rows = rules.sample_rows(loaded.num_samples, config.num_samples)
    lens = None if loaded.reference_lens is None else loaded.reference_lens[rows].tolist()
    benchmark = rules.benchmark(config.benchmark)
    return Samples(
        prompts=[loaded.prompts[row] for row in rows],
        expected_lens=output_lens(lens, benchmark, len(rows)),
        max_new_tokens=benchmark.max_new_tokens,
        min_new_tokens=benchmark.min_new_tokens,
        are_lens_fixed=str(config.model_path).startswith(RANDOM_WEIGHTS),
    )


def output_lens(
    reference_lens: Sequence[int] | None, benchmark: rules.Benchmark, num_samples: int
) -> list[int]:
    """Lengths that answers are expected to have: the references', stretched to the mean that
    answers of the benchmark have; that mean where the dataset has no lengths."""
    bounds = benchmark.accuracy["tokens_per_sample"]
    mean = (bounds.low + bounds.high) / 2 if bounds.high else bounds.low
    if reference_lens is None:
        return [max(2, round(mean))] * num_samples
    lens = np.asarray(reference_lens, dtype=np.float64)
    stretched = np.clip(np.rint(lens * mean / lens.mean()), 2, benchmark.max_new_tokens)
    return [int(length) for length in stretched]
