"""The head of the replicas: one thread that deals samples, hears answers and minds the seats.

Everything happens in the order of one queue: samples that are submitted, processes that are
ready, news, and calls that failed because a process or its node is gone. One call of `news` is
under way to each process at any time. It carries samples there and answers back, its return asks
for more, and its failure is how a death is learned; `Seat.trouble` finds those that live and make
nothing. What becomes of processes is the crew's (`replicas_crew`).
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from paceline.engines import Completion, EngineState, Request, Sink
from paceline.engines.replicas_cluster import Cluster
from paceline.engines.replicas_crew import Crew, Hooks, Setup
from paceline.engines.replicas_dispatch import Member, Pool, Work
from paceline.engines.replicas_seat import Seat
from paceline.engines.replicas_settings import ReplicasConfig
from paceline.engines.replicas_state import state_of
from paceline.engines.replicas_wire import Failure, News, pack_batch
from paceline.errors import EngineError, PacelineError

__all__ = ["Head"]

log = logging.getLogger(__name__)

_TICK_S = 0.2


class Head:
    """Seats, pool and the thread that owns both."""

    def __init__(
        self,
        config: ReplicasConfig,
        cluster: Cluster,
        pool: Pool,
        seats: Sequence[Seat],
        *,
        setup: Setup,
    ) -> None:
        self._cluster = cluster
        self._setup = setup
        self._streaming = setup.streaming
        # Not SimpleQueue: its get() with a timeout of microseconds can wait for ever.
        self._queue: queue.Queue[tuple[Callable[..., None], tuple[Any, ...]]] = queue.Queue()
        self._changed = threading.Condition()
        self._pending = 0
        self._closing = False
        self._is_up = False
        hooks = Hooks(
            call=self._call, give_up=self._give_up, fail_all=self._fail_all, is_up=self._on_up
        )
        self._crew = Crew(config, cluster, pool, seats=seats, setup=setup, hooks=hooks)
        self._thread = threading.Thread(target=self._work, name="replicas-head", daemon=True)
        self.pool = pool
        self.seats = seats
        self.failure: PacelineError | None = None
        self.events = self._crew.events
        self.counts = self._crew.counts

    def start(self) -> None:
        """Fill every seat. Raises PacelineError when one cannot be filled."""
        self._crew.fill_all()
        self._thread.start()
        with self._changed:
            self._changed.wait_for(lambda: self._is_up or self.failure is not None)
        if self.failure is not None:
            raise self.failure

    def submit(self, requests: Sequence[Request], sink: Sink) -> None:
        """More samples."""
        with self._changed:
            self._pending += len(requests)
        self._post(self._on_requests, requests, sink)

    def drain(self) -> None:
        """Wait until all is answered."""
        with self._changed:
            self._changed.wait_for(lambda: self._pending == 0)

    def begin_counting(self, made: Mapping[tuple[int, int], Sequence[int]]) -> None:
        """Count from now on what replicas answer and make, and what becomes of samples.

        `made` has the tokens so far of each replica of a process, by its seat and generation.
        """
        begun = threading.Event()
        self._post(self._on_counting, made, begun)
        while self.failure is None and not begun.wait(_TICK_S):
            pass  # a head that failed does nothing more

    def num_ready(self) -> int:
        """Seats whose process works."""
        return self._crew.num_ready()

    def state(self) -> EngineState:
        """The replicas as one engine."""
        return state_of(self.seats, self.pool)

    def in_flight(self) -> int:
        """Samples that keep those full that are ready."""
        members = [member for seat in self.seats for member in seat.members]
        return sum(member.capacity + member.reserve for member in members)

    def set_streaming(self, wanted: bool | None) -> None:
        """Whether first tokens are wanted from the next sample on; None: as at the start."""
        self._post(self._on_streaming, wanted)

    def _on_streaming(self, wanted: bool | None) -> None:
        self._streaming = self._setup.streaming if wanted is None else wanted
        self.pool.set_endless(self._streaming)

    def cpu_s(self) -> float:
        """CPU time of the head's thread."""
        ident = self._thread.ident
        if ident is None or not self._thread.is_alive():
            return 0.0
        return time.clock_gettime(time.pthread_getcpuclockid(ident))

    def close(self) -> None:
        """End every process."""
        self._closing = True
        self._post(lambda: None)
        if self._thread.ident is not None:
            self._thread.join()
        self._crew.close()

    def _post(self, what: Callable[..., None], *arguments: Any) -> None:
        self._queue.put((what, arguments))

    def _work(self) -> None:
        try:
            while not self._closing:
                self._run_posted()
                now_s = time.monotonic()
                self._crew.mind(now_s)
                self._deal(now_s)
        except Exception as error:
            log.exception("the replicas' head failed")
            self._fail_all(EngineError(f"The head failed: {type(error).__name__}: {error}"))

    def _run_posted(self) -> None:
        """Do what was posted, waiting for it a little."""
        try:
            what, arguments = self._queue.get(timeout=_TICK_S)
            what(*arguments)
            while True:
                what, arguments = self._queue.get_nowait()
                what(*arguments)
        except queue.Empty:
            return

    def _on_requests(self, requests: Sequence[Request], sink: Sink) -> None:
        if self.failure is not None:
            for request in requests:
                sink.failed(request.request_id, self.failure)
            self._leave(len(requests))
            return
        self.pool.add(requests, sink)

    def _on_counting(
        self, made: Mapping[tuple[int, int], Sequence[int]], begun: threading.Event
    ) -> None:
        self.pool.counts.clear()
        self.counts.clear()
        for seat in self.seats:
            seat.begin_counting(made.get((seat.index, seat.generation)))
        begun.set()

    def _deal(self, now_s: float) -> None:
        """Give out samples, and have every process asked for its news."""
        for member, works in self.pool.deal(now_s).items():
            seat, place = self._crew.seat_of[member]
            seat.send(place, works, now_s)
        for seat in self.seats:
            if seat.state != "ready" or (seat.is_asked and not seat.outgoing):
                continue
            batch = None
            if seat.outgoing:
                batch = pack_batch(seat.outgoing, is_streaming=self._streaming)
                seat.outgoing = []
            self.counts["messages"] += 1
            if seat.is_asked:
                self._call(seat, "give", batch, then=self._on_given)
                continue
            seat.heard_s, seat.is_asked = now_s, True
            forgotten, seat.forgotten = seat.forgotten, {}
            self._call(seat, "news", batch, forgotten, then=self._on_news)

    def _call(self, seat: Seat, method: str, *arguments: Any, then: Callable[..., None]) -> None:
        generation = seat.generation
        self._cluster.call(
            seat.process,
            method,
            *arguments,
            then=lambda result: self._post(then, seat, generation, result),
        )

    def _on_given(self, seat: Seat, generation: int, result: Any) -> None:
        if generation == seat.generation and isinstance(result, BaseException):
            self._crew.fail(seat, "died", result)

    def _on_news(self, seat: Seat, generation: int, result: Any) -> None:
        if generation != seat.generation:
            if isinstance(result, News):
                self.pool.counts["late"] += len(result.numbers)
            return
        if not isinstance(result, News):
            self._crew.fail(seat, "died", result)
            return
        now_s = time.monotonic()
        seat.is_asked = False
        num_tokens = seat.hear(result, now_s)
        num_answers = Counter(result.places.tolist())
        for place, (member, state) in enumerate(zip(seat.members, result.states, strict=True)):
            waiting = state.engine.waiting_sequences or 0
            self.pool.heard(member, waiting, num_answers[place])
        if num_tokens > 0:
            self._report_progress(num_tokens)
        for place, number, token_id in result.firsts():
            self._on_first(seat.members[place], number, token_id)
        answers: dict[int, tuple[Sink, list[Completion]]] = {}
        for place, completion in result.completions():
            self._on_answer(seat.members[place], completion, now_s, answers)
        for sink, completions in answers.values():
            sink.done_all(completions)
            self._leave(len(completions))
        if result.failures:
            self._on_failures(seat, result.failures)

    def _report_progress(self, num_tokens: int) -> None:
        work = self.pool.any_work()
        if work is not None:
            work.sink.progress(num_tokens)

    def _on_first(self, member: Member, number: int, token_id: int) -> None:
        work = self.pool.open_work(member, number)
        if work is not None and work.first is None and self._streaming:
            work.first = token_id
            work.sink.first_token(work.request.request_id, token_id)

    def _on_answer(
        self,
        member: Member,
        completion: Completion,
        now_s: float,
        answers: dict[int, tuple[Sink, list[Completion]]],
    ) -> None:
        number, token_ids = completion.request_id, completion.token_ids
        work = self.pool.answer(member, number, len(token_ids), now_s=now_s)
        if work is None:
            return
        for holder in work.holders:
            if holder is not member and holder.can_cancel:
                seat, place = self._crew.seat_of[holder]
                seat.forgotten.setdefault(place, []).append(number)
                self.pool.drop(holder, number)
                self.counts["recalled"] += 1
        request_id = work.request.request_id
        if self._streaming and work.first is None:
            work.sink.first_token(request_id, int(token_ids[0]))
        elif work.first is not None and work.first != int(token_ids[0]):
            self.counts["first_token_differs"] += 1
        _, completions = answers.setdefault(id(work.sink), (work.sink, []))
        completions.append(Completion(request_id, token_ids, completion.finish_reason))

    def _on_failures(self, seat: Seat, failures: Sequence[Failure]) -> None:
        """A request that no engine could answer fails; else the engine is taken to be broken."""
        for failure in failures:
            if failure.is_input:
                work = self.pool.fail(failure.number)
                if work is not None:
                    self._give_up([work], EngineError(failure.message, hint=failure.hint))
        broken = [failure for failure in failures if not failure.is_input]
        if broken:
            self._crew.lose(seat, f"failed: {broken[0].message}")

    def _give_up(self, works: Sequence[Work], error: PacelineError) -> None:
        for work in works:
            work.sink.failed(work.request.request_id, error)
        self._leave(len(works))

    def _leave(self, count: int) -> None:
        with self._changed:
            self._pending -= count
            self._changed.notify_all()

    def _on_up(self) -> None:
        with self._changed:
            self._is_up = True
            self._changed.notify_all()

    def _fail_all(self, error: PacelineError) -> None:
        """Nothing more will be answered."""
        self.failure = error
        self._give_up(self.pool.clear(), error)
        with self._changed:
            self._changed.notify_all()
