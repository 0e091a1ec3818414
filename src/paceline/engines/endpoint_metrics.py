"""What servers say of their queues and their KV cache at /metrics, read in the background.

    gauges_of(text)         one answer, in Prometheus' text format
    MetricsWatch(client)    reads one server every two seconds, until it is cancelled
    with_gauges(state, ...) what the dispatcher knows, with what the servers say

None is what a server does not say, or has not said of late; it is never taken for zero.

Sources: vLLM vllm/v1/metrics/loggers.py (005a810b), where `gpu_cache_usage_perc` is the name of
`kv_cache_usage_perc` before 0.9, and both are fractions; SGLang
python/sglang/srt/metrics/collector.py (00ae9c15), published with --enable-metrics; llama.cpp
tools/server/README.md (00dc8057), with --metrics; our own `serve.metrics`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from paceline.engines import EngineState, Part
from paceline.engines.endpoint_client import Client, ServerFault

__all__ = ["Gauges", "MetricsWatch", "gauges_of", "with_gauges"]

_EVERY_S = 2.0
# So many readings may fail before what was read last is held to be unknown.
_FRESH_S = 3 * _EVERY_S
_NONE_THERE = frozenset({"http_401", "http_403", "http_404", "http_405", "http_501"})

# Of each figure the names that servers have for it; of one server's, the first that it uses.
_NAMES = {
    "running": (
        "vllm:num_requests_running",
        "sglang:num_running_reqs",
        "paceline_sequences_live",
        "llamacpp:requests_processing",
    ),
    "waiting": (
        "vllm:num_requests_waiting",
        "sglang:num_queue_reqs",
        "paceline_sequences_waiting",
        "llamacpp:requests_deferred",
    ),
    "kv_used_fraction": (
        "vllm:kv_cache_usage_perc",
        "vllm:gpu_cache_usage_perc",
        "sglang:token_usage",
        "paceline_kv_cache_used_fraction",
        "llamacpp:kv_cache_usage_ratio",
    ),
    "preemptions": (
        "vllm:num_preemptions_total",
        "sglang:num_retracted_requests_total",
        "paceline_preemptions_total",
    ),
}
_KNOWN = "|".join(re.escape(name) for names in _NAMES.values() for name in names)
_LINE = re.compile(rf"^({_KNOWN})(?:\{{(.*)\}})? +(\S+)(?: +\d+)?$", re.MULTILINE)
# Engines of one server, each with a cache of its own: vLLM's label, SGLang's. Ranks that share a
# model tell the same figure and are one.
_COPY = re.compile(r'(?:^|,)(?:engine|dp_rank)="([^"]*)"')


@dataclass(frozen=True, kw_only=True, slots=True)
class Gauges:
    """One server at a moment. `preemptions` are since the server's start."""

    running: int | None = None
    waiting: int | None = None
    kv_used_fraction: float | None = None
    preemptions: int | None = None

    @property
    def known(self) -> list[str]:
        """Names of the figures that are there."""
        facts = dataclasses.asdict(self)
        return [name for name, value in facts.items() if value is not None]


def gauges_of(text: str) -> Gauges:
    """The figures that an answer of /metrics holds, over all engines of the server."""
    found: dict[str, dict[str, float]] = {}
    for name, labels, value in _LINE.findall(text):
        copy = _COPY.search(labels)
        try:
            number = float(value)
        except ValueError:
            continue
        by_copy = found.setdefault(name, {})
        key = copy[1] if copy else ""
        if number >= 0:  # not NaN either
            by_copy[key] = max(number, by_copy.get(key, 0.0))
    figures: dict[str, Any] = {}
    for figure, names in _NAMES.items():
        values = next((list(found[name].values()) for name in names if found.get(name)), None)
        if values is not None:
            is_share = figure == "kv_used_fraction"
            figures[figure] = (
                round(sum(values) / len(values), 4) if is_share else round(sum(values))
            )
    return Gauges(**figures)


class MetricsWatch:
    """Reads one server's /metrics; `now` may be asked from any thread."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._last = Gauges()
        self._known: list[str] = []
        self._read_s: float | None = None
        self._reads = 0
        self._misses = 0
        self._why: str | None = None
        self._counted: int | None = None
        self._preemptions = 0

    async def run(self) -> None:
        """Read until cancelled; a server that has nothing to say is asked once."""
        while True:
            try:
                found = gauges_of(str(await self._client.get("/metrics")))
            except ServerFault as fault:
                self._misses += 1
                self._why = fault.message
                if fault.kind in _NONE_THERE and not self._reads:
                    return
            else:
                if not found.known and not self._reads:
                    self._why = "its /metrics has none of the figures"
                    return
                self._take(found)
            await asyncio.sleep(_EVERY_S)

    def now(self) -> Gauges:
        """What was read last, `preemptions` since the first reading; nothing if that is old."""
        read_s = self._read_s
        if read_s is None or time.monotonic() - read_s > _FRESH_S:
            return Gauges()
        return self._last

    def facts(self) -> dict[str, Any]:
        """For the manifest: what is known of the server, and why not more."""
        return {
            "known": self._known,
            "reads": self._reads,
            "misses": self._misses,
            "last_miss": self._why,
        }

    def _take(self, found: Gauges) -> None:
        self._reads += 1
        self._known = list(dict.fromkeys([*self._known, *found.known]))
        if found.preemptions is not None:
            before = self._counted
            # A server that was started again counts from zero.
            if before is not None:
                fell = found.preemptions < before
                self._preemptions += found.preemptions - (0 if fell else before)
            self._counted = found.preemptions
            found = dataclasses.replace(found, preemptions=self._preemptions)
        self._last = found
        self._read_s = time.monotonic()


def with_gauges(state: EngineState, gauges: Sequence[Gauges]) -> EngineState:
    """The state of an engine whose parts are servers, with what each of them says, in their order.

    What a server has been sent and does not run is in its queue, even if it has not said so yet.
    Of a server that does not tell what it runs, all that it has been sent counts as live. Shares
    of the cache and preemptions are known when every server tells them.
    """
    parts = tuple(_told(part, said) for part, said in zip(state.parts, gauges, strict=True))
    queues = [part.waiting_sequences for part in parts if part.waiting_sequences is not None]
    shares = [said.kv_used_fraction for said in gauges if said.kv_used_fraction is not None]
    counts = [said.preemptions for said in gauges if said.preemptions is not None]
    return dataclasses.replace(
        state,
        live_sequences=sum(part.live_sequences for part in parts),
        waiting_sequences=(state.waiting_sequences or 0) + sum(queues),
        queued_at_servers=sum(queues) if queues else None,
        kv_used_fraction=round(sum(shares) / len(shares), 4)
        if shares and len(shares) == len(gauges)
        else None,
        preemptions=sum(counts) if counts and len(counts) == len(gauges) else None,
        parts=parts,
    )


def _told(part: Part, said: Gauges) -> Part:
    if said.running is not None:
        queued = max(said.waiting or 0, part.live_sequences - said.running)
        part = dataclasses.replace(part, live_sequences=said.running, waiting_sequences=queued)
    return dataclasses.replace(part, kv_used_fraction=said.kv_used_fraction)
