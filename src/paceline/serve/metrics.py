"""Counts and latencies of the server, in Prometheus' text format.

Source: Prometheus, "Exposition formats", text format 0.0.4.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter

from paceline.engines import EngineState

__all__ = ["Histogram", "Metrics"]

# Name, kind, what it is about, and what follows the name in each line.
_Family = tuple[str, str, str, list[str]]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 600.0)


class Histogram:
    """Cumulative buckets of seconds."""

    def __init__(self) -> None:
        self._counts = [0] * (len(_SECONDS) + 1)
        self._sum_s = 0.0

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(_SECONDS, seconds)] += 1
        self._sum_s += seconds

    def samples(self) -> list[str]:
        """What follows the name in each line."""
        samples, total = [], 0
        for bound, count in zip((*map(str, _SECONDS), "+Inf"), self._counts, strict=True):
            total += count
            samples.append(f'_bucket{{le="{bound}"}} {total}')
        return [*samples, f"_sum {self._sum_s:.6f}", f"_count {total}"]


class Metrics:
    """What `/metrics` says. A request is an HTTP request, a prompt one of its prompts."""

    def __init__(self) -> None:
        self.http = Counter[tuple[str, int]]()
        self.prompts = Counter[str]()
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.notes = Counter[str]()
        self.ttft = Histogram()
        self.duration = Histogram()
        self.queue_time = Histogram()

    def text(self, *, in_flight: int, queued: int, state: EngineState | None) -> str:
        """The page; `state` is the engine's word on itself, None of one that has none."""
        families = [
            *self._counters(),
            *_gauges(in_flight, queued),
            *_engine_gauges(state or EngineState(), queued),
            *self._histograms(),
        ]
        lines: list[str] = []
        for name, kind, about, samples in families:
            lines += [f"# HELP paceline_{name} {about}", f"# TYPE paceline_{name} {kind}"]
            lines += [f"paceline_{name}{sample}" for sample in samples]
        return "\n".join(lines) + "\n"

    def _counters(self) -> list[_Family]:
        outcomes = ("stop", "length", "failed", "dropped")
        requests = [
            f'{{path="{path}",status="{status}"}} {count}'
            for (path, status), count in sorted(self.http.items())
        ]
        return [
            (
                "http_requests_total",
                "counter",
                "Requests for completions, by status; 499 is a client that left.",
                requests,
            ),
            (
                "prompts_total",
                "counter",
                "Prompts ended, by how: stop, length, failed, dropped (its client left).",
                [f'{{outcome="{name}"}} {self.prompts[name]}' for name in outcomes],
            ),
            (
                "notes_total",
                "counter",
                "Requests served with a note in their headers, by its kind.",
                [f'{{note="{name}"}} {count}' for name, count in sorted(self.notes.items())],
            ),
            ("prompt_tokens_total", "counter", "Tokens of prompts.", [f" {self.prompt_tokens}"]),
            (
                "generation_tokens_total",
                "counter",
                "Tokens generated.",
                [f" {self.generation_tokens}"],
            ),
        ]

    def _histograms(self) -> list[_Family]:
        kinds = (
            ("time_to_first_token_seconds", "From arrival to the first token.", self.ttft),
            ("request_duration_seconds", "From arrival to the last token.", self.duration),
            ("queue_time_seconds", "From arrival to the engine.", self.queue_time),
        )
        return [(name, "histogram", about, kind.samples()) for name, about, kind in kinds]


def _gauges(in_flight: int, queued: int) -> list[_Family]:
    return [
        ("prompts_in_flight", "gauge", "Prompts in the engine.", [f" {in_flight}"]),
        ("prompts_queued", "gauge", "Prompts that wait for a place.", [f" {queued}"]),
    ]


def _engine_gauges(state: EngineState, queued: int) -> list[_Family]:
    """What the engine knows of itself; what it does not know has no line."""
    waiting = None if state.waiting_sequences is None else state.waiting_sequences + queued
    families: list[tuple[str, str, str, float | None]] = [
        ("sequences_live", "gauge", "Sequences under way in the engine.", state.live_sequences),
        ("sequences_waiting", "gauge", "Sequences without a place, here or there.", waiting),
        ("kv_cache_used_fraction", "gauge", "Of the KV cache, 0 to 1.", state.kv_used_fraction),
        ("preemptions_total", "counter", "Sequences put back for want of room.", state.preemptions),
    ]
    return [
        (name, kind, about, [f" {value}"])
        for name, kind, about, value in families
        if value is not None
    ]
