"""Counts and latencies of the server, in Prometheus' text format.

Source: Prometheus, "Exposition formats", text format 0.0.4.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter

__all__ = ["Histogram", "Metrics"]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 600.0)


class Histogram:
    """Cumulative buckets of seconds."""

    def __init__(self) -> None:
        self._counts = [0] * (len(_SECONDS) + 1)
        self._sum_s = 0.0

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(_SECONDS, seconds)] += 1
        self._sum_s += seconds

    def lines(self, name: str) -> list[str]:
        lines, total = [], 0
        for bound, count in zip((*map(str, _SECONDS), "+Inf"), self._counts, strict=True):
            total += count
            lines.append(f'{name}_bucket{{le="{bound}"}} {total}')
        return [*lines, f"{name}_sum {self._sum_s:.6f}", f"{name}_count {total}"]


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

    def text(self, *, in_flight: int, queued: int) -> str:
        lines: list[str] = []

        def family(name: str, kind: str, about: str, samples: list[str]) -> None:
            lines.extend((f"# HELP paceline_{name} {about}", f"# TYPE paceline_{name} {kind}"))
            lines.extend(samples)

        def scalar(name: str, kind: str, about: str, value: int) -> None:
            family(name, kind, about, [f"paceline_{name} {value}"])

        family(
            "http_requests_total",
            "counter",
            "HTTP requests answered, by path and status; 499 is a client that left.",
            [
                f'paceline_http_requests_total{{path="{path}",status="{status}"}} {count}'
                for (path, status), count in sorted(self.http.items())
            ],
        )
        family(
            "prompts_total",
            "counter",
            "Prompts ended, by how: stop, length, failed, dropped (its client left).",
            [
                f'paceline_prompts_total{{outcome="{outcome}"}} {self.prompts[outcome]}'
                for outcome in ("stop", "length", "failed", "dropped")
            ],
        )
        family(
            "notes_total",
            "counter",
            "Requests served with a note in their headers, by its kind.",
            [f'paceline_notes_total{{note="{n}"}} {c}' for n, c in sorted(self.notes.items())],
        )
        scalar("prompt_tokens_total", "counter", "Tokens of prompts.", self.prompt_tokens)
        scalar("generation_tokens_total", "counter", "Tokens generated.", self.generation_tokens)
        scalar("prompts_in_flight", "gauge", "Prompts in the engine.", in_flight)
        scalar("prompts_queued", "gauge", "Prompts that wait for a place.", queued)
        for name, about, histogram in (
            (
                "time_to_first_token_seconds",
                "From a prompt's arrival to its first token.",
                self.ttft,
            ),
            (
                "request_duration_seconds",
                "From a prompt's arrival to its last token.",
                self.duration,
            ),
            ("queue_time_seconds", "From a prompt's arrival to the engine.", self.queue_time),
        ):
            family(name, "histogram", about, histogram.lines(f"paceline_{name}"))
        return "\n".join(lines) + "\n"
