"""The SUT of Server and Interactive: a sample a query; its first token, then its completion.

LoadGen takes the time to the first token from the call that reports it, so that call is made the
moment the engine says the token exists. The completion holds the first token again, as TEST06
demands. An engine that completes a request without having reported its first token, or with
another one, ends the run: there is no time to report that would be true.

In accuracy mode no time is taken, and answers go to LoadGen in the order of issue; each is
reported as its first token and, by the same thread, its completion. LoadGen keeps a log for each
thread and reads them in turn, so two threads might seem to have completed before they began.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Sequence

import numpy as np

from paceline.engines import Completion, Engine, TokenIds
from paceline.errors import EngineError, PacelineError
from paceline.harness.samples import Samples
from paceline.harness.sut import EngineSut, Respond

__all__ = ["Latencies", "ServerSut"]


class Latencies:
    """Times to first token and per output token so far, in ms, at one percentile.

    They count from the moment LoadGen issued a sample; LoadGen's own, in its log, count from the
    moment it had scheduled to, which is earlier when the host is short of time.
    """

    def __init__(self, percentile: int) -> None:
        self._percentile = percentile
        self._ttft_ms = array("d")
        self._tpot_ms = array("d")

    def add_first(self, ttft_ns: int) -> None:
        self._ttft_ms.append(ttft_ns / 1e6)

    def add_rest(self, rest_ns: int, num_tokens: int) -> None:
        self._tpot_ms.append(rest_ns / 1e6 / (num_tokens - 1))

    def ttft_ms(self) -> Sequence[float]:
        """Times to first token, in the order they came."""
        return self._ttft_ms.tolist()

    def figures(self) -> dict[str, float]:
        """Both percentiles, ranked as LoadGen does; empty before the first answer."""
        return {
            f"{name}_p{self._percentile}_ms": round(_ranked(np.array(values), self._percentile), 3)
            for name, values in (("ttft", self._ttft_ms), ("tpot", self._tpot_ms))
            if values
        }


class ServerSut(EngineSut):
    """Reports first tokens as they come, and completions after them."""

    def __init__(
        self,
        engine: Engine,
        samples: Samples,
        *,
        percentile: int,
        respond: Respond,
        respond_first: Respond,
    ) -> None:
        super().__init__(engine, samples, respond=respond)
        self._respond_first = respond_first
        self._issued_ns: list[int] = []
        self._firsts: dict[int, tuple[int, int]] = {}
        self._latencies = Latencies(percentile)

    def first_token(self, request_id: int, token_id: int) -> None:
        try:
            self._first_token(request_id, token_id)
        except PacelineError as error:
            self.fail(error)

    def first_token_latencies_ms(self) -> Sequence[float]:
        with self._lock:
            return self._latencies.ttft_ms()

    def latency_figures(self) -> dict[str, float]:
        with self._lock:
            return self._latencies.figures()

    def _first_token(self, request_id: int, token_id: int) -> None:
        with self._lock:
            if request_id not in self._open or request_id in self._firsts:
                when = "twice" if request_id in self._firsts else "after its answer"
                raise EngineError(
                    f"The engine gave the first token of sample {self._indices[request_id]} {when}."
                )
            now_ns = time.monotonic_ns()
            self._firsts[request_id] = (token_id, now_ns)
            self.last_activity_s = now_ns / 1e9
            if self._journal is None:
                self._latencies.add_first(now_ns - self._issued_ns[request_id])
                ids = np.array([token_id], np.int32)
                self._respond_first([(self._response_ids[request_id], ids)])

    def _begin(self, first_request_id: int, num_requests: int) -> None:
        assert first_request_id == len(self._issued_ns)
        self._issued_ns += [time.monotonic_ns()] * num_requests

    def _end(self, completions: Sequence[Completion]) -> None:
        now_ns = time.monotonic_ns()
        for completion in completions:
            _, first_ns = self._firsts.pop(completion.request_id)
            self._latencies.add_rest(now_ns - first_ns, len(completion.token_ids))

    def _check(self, completions: Sequence[Completion]) -> None:
        super()._check(completions)
        for completion in completions:
            sample = self._indices[completion.request_id]
            first, _ = self._firsts.get(completion.request_id, (None, 0))
            if first is None:
                raise EngineError(
                    f"The engine answered sample {sample} without having reported its first "
                    "token, which this scenario times.",
                    hint="use an engine that streams, or --scenario Offline",
                )
            if first != int(completion.token_ids[0]):
                raise EngineError(
                    f"The engine reported {first} as the first token of sample {sample}, and "
                    f"answered with {completion.token_ids[0]}."
                )

    def _hand_over(self, ready: Sequence[tuple[int, TokenIds]]) -> None:
        if self._journal is not None and ready:
            self._respond_first([(response_id, ids[:1]) for response_id, ids in ready])
        self._respond(ready)


def _ranked(values: np.ndarray[tuple[int], np.dtype[np.float64]], percentile: int) -> float:
    rank = len(values) * percentile // 100
    return float(np.partition(values, rank)[rank])
