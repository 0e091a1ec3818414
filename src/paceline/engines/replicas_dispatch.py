"""Which replica answers which sample: pulled from one pile, balanced at its end, answered once.

Pure bookkeeping on a clock that the caller gives: no Ray, no threads, no time of its own.

A replica pulls: it is dealt as many samples as it has room for, which is what it can work on at
once and a small reserve; one that says how many of its samples wait for memory is dealt only as
that number shrinks. Speed is measured from finished answers. Near the end of the pile a replica
is left idle when the faster ones reach the last samples sooner; when the pile is empty, an idle
one may run a sample too that a slow one will end late, and the first answer counts.

A sample leaves the books with its first answer. What else is said of it, by a replica that was
lost, or by the slower of two, is counted and dropped.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from paceline.engines import Request, Sink

__all__ = ["Member", "Pool", "PoolPolicy", "Work"]

_SMOOTHING = 0.1
# A replica of unknown speed is dealt less than its equal share, so that the rest can go where
# it is answered soonest.
_UNKNOWN_SHARE = 0.75
# A second copy of a sample has to be expected this much sooner than the first.
_WORTH_DOUBLING = 0.9
# Samples that a replica works off one after another while it has no reserve, at the end.
_END_IN_SAMPLES = 2.0
_DOUBLE_EVERY_S = 0.02
_DOUBLE_EVERY_S_PER_SAMPLE = 5e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolPolicy:
    """`retries` losses a sample survives. `is_offline`: all samples are known, only the end of
    the last one counts; then long prompts go first. `may_double`: run the last ones twice.
    `lag_s` may pass between an answer and the sample in its place: the reserve has to last.
    """

    retries: int
    is_offline: bool
    may_double: bool
    lag_s: float = 0.0


@dataclass(eq=False, slots=True)
class Work:
    """A sample on its way. `holders` are the replicas that have it, two at most."""

    number: int
    request: Request
    sink: Sink
    attempts: int = 0
    first: int | None = None
    holders: list[Member] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class Member:
    """A replica as the pool sees it. `held` maps a sample's number to (given, due) in seconds.

    `waiting` is how many of them it has not begun for want of room; `capacity` how many it can
    work on at once as far as is known. Latency and load are smoothed over its answers, and
    `per_message` is how many of them come in one message.
    """

    name: str
    capacity: int
    reserve: int
    can_cancel: bool = False
    held: dict[int, tuple[float, float]] = field(default_factory=dict)
    waiting: int = 0
    latency_s: float = 0.0
    load: float = 0.0
    per_message: float = 0.0
    answered: int = 0
    tokens: int = 0
    is_lost: bool = False

    @property
    def running(self) -> int:
        """How many samples it works on at once, as far as is known."""
        return (
            min(self.capacity, max(1, len(self.held) - self.waiting))
            if self.waiting
            else (self.capacity)
        )

    @property
    def rate(self) -> float:
        """Samples/s; 0 while unknown."""
        return self.load / self.latency_s if self.latency_s > 0 else 0.0

    def one_s(self) -> float:
        """How long one sample takes here that is begun at once; 0 while unknown."""
        return self.latency_s * min(1.0, self.running / self.load) if self.load else 0.0

    def expected_s(self) -> float:
        """How long one more sample takes here; 0 while unknown."""
        if not self.load:
            return 0.0
        busy = max(min(self.running, self.load), len(self.held) + 1)
        return self.latency_s * busy / self.load

    def measure(self, took_s: float) -> None:
        """An answer took so long, at the number of samples held."""
        weight = _SMOOTHING if self.load else 1.0
        self.latency_s += weight * (max(took_s, 1e-6) - self.latency_s)
        self.load += weight * (len(self.held) + 1 - self.load)


class Pool:
    """The pile, the replicas, and who has what."""

    def __init__(self, policy: PoolPolicy) -> None:
        self._policy = policy
        self._has_end = policy.is_offline
        self._pile: deque[Work] = deque()
        self._open: dict[int, Work] = {}
        self._members: dict[Member, None] = {}
        self._hungry: dict[Member, None] = {}
        self._next = 0
        self._double_after_s = -math.inf
        self.counts = Counter[str]()

    def __len__(self) -> int:
        """Samples that are not answered."""
        return len(self._open)

    @property
    def num_piled(self) -> int:
        """Samples that no replica has."""
        return len(self._pile)

    def set_endless(self, is_endless: bool) -> None:
        """Whether each answer brings another sample: there is no end to balance then."""
        self._has_end = self._policy.is_offline and not is_endless

    def any_work(self) -> Work | None:
        """A sample that is not answered."""
        return next(iter(self._open.values()), None)

    def add(self, requests: Sequence[Request], sink: Sink) -> None:
        """More samples. Offline the longest prompts go first: they end last."""
        works = [Work(self._next + place, request, sink) for place, request in enumerate(requests)]
        self._next += len(works)
        self._open.update((work.number, work) for work in works)
        self._pile.extend(works)
        if self._has_end:
            self._pile = deque(sorted(self._pile, key=lambda w: -len(w.request.token_ids)))

    def join(self, member: Member) -> None:
        """A replica is ready."""
        self._members[member] = self._hungry[member] = None

    def lose(self, member: Member) -> tuple[list[Work], list[Work]]:
        """A replica is gone: (samples for others, samples that were lost too often)."""
        member.is_lost = True
        self._members.pop(member, None)
        self._hungry.pop(member, None)
        moved, given_up = [], []
        for number in member.held:
            work = self._open.get(number)
            if work is None:
                continue
            work.holders.remove(member)
            if work.holders:
                continue
            work.attempts += 1
            if work.attempts > self._policy.retries:
                given_up.append(work)
                del self._open[number]
            else:
                moved.append(work)
        member.held.clear()
        self._pile.extendleft(reversed(moved))
        self.counts["moved"] += len(moved)
        return moved, given_up

    def heard(self, member: Member, waiting: int, num_answers: int = 0) -> None:
        """A replica has so many answers, and has not begun so many of its samples."""
        member.waiting = waiting
        if num_answers:
            member.per_message += _SMOOTHING * (num_answers - member.per_message)
        self._hungry[member] = None

    def open_work(self, member: Member, number: int) -> Work | None:
        """The sample, while it is unanswered and that replica has it; else None."""
        work = self._open.get(number)
        return work if work is not None and number in member.held else None

    def answer(self, member: Member, number: int, num_tokens: int, *, now_s: float) -> Work | None:
        """A replica's answer; None when it is to be dropped: late, or the second one."""
        if member.is_lost:
            self.counts["late"] += 1
            return None
        given = member.held.pop(number, None)
        if given is not None:
            member.measure(now_s - given[0])
            member.waiting = max(0, member.waiting - 1)
            self._hungry[member] = None
        work = self._open.pop(number, None)
        if work is None:
            self.counts["second"] += 1
            return None
        if given is None:  # taken back from it, and not yet answered elsewhere
            self._open[number] = work
            self.counts["late"] += 1
            return None
        member.answered += 1
        member.tokens += num_tokens
        return work

    def drop(self, member: Member, number: int) -> None:
        """A replica that was told to forget a sample has room again."""
        if member.held.pop(number, None) is not None:
            self._hungry[member] = None

    def fail(self, number: int) -> Work | None:
        """A sample that no replica can answer leaves the books; None when it had left."""
        work = self._open.pop(number, None)
        if work is not None:
            for member in work.holders:
                self.drop(member, number)
        return work

    def clear(self) -> list[Work]:
        """Give up what is unanswered; returns it."""
        works, self._open = list(self._open.values()), {}
        self._pile.clear()
        return works

    def deal(self, now_s: float) -> dict[Member, list[Work]]:
        """What each replica is given now."""
        dealt: dict[Member, list[Work]] = {}
        if not self._open:
            return dealt
        total_rate = sum(member.rate for member in self._members)
        heap = []
        for place, member in enumerate(list(self._hungry)):
            if self._room(member, total_rate) > 0:
                heap.append((self._crowd(member), place, member))
            else:
                del self._hungry[member]
        heapq.heapify(heap)
        while self._pile and heap:
            _, place, member = heapq.heappop(heap)
            if self._is_sooner_elsewhere(member, total_rate):
                continue
            self._give(member, self._pile.popleft(), dealt, now_s)
            if self._room(member, total_rate) > 0:
                heapq.heappush(heap, (self._crowd(member), place, member))
        if self._policy.may_double and self._has_end and not self._pile:
            self._double(dealt, now_s)
        return dealt

    def _give(
        self, member: Member, work: Work, dealt: dict[Member, list[Work]], now_s: float
    ) -> None:
        member.held[work.number] = (now_s, now_s + member.expected_s())
        if member.waiting:
            member.waiting += 1
        work.holders.append(member)
        dealt.setdefault(member, []).append(work)

    def _room(self, member: Member, total_rate: float) -> int:
        """How many more samples a replica may have."""
        reserve = self._reserve(member, total_rate)
        room = member.capacity + reserve - len(member.held)
        if member.waiting:
            room = min(room, reserve - member.waiting)
        if self._has_end and not member.load:
            share = _UNKNOWN_SHARE * len(self._open) / len(self._members)
            room = min(room, math.ceil(share) - len(member.held))
        return room

    def _reserve(self, member: Member, total_rate: float) -> int:
        """How many samples a replica may have besides those that it works on.

        None at the end: one that waits here may be begun elsewhere, and where it ends first is
        known when a place is free.
        """
        pile_s = len(self._pile) / total_rate if total_rate else math.inf
        if self._has_end and member.load and pile_s < _END_IN_SAMPLES * member.one_s():
            return 0
        # What two messages bring: one is on its way while the next is made.
        lasting = max(2 * (member.per_message - 1), member.rate * self._policy.lag_s)
        return max(member.reserve, math.ceil(lasting))

    def _crowd(self, member: Member) -> float:
        """What orders replicas: the fill of those of unknown speed, else when they would answer."""
        expected_s = member.expected_s()
        return expected_s or len(member.held) / (member.capacity + member.reserve)

    def _is_sooner_elsewhere(self, member: Member, total_rate: float) -> bool:
        """Whether even the last of the pile ends sooner on faster replicas than the next here."""
        expected_s = member.expected_s()
        if not self._has_end or not expected_s or not total_rate:
            return False
        if len(self._pile) / total_rate > expected_s:
            return False
        faster = [
            (other.rate, other.one_s())
            for other in self._members
            if other is not member and other.load and other.rate > member.rate
        ]
        if not faster:
            return False
        pace = sum(rate for rate, _ in faster)
        return len(self._pile) / pace + min(latency_s for _, latency_s in faster) < expected_s

    def _double(self, dealt: dict[Member, list[Work]], now_s: float) -> None:
        """Let idle replicas run those of the last samples that others will end late."""
        if now_s < self._double_after_s:
            return
        every_s = max(_DOUBLE_EVERY_S, _DOUBLE_EVERY_S_PER_SAMPLE * len(self._open))
        self._double_after_s = now_s + every_s
        idle = [m for m in self._hungry if m.load and len(m.held) < m.running]
        if not idle:
            return
        slots = sum(member.running - len(member.held) for member in idle)
        ends = (
            (self._remaining_s(w, now_s), w) for w in self._open.values() if len(w.holders) == 1
        )
        latest = heapq.nlargest(slots, ends, key=lambda pair: pair[0])
        heap = [(member.expected_s(), place, member) for place, member in enumerate(idle)]
        heapq.heapify(heap)
        for remaining_s, work in latest:
            if not heap or heap[0][0] > _WORTH_DOUBLING * remaining_s:
                return
            _, place, member = heapq.heappop(heap)
            if work.holders[0] is not member:
                self._give(member, work, dealt, now_s)
                self.counts["doubled"] += 1
            if len(member.held) < member.running:
                heapq.heappush(heap, (member.expected_s(), place, member))

    def _remaining_s(self, work: Work, now_s: float) -> float:
        """When its replica is expected to answer; one that is overdue is taken to be slow."""
        given_s, due_s = work.holders[0].held[work.number]
        return max(due_s - now_s, (now_s - given_s) / 4)
