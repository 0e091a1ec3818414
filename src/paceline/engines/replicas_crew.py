"""The crew: which process sits in which seat, from its start to its loss and its return.

A process that dies, stalls or says nothing is lost: its samples go back to the pool, and it is
started again after a wait, on its own node or on another that has room, as often as the settings
allow. When nobody is left, the run is told to end.

All methods run on the head's thread.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from paceline import errors
from paceline.engines.replicas_cluster import Cluster, short_error
from paceline.engines.replicas_dispatch import Member, Pool, Work
from paceline.engines.replicas_host import HostOrder, Trouble
from paceline.engines.replicas_plan import Need, Node, free_node
from paceline.engines.replicas_seat import Event, Seat
from paceline.engines.replicas_settings import ReplicasConfig
from paceline.errors import EngineError, PacelineError

__all__ = ["Crew", "Hooks", "Setup"]

log = logging.getLogger(__name__)

_LONGEST_BACKOFF_S = 60.0
_LOOK_FOR_NODES_EVERY_S = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """What the head needs to fill a seat.

    `expected` is what every process has to say of itself: version, code and model. `streaming`:
    first tokens are wanted.
    """

    need: Need
    order_of: Callable[[Seat], HostOrder]
    member_of: Callable[[str, bool], Member]
    expected: dict[str, str]
    streaming: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Hooks:
    """What the crew asks of the head: call a seat's process, let go of samples, or end it all."""

    call: Callable[..., None]
    give_up: Callable[[Sequence[Work], PacelineError], None]
    fail_all: Callable[[PacelineError], None]
    is_up: Callable[[], None]


class Crew:
    """The seats and who sits in them."""

    def __init__(
        self,
        config: ReplicasConfig,
        cluster: Cluster,
        pool: Pool,
        *,
        seats: Sequence[Seat],
        setup: Setup,
        hooks: Hooks,
    ) -> None:
        self._config = config
        self._cluster = cluster
        self._pool = pool
        self._setup = setup
        self._hooks = hooks
        self._began_s = time.monotonic()
        self._last_ready_s = self._looked_s = self._began_s
        self._is_up = False
        self._has_ended = False
        self._ender = ThreadPoolExecutor(1, "replicas-ender")
        self.seats = seats
        self.seat_of: dict[Member, tuple[Seat, int]] = {}
        self.events: list[Event] = []
        self.counts = Counter[str]()

    def fill_all(self) -> None:
        """Start a process for every seat."""
        for seat in self.seats:
            self._fill(seat, seat.node)

    def num_ready(self) -> int:
        """Seats whose process works."""
        return sum(seat.state == "ready" for seat in self.seats)

    def close(self) -> None:
        """End every process."""
        self._cluster.close_all([seat.process for seat in self.seats if seat.state == "ready"])
        for seat in self.seats:
            if seat.process is not None:
                self._ender.submit(self._cluster.end, seat.process)
        self._ender.shutdown(wait=True)

    def _fill(self, seat: Seat, node: Node) -> None:
        """Start a process on a node for a seat."""
        seat.node, seat.state = node, "starting"
        seat.due_s = time.monotonic() + self._config.start_timeout_s
        seat.process = self._cluster.launch(node, self._setup.need, self._setup.order_of(seat))
        self._hooks.call(seat, "start", then=self._on_started)

    def _on_started(self, seat: Seat, generation: int, result: Any) -> None:
        if generation != seat.generation:
            return
        if isinstance(result, BaseException):
            self.lose(seat, f"did not start: {short_error(result)}")
            return
        trouble = result if isinstance(result, Trouble) else self._stranger(seat, result)
        if trouble is not None:
            self.lose(seat, f"did not start: {trouble.message}", trouble)
            return
        members = [self._setup.member_of(name, result["can_cancel"]) for name in seat.names]
        seat.sit(members, result, time.monotonic())
        for place, member in enumerate(members):
            self.seat_of[member] = (seat, place)
            self._pool.join(member)
        if seat.restarts:
            self._note(seat, "back", reason=f"start {seat.restarts + 1}")
        if self.num_ready() == len(self.seats):
            self._is_up = True
            self._hooks.is_up()

    def _stranger(self, seat: Seat, facts: dict[str, Any]) -> Trouble | None:
        """Why a process would not give the same tokens as the others; None when it would."""
        words = {"version": "version of paceline", "code": "code of paceline", "model": "model"}
        for name, value in self._setup.expected.items():
            if facts[name] != value:
                return Trouble(
                    "EngineError",
                    f"the {words[name]} on {seat.node.label} is not the one on this host "
                    f"({facts[name]} and {value})",
                    "install the same paceline, and put the same checkpoint, on every node",
                )
        return None

    def lose(self, seat: Seat, reason: str, trouble: Trouble | None = None) -> None:
        """A process is gone or of no use: its samples go elsewhere, and it is started again."""
        now_s, was_ready = time.monotonic(), seat.state == "ready"
        num_moved, dropped = 0, []
        for member in seat.members:
            moved, given_up = self._pool.lose(member)
            del self.seat_of[member]
            num_moved += len(moved)
            dropped += given_up
        if was_ready:
            self._last_ready_s = now_s
        if seat.process is not None:
            self._ender.submit(self._cluster.end, seat.process)
        seat.rise(now_s)
        self.counts["lost"] += 1
        self._note(seat, "lost" if was_ready else "not started", reason=reason, moved=num_moved)
        if not self._is_up:
            kind = getattr(errors, trouble.kind) if trouble is not None else EngineError
            names = ", ".join(seat.names)
            self._end(
                kind(
                    f"{names} on {seat.node.label} {reason}",
                    hint=None if trouble is None else trouble.hint,
                )
            )
            return
        if dropped:
            tries = f"{self._config.retries + 1} replicas were lost with it; the last one {reason}"
            self._hooks.give_up(dropped, EngineError(f"{tries}.", hint="engine.replicas.retries"))
        if seat.restarts >= self._config.restarts:
            seat.state = "given up"
            self._note(seat, "given up", reason=f"after {seat.restarts} restarts")
        wait_s = min(self._config.backoff_s * 2.0**seat.restarts, _LONGEST_BACKOFF_S)
        seat.due_s = now_s + wait_s

    def _note(self, seat: Seat, what: str, *, reason: str, moved: int = 0) -> None:
        event = Event.of(seat, what, reason=reason, moved=moved, began_s=self._began_s)
        self.events.append(event)
        log.warning(
            "%s on %s: %s: %s; %d samples moved",
            ", ".join(event.replicas), event.host, what, reason, moved,
        )  # fmt: skip

    def mind(self, now_s: float) -> None:
        """Find what stalls, start again what is due, and end what has nobody left."""
        for seat in self.seats:
            if seat.state == "ready":
                reason = seat.trouble(now_s, self._config.stall_timeout_s)
                if reason is not None:
                    self.lose(seat, reason)
            elif seat.state == "starting" and now_s >= seat.due_s:
                self.lose(seat, f"not ready after {self._config.start_timeout_s:g} s")
        vacant = [seat for seat in self.seats if seat.state in ("away", "starting")]
        if self._is_up and vacant and now_s - self._looked_s >= _LOOK_FOR_NODES_EVERY_S:
            self._looked_s = now_s
            self._refill(vacant, now_s)
        if not self._has_ended and self._is_up and not self.num_ready():
            self._end_if_alone(now_s)

    def _refill(self, vacant: Sequence[Seat], now_s: float) -> None:
        """Start processes again where there is room; give up starts on nodes that are gone."""
        nodes = self._cluster.nodes()
        by_id = {node.node_id: node for node in nodes}
        used = Counter(seat.node.node_id for seat in self.seats if seat.process is not None)
        for seat in vacant:
            node = by_id.get(seat.node.node_id)
            if seat.state == "starting":
                if node is None:  # not a fault of the replica's: it may start as often as before
                    seat.restarts -= 1
                    self.lose(seat, "its node is gone")
                continue
            if now_s < seat.due_s:
                continue
            if node is None or not self._setup.need.fits(node, used[node.node_id]):
                node = free_node(nodes, self._setup.need, used)
            if node is not None:
                used[node.node_id] += 1
                seat.restarts += 1
                self.counts["restarts"] += 1
                self._fill(seat, node)

    def _end_if_alone(self, now_s: float) -> None:
        """Nothing works: end when nothing is going to, in time."""
        if any(seat.state == "starting" for seat in self.seats):
            return
        alone_s = now_s - self._last_ready_s
        has_hope = any(seat.state == "away" for seat in self.seats)
        if has_hope and alone_s <= self._config.dead_timeout_s:
            return
        why = f"for {alone_s:.0f} s" if has_hope else "and each was started as often as may be"
        last = next(event for event in reversed(self.events) if event.what != "given up")
        self._end(
            EngineError(
                f"No replica is left, {why}. The last one to go, {', '.join(last.replicas)} on "
                f"{last.host}: {last.reason}",
                hint="start the nodes again (ray start), then paceline run --resume DIR",
            )
        )

    def _end(self, error: PacelineError) -> None:
        self._has_ended = True
        self._hooks.fail_all(error)
