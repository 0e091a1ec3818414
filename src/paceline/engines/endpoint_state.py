"""Requests and servers as the dispatcher sees them: what is under way, and how fast it goes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from paceline.engines import Completion, Request, Sink

__all__ = ["Job", "Policy", "Server"]

_SMOOTHING = 0.1


@dataclass(eq=False, slots=True)
class Job:
    """A request on its way. `first` is the first token that was pushed, `made` how many were."""

    request: Request
    sink: Sink
    attempts: int = 0
    made: int = 0
    first: int | None = None
    last_server: Server | None = None

    def count(self, made: int) -> None:
        """So many tokens exist; those of an earlier try are not counted twice."""
        if made > self.made:
            self.sink.progress(made - self.made)
            self.made = made


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """How often and how long: the fields of `EndpointConfig` of the same names."""

    retries: int
    backoff_s: float
    dead_timeout_s: float


Answerer = Callable[[Job], Awaitable[Completion]]


@dataclass(eq=False, slots=True)
class Server:
    """A server as the dispatcher sees it. `ask` answers a job; `is_back` says whether it lives.

    `limit` is how many requests it may have, `ceiling` how many the settings allow.
    """

    name: str
    limit: int
    ask: Answerer
    is_back: Callable[[], Awaitable[bool]]
    ceiling: int = 0
    growth: float = 0.0
    in_flight: int = 0
    most_in_flight: int = 0
    answered: int = 0
    tokens: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    faults_in_a_row: int = 0
    is_up: bool = True
    is_on_trial: bool = False
    times_aside: int = 0
    aside_since_s: float = 0.0
    aside_s: float = 0.0
    paused_until_s: float = 0.0
    latency_s: float = 0.0
    load: float = 0.0

    def room(self, now_s: float) -> bool:
        """Whether it may get one more request now."""
        limit = 1 if self.is_on_trial else self.limit
        return self.is_up and self.in_flight < limit and now_s >= self.paused_until_s

    def expected_s(self) -> float:
        """How long one more request would take here; 0 while nothing was measured.

        A server with less to do than usual is not taken to be faster for it: most are not.
        """
        if not self.load:
            return 0.0
        return self.latency_s * max(1.0, (self.in_flight + 1) / self.load)

    def measure(self, took_s: float, load: float) -> None:
        """An answer took so long, at so many in flight."""
        weight = _SMOOTHING if self.load else 1.0
        self.latency_s += weight * (took_s - self.latency_s)
        self.load += weight * (load - self.load)

    def grow(self) -> None:
        """After a 429 the limit comes back slowly: by one for each full load that was answered."""
        if self.limit < self.ceiling:
            self.growth += 1 / self.limit
            if self.growth >= 1:
                self.limit, self.growth = self.limit + 1, 0.0

    def begin_counting(self) -> None:
        """Counts of `facts` begin at 0; what is known of the server's speed is kept."""
        self.answered = self.tokens = self.times_aside = 0
        self.faults.clear()
        self.most_in_flight = self.in_flight
        self.aside_s, self.aside_since_s = 0.0, time.monotonic()

    def facts(self) -> dict[str, Any]:
        """For the manifest."""
        aside_s = self.aside_s + (0 if self.is_up else time.monotonic() - self.aside_since_s)
        return {
            "url": self.name,
            "answered": self.answered,
            "tokens": self.tokens,
            "faults": dict(self.faults),
            "times_aside": self.times_aside,
            "aside_s": round(aside_s, 3),
            "is_up": self.is_up,
            "concurrency": self.limit,
            "most_in_flight": self.most_in_flight,
            "latency_s": round(self.latency_s, 4),
        }
