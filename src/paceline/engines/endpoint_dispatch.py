"""Which server answers which request: pulled from one pile, retried when a server fails.

Everything here runs on one event loop. A request waits in the pile until a server has room, and
goes to the one with the fewest outstanding, each weighed by the time that finished answers took
there: a server twice as slow gets half as many. At the end of the pile a slow server is left idle
when faster ones will get to the last requests sooner, so that all finish together.

A server that refuses connections, or fails three times in a row, is put aside: its requests go
elsewhere and it is asked from time to time whether it is back. One that is back gets a single
request until it has answered one. When no server is left for `dead_timeout_s`, what is unanswered
fails.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

from paceline.engines import Completion, EngineState, Part
from paceline.engines.endpoint_client import ServerFault
from paceline.engines.endpoint_state import Job, Policy, Server
from paceline.errors import EngineError, PacelineError

__all__ = ["Dispatcher"]

log = logging.getLogger(__name__)

_FAULTS_UNTIL_ASIDE = 3
_LONGEST_BACKOFF_S = 30.0
_LONGEST_PROBE_WAIT_S = 5.0


class Dispatcher:
    """The pile and the servers. All methods run on the event loop."""

    def __init__(
        self, servers: Sequence[Server], policy: Policy, *, answered: Callable[[int], None]
    ) -> None:
        self._servers = servers
        self._policy = policy
        self._answered = answered
        self._pile: deque[Job] = deque()
        self._open: dict[Job, None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._given_up: PacelineError | None = None
        self._added_s = 0.0
        self.retries: Counter[str] = Counter()

    def state(self) -> EngineState:
        """What is in flight at each server, and what waits here; any thread may ask."""
        return EngineState(
            live_sequences=sum(server.in_flight for server in self._servers),
            waiting_sequences=len(self._pile),
            parts=tuple(
                Part(
                    name=server.name,
                    live_sequences=server.in_flight,
                    tokens=server.tokens,
                    answered=server.answered,
                    is_up=server.is_up,
                )
                for server in self._servers
            ),
        )

    def begin_counting(self) -> None:
        """What servers answered and failed so far is no longer counted."""
        self.retries.clear()
        for server in self._servers:
            server.begin_counting()

    def add(self, jobs: Sequence[Job]) -> None:
        """More requests."""
        self._added_s = time.monotonic()
        self._pile.extend(jobs)
        self._open.update(dict.fromkeys(jobs))
        if self._given_up is not None:
            self.give_up(self._given_up)
        self._pump()

    def give_up(self, error: PacelineError) -> None:
        """Fail every request, also those to come, until a server is back."""
        self._given_up = error
        self._pile.clear()
        for job in list(self._open):
            self._fail(job, error)

    async def close(self) -> None:
        """Give up what is under way; nothing more is pushed."""
        self._pile.clear()
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _pump(self) -> None:
        """Send out as much as there is room for."""
        while self._pile:
            job = self._pile.popleft()
            server = self._choose(job)
            if server is None:
                self._pile.appendleft(job)
                return
            server.in_flight += 1
            server.most_in_flight = max(server.most_in_flight, server.in_flight)
            self._spawn(self._attempt(job, server))

    def _choose(self, job: Job) -> Server | None:
        """The server for the next request; None when it should wait."""
        now_s = time.monotonic()
        free = [server for server in self._servers if server.room(now_s)]
        if len(free) == 1 and len(self._servers) == 1:
            return free[0]
        others = [server for server in free if server is not job.last_server]
        if not (free := others or free):
            return None
        known = [server.latency_s for server in free if server.load]
        typical_s = sum(known) / len(known) if known else 1.0

        def crowd(server: Server) -> float:
            return (server.in_flight + 1) * (server.latency_s if server.load else typical_s)

        best = min(free, key=crowd)
        return None if self._others_are_sooner(best) else best

    def _others_are_sooner(self, best: Server) -> bool:
        """Whether even the last of the pile would be answered sooner by servers without room."""
        faster = [
            server
            for server in self._servers
            if server is not best
            and server.is_up
            and server.in_flight
            and server.load
            and server.latency_s < best.expected_s()
        ]
        if not faster:
            return False
        # While requests keep coming, an idle server is lost speed: this is not the end of the pile.
        if time.monotonic() - self._added_s < min(server.latency_s for server in faster):
            return False
        pace = sum(server.in_flight / server.latency_s for server in faster)
        wait_s = (len(self._pile) + 1) / pace + min(server.latency_s for server in faster)
        return wait_s < best.expected_s()

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _attempt(self, job: Job, server: Server) -> None:
        started_s, load = time.monotonic(), server.in_flight
        job.attempts += 1
        try:
            completion = await server.ask(job)
        except ServerFault as fault:
            server.in_flight -= 1
            self._on_fault(job, server, fault)
        except PacelineError as error:
            server.in_flight -= 1
            self._fail(job, error)
        except Exception as error:
            log.exception("the endpoint engine failed")
            server.in_flight -= 1
            self._fail(job, EngineError(f"The engine failed: {type(error).__name__}: {error}"))
        else:
            server.measure(time.monotonic() - started_s, (load + server.in_flight) / 2)
            server.in_flight -= 1
            self._finish(job, server, completion)
        self._pump()

    def _finish(self, job: Job, server: Server, completion: Completion) -> None:
        server.faults_in_a_row = 0
        server.is_on_trial = False
        server.answered += 1
        server.tokens += len(completion.token_ids)
        server.grow()
        if not self._close(job):
            return
        if job.first is None:
            job.sink.first_token(completion.request_id, int(completion.token_ids[0]))
        job.count(len(completion.token_ids))
        job.sink.done(completion)
        self._answered(1)

    def _fail(self, job: Job, error: PacelineError) -> None:
        if self._close(job):
            job.sink.failed(job.request.request_id, error)
            self._answered(1)

    def _close(self, job: Job) -> bool:
        """Whether the job was still open; whoever closes it answers it."""
        if job not in self._open:
            return False
        del self._open[job]
        return True

    def _on_fault(self, job: Job, server: Server, fault: ServerFault) -> None:
        """Count it, judge the server, and send the request again if that may help."""
        server.faults[fault.kind] += 1
        log.warning("request %d, try %d: %s", job.request.request_id, job.attempts, fault.message)
        self._judge(server, fault)
        tries = 1 + self._policy.retries
        if not fault.may_retry or job.attempts >= tries:
            times = f", after {job.attempts} tries" if job.attempts > 1 else ""
            self._fail(
                job,
                EngineError(
                    f"{fault.message.rstrip('.')}{times}.",
                    hint="see the server's log; engine.endpoint.retries sets how often to try",
                ),
            )
            return
        self.retries[fault.kind] += 1
        job.last_server = server
        wait_s = self._backoff_s(job.attempts)
        asyncio.get_running_loop().call_later(wait_s, self._again, job)

    def _judge(self, server: Server, fault: ServerFault) -> None:
        if fault.kind in ("http_429", "http_503"):
            self._pause(server, fault.retry_after_s or self._policy.backoff_s)
        if fault.kind == "http_429":  # it says that it is full, not that it is broken
            server.limit = max(1, min(server.limit, server.in_flight))
            return
        server.faults_in_a_row += 1
        if server.is_up and (fault.is_away or server.faults_in_a_row >= _FAULTS_UNTIL_ASIDE):
            server.is_up = False
            server.times_aside += 1
            server.aside_since_s = time.monotonic()
            log.warning("%s is put aside: %s", server.name, fault.message)
            self._spawn(self._await_return(server))
            if not any(other.is_up for other in self._servers):
                self._timer = asyncio.get_running_loop().call_later(
                    self._policy.dead_timeout_s, self._fail_all, fault
                )

    def _pause(self, server: Server, wait_s: float) -> None:
        server.paused_until_s = max(server.paused_until_s, time.monotonic() + wait_s)
        asyncio.get_running_loop().call_later(wait_s + 0.001, self._pump)

    def _again(self, job: Job) -> None:
        if job in self._open:
            self._pile.appendleft(job)
            self._pump()

    def _backoff_s(self, attempt: int) -> float:
        longest = min(self._policy.backoff_s * 2.0 ** (attempt - 1), _LONGEST_BACKOFF_S)
        return float(longest * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, not a secret

    async def _await_return(self, server: Server) -> None:
        """Ask a server that was put aside whether it is back, until it is."""
        wait_s = self._policy.backoff_s * server.times_aside
        while True:
            wait_s = min(wait_s, _LONGEST_PROBE_WAIT_S)
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))  # noqa: S311
            wait_s *= 2
            try:
                if await server.is_back():
                    break
            except ServerFault as fault:
                log.info("%s is still away: %s", server.name, fault.message)
        server.aside_s += time.monotonic() - server.aside_since_s
        server.is_up = server.is_on_trial = True
        server.faults_in_a_row = 0
        self._given_up = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        log.warning("%s is back", server.name)
        self._pump()

    def _fail_all(self, fault: ServerFault) -> None:
        """No server is left: the error names the last one's cause."""
        self.give_up(
            EngineError(
                f"No server answered for {self._policy.dead_timeout_s:g} s. "
                f"The last one to go: {fault.message}",
                hint="start the servers again, then paceline run --resume DIR",
            )
        )
