"""What the rule book is made of: the kinds of facts that `rules` has, each with its source.

Source         where a constant was read
Bounds         an inclusive range that a figure must lie in
Seeds          LoadGen's three seeds of a round
TokenLatency   the limits of a latency-bound scenario
Round          what one MLPerf Inference round fixes
Benchmark      what one benchmark fixes
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Benchmark", "Bounds", "Round", "Seeds", "Source", "TokenLatency"]


@dataclass(frozen=True, slots=True)
class Source:
    """Where a constant was read: repository, commit, file and the name or section in it."""

    repository: str
    commit: str
    path: str
    symbol: str

    def __str__(self) -> str:
        return f"{self.repository}@{self.commit[:8]}:{self.path} ({self.symbol})"


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounds:
    """An inclusive range that a figure must lie in; `high` None means no upper bound."""

    low: float
    high: float | None = None
    source: Source

    def hold(self, value: float) -> bool:
        """True when `value` lies in the range. NaN never does."""
        return value >= self.low and (self.high is None or value <= self.high)

    def __str__(self) -> str:
        return f"at least {self.low:g}" + (f", at most {self.high:g}" if self.high else "")


@dataclass(frozen=True, kw_only=True, slots=True)
class Seeds:
    """The three LoadGen seeds that a round fixes; they are compiled into its wheels."""

    qsl: int
    sample_index: int
    schedule: int
    source: Source


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenLatency:
    """Limits of a latency-bound scenario, in milliseconds, that a percentile must keep.

    MLPerf's is the 99th. `enough_queries` is how many LoadGen must issue to believe it.
    """

    ttft_ms: int
    tpot_ms: int
    source: Source
    percentile: int = 99
    # Early stopping takes a 99th percentile from 459 queries on when none is over the limit,
    # and from 662 on when one is.
    enough_queries: int = 662


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """What one MLPerf Inference round fixes for this benchmark.

    `wheel` is the newest mlcommons-loadgen release seen to carry `seeds`. `layout` is the shape
    of the submission tree: "v5" has measurements/, compliance/ and code/ beside results/; "v6"
    keeps everything of a result under results/ and its source under src/.
    """

    name: str
    wheel: str
    seeds: Seeds
    benchmarks: tuple[str, ...]
    layout: str
    source: Source


@dataclass(frozen=True, kw_only=True, slots=True)
class Benchmark:
    """What one benchmark fixes.

    `loadgen_model` is the key under which LoadGen's own mlperf.conf knows the benchmark: the
    name without its accuracy suffix. `num_samples` is the accuracy set; `performance_samples`
    is how many of them a performance run loads and issues at least. `prompt_limit` is strict:
    prompts are shorter. `accuracy` holds one Bounds a metric, in the units of accuracy.txt
    (ROUGE in percent, tokens per sample).
    """

    name: str
    loadgen_model: str
    is_mlperf: bool
    num_samples: int
    performance_samples: int
    min_duration_ms: int
    prompt_limit: int
    max_new_tokens: int
    min_new_tokens: int
    eos_token_id: int
    vocabulary_size: int
    dataset_md5: str | None
    scenarios: tuple[str, ...]
    accuracy: dict[str, Bounds]
    latency: dict[str, TokenLatency]
    source: Source

    def loadgen_key(self, scenario: str) -> str:
        """The model key of a scenario: Interactive has limits, and so a key, of its own."""
        return (
            f"{self.loadgen_model}-interactive" if scenario == "Interactive" else self.loadgen_model
        )
