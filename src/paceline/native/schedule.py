"""Which sequences run in which step, and how many of their tokens. Pure Python, no tensor.

A step has one token budget. Decodes come first, one token each, oldest first; what is left
of the budget goes to prompts, in chunks, so that a step is mixed and its size steady. A
sequence is admitted when the pages of its prompt are free at that moment ("max util"): no
page is reserved for tokens that do not exist yet. When a decode finds no page, the youngest
sequence is preempted: its pages are freed and its tokens are computed anew later.

The host runs one step ahead of the device: `schedule` plans step n + 1 while the ids that
step n samples are still unknown. Positions need no ids, so a plan is exact; only the end of
a sequence is noticed one step late, and the token computed in between is dropped.

Words: a sequence's `computed_len` is the number of its tokens whose keys and values are in
the cache or on their way there; `num_in_flight` is how many sampled ids have not come back.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field

from paceline.native.cache import PageAllocator
from paceline.native.errors import NativeError
from paceline.native.generation import GenRequest, GenResult

__all__ = [
    "Scheduled",
    "Scheduler",
    "SchedulerConfig",
    "Sequence",
    "StepPlan",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class SchedulerConfig:
    """Limits of a step and of the sequences in it. Lengths and budgets are in tokens."""

    max_step_tokens: int
    max_live_sequences: int
    max_context_len: int
    eos_token_ids: frozenset[int]
    tile_tokens: int = 128
    longest_first: bool = True


@dataclass(slots=True, eq=False)
class Sequence:
    """A request inside the engine: its tokens so far, its pages and its place."""

    request_id: int
    token_ids: list[int]
    prompt_len: int
    max_new_tokens: int
    min_new_tokens: int
    ignore_eos: bool
    pages: list[int] = field(default_factory=list)
    slot: int | None = None
    computed_len: int = 0
    prefill_len: int = 0
    num_in_flight: int = 0
    finished: bool = False
    first_token_ns: int = 0

    @property
    def output_len(self) -> int:
        """Tokens generated, those still in flight included."""
        return len(self.token_ids) - self.prompt_len + self.num_in_flight

    @property
    def is_prefilling(self) -> bool:
        return self.computed_len < self.prefill_len


@dataclass(frozen=True, slots=True)
class Scheduled:
    """`num_tokens` tokens of `sequence` from position `start`; `samples` if an id comes of it."""

    sequence: Sequence
    slot: int
    start: int
    num_tokens: int
    samples: bool
    is_decode: bool
    bans_eos: bool


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step: decodes, then prompt chunks, and the pages that came to be owned.

    `new_pages` holds (slot, index in the slot's page table, page).
    """

    decodes: list[Scheduled]
    prefills: list[Scheduled]
    new_pages: list[tuple[int, int, int]]

    @property
    def num_tokens(self) -> int:
        return len(self.decodes) + sum(item.num_tokens for item in self.prefills)

    @property
    def sampled(self) -> list[Scheduled]:
        """Entries an id comes of, in the order of the ids."""
        return [*self.decodes, *(item for item in self.prefills if item.samples)]


class Scheduler:
    """Continuous batching over one page allocator."""

    def __init__(self, config: SchedulerConfig, allocator: PageAllocator) -> None:
        self.config = config
        self.allocator = allocator
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        self.num_dropped_tokens = 0
        self.first_tokens: list[tuple[int, int]] = []
        self.later_tokens: list[tuple[int, int]] = []
        self._waiting: list[tuple[int, int, Sequence]] = []
        self._preempted: deque[Sequence] = deque()
        self._free_slots = list(range(config.max_live_sequences - 1, -1, -1))
        self._arrivals = 0
        self._new_pages: list[tuple[int, int, int]] = []

    @property
    def num_waiting(self) -> int:
        return len(self._waiting) + len(self._preempted)

    @property
    def is_idle(self) -> bool:
        return not self.running and self.num_waiting == 0

    def check(self, request: GenRequest) -> None:
        """Raise NativeError if the prompt is empty, or can never fit the context or the cache."""
        prompt_len = len(request.token_ids)
        total_len = prompt_len + request.max_new_tokens
        where = f"request {request.request_id}: {prompt_len} + {request.max_new_tokens} tokens"
        if prompt_len == 0 or request.max_new_tokens < 1:
            raise NativeError(f"{where}: a prompt and at least one new token are needed")
        if total_len > self.config.max_context_len:
            raise NativeError(
                f"{where} exceed max_context_len {self.config.max_context_len}",
                hint="raise max_context_len or shorten the request",
            )
        if self.allocator.num_pages_for(total_len) > self.allocator.num_pages:
            raise NativeError(
                f"{where} need {self.allocator.num_pages_for(total_len)} pages; "
                f"the cache has {self.allocator.num_pages}",
                hint="give the KV cache more memory",
            )

    def add(self, request: GenRequest) -> None:
        """Queue a request that `check` let pass."""
        sequence = Sequence(
            request_id=request.request_id,
            token_ids=list(request.token_ids),
            prompt_len=len(request.token_ids),
            max_new_tokens=request.max_new_tokens,
            min_new_tokens=request.min_new_tokens,
            ignore_eos=request.ignore_eos,
        )
        # Longest first: the long prompts are not left over for a badly filled end.
        rank = -sequence.prompt_len if self.config.longest_first else 0
        heapq.heappush(self._waiting, (rank, self._arrivals, sequence))
        self._arrivals += 1

    def schedule(self) -> StepPlan:
        """Plan the next step. An empty plan means that only results can move things on."""
        self._new_pages = []
        decodes = self._schedule_decodes()
        budget = self.config.max_step_tokens - len(decodes)
        prefills: list[Scheduled] = []
        for sequence in self.running:
            if budget > 0 and sequence.is_prefilling:
                prefills.append(self._prefill(sequence, budget))
                budget -= prefills[-1].num_tokens
        while budget > 0 and (admitted := self._admit()) is not None:
            prefills.append(self._prefill(admitted, budget))
            budget -= prefills[-1].num_tokens
        self._align(len(decodes), prefills)
        plan = StepPlan(decodes, prefills, self._new_pages)
        for item in [*decodes, *prefills]:
            item.sequence.computed_len = item.start + item.num_tokens
            item.sequence.num_in_flight += item.samples
        return plan

    def complete(self, plan: StepPlan, token_ids: SequenceOf[int]) -> list[GenResult]:
        """Take the ids that `plan` sampled, in its order; return the requests they finish.

        `first_tokens` then has (request_id, id) of the requests of which they are the first,
        `later_tokens` those of the others.
        """
        now_ns = time.monotonic_ns()
        self.first_tokens, self.later_tokens = [], []
        results = []
        for item, token_id in zip(plan.sampled, token_ids, strict=True):
            sequence = item.sequence
            sequence.num_in_flight -= 1
            if sequence.finished:
                self.num_dropped_tokens += 1
                continue
            sequence.token_ids.append(token_id)
            if not sequence.first_token_ns:
                sequence.first_token_ns = now_ns
                self.first_tokens.append((sequence.request_id, token_id))
            else:
                self.later_tokens.append((sequence.request_id, token_id))
            stops = token_id in self.config.eos_token_ids and not sequence.ignore_eos
            # The ids still in flight belong to the step after this one.
            output_len = len(sequence.token_ids) - sequence.prompt_len
            if stops or output_len == sequence.max_new_tokens:
                self._finish(sequence)
                results.append(
                    GenResult(
                        request_id=sequence.request_id,
                        token_ids=sequence.token_ids[sequence.prompt_len :],
                        finish_reason="stop" if stops else "length",
                        first_token_ns=sequence.first_token_ns,
                        done_ns=now_ns,
                    )
                )
        return results

    def adopt(self, sequence: Sequence, num_pages: int, reserve: int) -> bool:
        """Run a sequence whose keys and values are in the cache; False if it has no room."""
        if not self._free_slots or num_pages + reserve > self.allocator.num_free:
            return False
        sequence.slot = self._free_slots.pop()
        sequence.pages = self.allocator.allocate(num_pages)
        self.running.append(sequence)
        return True

    def _schedule_decodes(self) -> list[Scheduled]:
        decodes: list[Scheduled] = []
        for sequence in list(self.running):
            if len(decodes) == self.config.max_step_tokens:
                break
            if sequence.slot is None or sequence.is_prefilling:
                continue
            if sequence.output_len == sequence.max_new_tokens:
                continue
            if self._grow(sequence):
                decodes.append(self._entry(sequence, num_tokens=1, is_decode=True))
        # Long contexts start first, so that the device ends its decode attention evenly.
        decodes.sort(key=lambda item: -item.start)
        return decodes

    def _grow(self, sequence: Sequence) -> bool:
        """Own the page of the next token, preempting the youngest; False if that was itself."""
        if sequence.computed_len < len(sequence.pages) * self.allocator.page_len:
            return True
        while self.allocator.num_free == 0:
            victim = self.running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        self._own(sequence, self.allocator.allocate(1))
        return True

    def _own(self, sequence: Sequence, pages: list[int]) -> None:
        assert sequence.slot is not None
        base = len(sequence.pages)
        sequence.pages.extend(pages)
        self._new_pages.extend((sequence.slot, base + i, page) for i, page in enumerate(pages))

    def _preempt(self, sequence: Sequence) -> None:
        self.num_preemptions += 1
        self._release(sequence)
        sequence.computed_len = sequence.prefill_len = 0
        self._preempted.appendleft(sequence)

    def _admit(self) -> Sequence | None:
        """The next sequence whose tokens fit the free pages, now running, or None."""
        if not self._free_slots:
            return None
        if self._preempted:
            sequence = self._preempted[0]
            # Its last id is still on the device; the tokens to recompute are known next step.
            if sequence.num_in_flight > 0:
                return None
        elif self._waiting:
            sequence = self._waiting[0][2]
        else:
            return None
        num_pages = self.allocator.num_pages_for(len(sequence.token_ids))
        # A few pages stay free for the running to grow into; without them every admission
        # would be paid for by a preemption a step later.
        reserve = len(self.running) // 16
        if num_pages + reserve > self.allocator.num_free:
            return None
        if self._preempted:
            self._preempted.popleft()
        else:
            heapq.heappop(self._waiting)
        sequence.slot = self._free_slots.pop()
        sequence.prefill_len = len(sequence.token_ids)
        self._own(sequence, self.allocator.allocate(num_pages))
        self.running.append(sequence)
        return sequence

    def _prefill(self, sequence: Sequence, budget: int) -> Scheduled:
        num_tokens = min(budget, sequence.prefill_len - sequence.computed_len)
        return self._entry(sequence, num_tokens=num_tokens, is_decode=False)

    def _entry(self, sequence: Sequence, *, num_tokens: int, is_decode: bool) -> Scheduled:
        assert sequence.slot is not None
        end = sequence.computed_len + num_tokens
        return Scheduled(
            sequence=sequence,
            slot=sequence.slot,
            start=sequence.computed_len,
            num_tokens=num_tokens,
            samples=is_decode or end == sequence.prefill_len,
            is_decode=is_decode,
            bans_eos=sequence.output_len < sequence.min_new_tokens and not sequence.ignore_eos,
        )

    def _align(self, num_decodes: int, prefills: list[Scheduled]) -> None:
        """Cut the last chunk so that the step fills whole tiles of the matrix products."""
        if not prefills:
            return
        total = num_decodes + sum(item.num_tokens for item in prefills)
        excess = total % self.config.tile_tokens
        last = prefills[-1]
        if total > 4 * self.config.tile_tokens and excess < last.num_tokens:
            num_tokens = last.num_tokens - excess
            prefills[-1] = self._entry(last.sequence, num_tokens=num_tokens, is_decode=False)

    def _finish(self, sequence: Sequence) -> None:
        sequence.finished = True
        if sequence.slot is None:
            self._preempted.remove(sequence)
        else:
            self._release(sequence)

    def _release(self, sequence: Sequence) -> None:
        assert sequence.slot is not None
        self.running.remove(sequence)
        self.allocator.free(sequence.pages)
        self._free_slots.append(sequence.slot)
        sequence.pages = []
        sequence.slot = None
