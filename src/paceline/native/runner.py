"""The step loop: plan, queue, and take the ids of the step before.

step n + 1 is planned and queued while the device runs step n; then the ids of step n
are awaited, and the sequences they end leave. So the device never waits for the host,
and an end of sequence is noticed one step late: the id computed past it is dropped.

On a CPU host and device are one, and nothing is to be overlapped: a step's ids are handed
out before the next step runs. The next step is planned without them all the same, so that
what is planned does not depend on the device.
"""

from __future__ import annotations

import contextlib
import gc
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from paceline.native.cache import PageAllocator
from paceline.native.checkpoint import Source, open_source
from paceline.native.engine_config import EngineConfig
from paceline.native.errors import NativeError
from paceline.native.executor import Executor, PendingIds
from paceline.native.generation import GenRequest, GenResult
from paceline.native.inputs import StepArrays, build_arrays
from paceline.native.parallel import TensorGroup
from paceline.native.ranks import Ranks
from paceline.native.schedule import Scheduler, SchedulerConfig, StepPlan

__all__ = ["Engine", "EngineConfig", "StepRecord", "no_collections"]


@dataclass(frozen=True, slots=True)
class StepRecord:
    """A finished step: when its ids came, what it held. `num_kept` of what it sampled are tokens of
    answers; others lie past an end, which is seen a step late."""

    done_ns: int
    num_tokens: int
    num_decodes: int
    num_sampled: int
    num_kept: int
    context_tokens: int


class Engine:
    """Greedy decoding of a pile of prompts with one model."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.source: Source = open_source(config.weights, quantization=config.quantization)
        self.resolved = config.resolve(self.source)
        self.records: list[StepRecord] = []
        self.num_sampled_tokens = 0
        self._incoming: deque[GenRequest] = deque()
        self._lock = threading.Lock()
        self._in_flight: tuple[StepPlan, PendingIds] | None = None
        self._planned: tuple[StepPlan, StepArrays] | None = None
        self._ranks: Ranks | None = None
        self._failed: NativeError | None = None

    def start(self, progress: Callable[[str, float], None] | None = None) -> None:
        """Load the weights, warm up and allocate the cache.

        `progress` gets the stage ("weights", "cache", "graphs") and its fraction done.
        """
        config = self.resolved
        group = TensorGroup()
        if self.config.tensor_parallel > 1:
            self._ranks = Ranks(self.config, self.config.tensor_parallel)
            group = self._ranks.join(config.device)
        self.executor = Executor(config, self.source, group=group)
        num_pages = self.executor.prepare(progress or (lambda stage, fraction: None))
        self.scheduler = Scheduler(
            SchedulerConfig(
                max_step_tokens=config.max_step_tokens,
                max_live_sequences=config.max_live_sequences,
                max_context_len=config.max_context_len,
                eos_token_ids=frozenset(config.eos_token_ids),
            ),
            PageAllocator(num_pages, config.page_len),
        )

    def add(self, requests: Iterable[GenRequest]) -> None:
        """Queue requests; any thread may call. Limits are checked here.

        Raises
            NativeError  a request holds an id outside the vocabulary or can never fit.
        """
        vocab_size = self.source.config.vocab_size
        checked = list(requests)
        for request in checked:
            self.scheduler.check(request)
            if not (min(request.token_ids) >= 0 and max(request.token_ids) < vocab_size):
                raise NativeError(f"request {request.request_id}: an id is not under {vocab_size}")
        with self._lock:
            self._incoming.extend(checked)

    @property
    def live(self) -> int:
        """Sequences in the cache now."""
        return len(self.scheduler.running)

    @property
    def waiting(self) -> int:
        """Requests not yet, or no longer, in the cache."""
        return self.scheduler.num_waiting + len(self._incoming)

    @property
    def is_idle(self) -> bool:
        under_way = self._in_flight is not None or self._planned is not None
        return not under_way and self.waiting == 0 and self.live == 0

    @property
    def pages(self) -> tuple[int, int]:
        """Pages of the cache that are in use, and all of them; any thread may ask."""
        allocator = self.scheduler.allocator
        return allocator.num_pages - allocator.num_free, allocator.num_pages

    @property
    def first_tokens(self) -> list[tuple[int, int]]:
        """(request_id, id) of the requests whose first id came in the last step."""
        return self.scheduler.first_tokens

    def step(self) -> list[GenResult]:
        """Queue one step and take the ids of the one before; return the requests they finish.

        On a CPU: run one step and take its own ids. `first_tokens` has what began.

        Raises
            NativeError  a NaN, no memory, a dead rank; the engine gives nothing after it.
        """
        if self._failed is not None:
            raise self._failed
        try:
            return self._step()
        except NativeError as error:
            self._failed = error
            raise

    def run_until_idle(
        self,
        on_result: Callable[[GenResult], None],
        on_step: Callable[[int], None] | None = None,
    ) -> None:
        """Step until nothing is left, handing out results as they come.

        `on_step` gets the number of tokens that a finished step sampled.
        """
        gc.collect()
        with no_collections():
            while not self.is_idle:
                num_steps = len(self.records)
                for result in self.step():
                    on_result(result)
                if on_step is not None and len(self.records) > num_steps:
                    on_step(self.records[-1].num_sampled)

    def begin_counting(self) -> None:
        """Have `stats` count from now on; the engine is idle."""
        self.records.clear()
        self.num_sampled_tokens = self.executor.num_graph_steps = 0
        self.scheduler.num_dropped_tokens = self.scheduler.num_preemptions = 0

    def stats(self) -> dict[str, Any]:
        """Counts since `start` or `begin_counting`; tokens are those of prompts and outputs that
        were computed."""
        allocator, stored = self.scheduler.allocator, self.source.stored
        return {
            "steps": len(self.records),
            "tokens": sum(record.num_tokens for record in self.records),
            "sampled_tokens": self.num_sampled_tokens,
            "dropped_tokens": self.scheduler.num_dropped_tokens,
            "preemptions": self.scheduler.num_preemptions,
            "graph_steps": self.executor.num_graph_steps,
            "kv_pages": allocator.num_pages,
            "kv_used_fraction": 1.0 - allocator.num_free / allocator.num_pages,
            "live_sequences": self.live,
            "waiting_sequences": self.waiting,
            "max_live_sequences": max((r.num_decodes for r in self.records), default=0),
            "quantization": self.resolved.quantization,
            "checkpoint_format": "none" if stored is None else stored.name,
            "group_len": 0 if stored is None else stored.group_len,
            "kv_dtype": str(self.resolved.kv_dtype).removeprefix("torch."),
            **self.executor.describe(),
        }

    def close(self) -> None:
        """End the other ranks and let go of the device's memory."""
        self._in_flight = self._planned = None
        if self._ranks is not None:
            self._ranks.close()
            self._ranks = None
        if hasattr(self, "executor"):
            del self.executor
            if self.resolved.device.type == "cuda":
                torch.cuda.empty_cache()

    def _step(self) -> list[GenResult]:
        self.scheduler.first_tokens = []
        if self.resolved.device.type == "cpu":
            return self._step_at_once()
        planned = self._plan()
        queued = (planned[0], self._queue(planned[1])) if planned is not None else None
        if queued is None and self._in_flight is None:
            self._require_idle()
        before, self._in_flight = self._in_flight, queued
        return [] if before is None else self._take(*before)

    def _step_at_once(self) -> list[GenResult]:
        planned, self._planned = self._planned or self._plan(), None
        if planned is None:
            self._require_idle()
            return []
        plan, arrays = planned
        pending = self._queue(arrays)
        self._planned = self._plan()
        return self._take(plan, pending)

    def _plan(self) -> tuple[StepPlan, StepArrays] | None:
        """The next step, of all requests that have come; None if only results move things on."""
        with self._lock:
            incoming, self._incoming = self._incoming, deque()
        for request in incoming:
            self.scheduler.add(request)
        plan = self.scheduler.schedule()
        if not plan.num_tokens:
            return None
        pages_per_slot = self.executor.llama.cache.page_table_SI.shape[1]
        arrays = build_arrays(
            plan,
            page_len=self.resolved.page_len,
            num_slots=self.resolved.max_live_sequences,
            pages_per_slot=pages_per_slot,
        )
        return plan, arrays

    def _require_idle(self) -> None:
        if not self.scheduler.is_idle:
            raise NativeError("the scheduler has work and plans none of it")

    def _queue(self, arrays: StepArrays) -> PendingIds:
        if self._ranks is not None:
            self._ranks.send(arrays)
        return self.executor.execute(arrays)

    def _take(self, plan: StepPlan, pending: PendingIds) -> list[GenResult]:
        token_ids = pending.wait(self._ranks.check if self._ranks is not None else _nothing)
        num_dropped = self.scheduler.num_dropped_tokens
        results = self.scheduler.complete(plan, token_ids)
        num_dropped = self.scheduler.num_dropped_tokens - num_dropped
        self.num_sampled_tokens += len(token_ids)
        self.records.append(
            StepRecord(
                done_ns=time.monotonic_ns(),
                num_tokens=plan.num_tokens,
                num_decodes=len(plan.decodes),
                num_sampled=len(token_ids),
                num_kept=len(token_ids) - num_dropped,
                context_tokens=sum(item.start + 1 for item in plan.decodes),
            )
        )
        return results


@contextlib.contextmanager
def no_collections() -> Iterator[None]:
    """A collection walks every object of the process and would stall a step."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _nothing() -> None:
    return None
