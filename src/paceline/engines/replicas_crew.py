"""The crew: which process sits in which seat, from its start to its loss and its return.

A process that dies, stalls or says nothing is lost: its samples go back to the pool, and it is
started again after a wait, on its own node or on another that has room, as often as the settings
allow. When nobody is left, the run is told to end.

Until all seats are filled, a process that is of no use ends the run at once, so that a mistake is
told early. A node that vanishes then is another matter, for Ray lists a dead one for a while: its
seats are filled on other nodes, or, where the number of replicas was left open, stay empty until
a node comes.

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
_TO_FILL = ("away", "missing")
_LOSSES = ("lost", "not started")


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
        self._alone_since_s = self._looked_s = self._began_s
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
            self.fail(seat, "did not start", result)
            return
        trouble = result if isinstance(result, Trouble) else self._stranger(seat, result)
        if trouble is not None:
            self.lose(seat, f"did not start: {trouble.message}", trouble=trouble)
            return
        members = [self._setup.member_of(name, result["can_cancel"]) for name in seat.names]
        seat.sit(members, result, time.monotonic())
        for place, member in enumerate(members):
            self.seat_of[member] = (seat, place)
            self._pool.join(member)
        if seat.restarts:
            self._note(seat, "back", reason=f"start {seat.restarts + 1}")

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

    def fail(self, seat: Seat, what: str, error: BaseException) -> None:
        """A call of a seat's process failed: it is lost."""
        in_doubt = self._cluster.is_in_doubt(error)
        self.lose(seat, f"{what}: {short_error(error)}", in_doubt=in_doubt)

    def lose(
        self, seat: Seat, reason: str, *, trouble: Trouble | None = None, in_doubt: bool = False
    ) -> None:
        """A process is gone or of no use: its samples go elsewhere, and it is started again.

        `in_doubt`: its node may be gone, and Ray does not know it yet.
        """
        now_s = time.monotonic()
        dropped = self._empty(seat, reason, now_s)
        if not self._is_up and not self._is_excused(seat, in_doubt=in_doubt, trouble=trouble):
            kind = getattr(errors, trouble.kind) if trouble is not None else EngineError
            hint = None if trouble is None else trouble.hint
            self._end(kind(f"{_named(seat)} {reason}", hint=hint))
            return
        if dropped:
            tries = f"{self._config.retries + 1} replicas were lost with it; the last one {reason}"
            self._hooks.give_up(dropped, EngineError(f"{tries}.", hint="engine.replicas.retries"))
        if seat.faults >= self._config.restarts and self._is_up:
            seat.state = "given up"
            self._note(seat, "given up", reason=f"after {seat.restarts} restarts")
        seat.due_s = now_s + min(self._config.backoff_s * 2.0**seat.faults, _LONGEST_BACKOFF_S)

    def _empty(self, seat: Seat, reason: str, now_s: float) -> list[Work]:
        """Take the samples and the process from a seat; returns those that were lost too often."""
        was_ready = seat.state == "ready"
        num_moved, dropped = 0, []
        for member in seat.members:
            moved, given_up = self._pool.lose(member)
            del self.seat_of[member]
            num_moved += len(moved)
            dropped += given_up
        if was_ready or not self._is_up:
            self._alone_since_s = now_s
        if seat.process is not None:
            self._ender.submit(self._cluster.end, seat.process)
        seat.rise(now_s)
        self.counts["lost"] += 1
        self._note(seat, "lost" if was_ready else "not started", reason=reason, moved=num_moved)
        return dropped

    def _is_excused(self, seat: Seat, *, in_doubt: bool, trouble: Trouble | None) -> bool:
        """Whether a process that was lost before all were ready is the fault of its node."""
        if trouble is not None:
            return False
        is_there = any(node.node_id == seat.node.node_id for node in self._cluster.nodes())
        if is_there and (not in_doubt or seat.restarts > self._config.restarts):
            return False
        seat.excused += 1
        return True

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
                    self.lose(seat, reason, in_doubt=True)
            elif seat.state == "starting" and now_s >= seat.due_s:
                self.lose(seat, f"not ready after {self._config.start_timeout_s:g} s")
        vacant = [seat for seat in self.seats if seat.state in ("starting", *_TO_FILL)]
        if vacant and not self._has_ended and now_s - self._looked_s >= _LOOK_FOR_NODES_EVERY_S:
            self._looked_s = now_s
            self._refill(vacant, now_s)
        if not self._has_ended and not self.num_ready():
            self._end_if_alone(now_s)
        if not self._is_up and not self._has_ended and self._are_all_filled():
            self._is_up = True
            self._hooks.is_up()

    def _are_all_filled(self) -> bool:
        """Whether each seat is ready, or has no node to be filled on."""
        return self.num_ready() > 0 and all(s.state in ("ready", "missing") for s in self.seats)

    def _refill(self, vacant: Sequence[Seat], now_s: float) -> None:
        """Start processes again where there is room; give up starts on nodes that are gone."""
        nodes = self._cluster.nodes()
        by_id = {node.node_id: node for node in nodes}
        for seat in vacant:
            if seat.state == "starting" and seat.node.node_id not in by_id:
                seat.excused += 1
                self._empty(seat, "its node is gone", now_s)
                seat.due_s = now_s
        used = Counter(seat.node.node_id for seat in self.seats if seat.process is not None)
        for seat in vacant:
            if seat.state == "starting" or now_s < seat.due_s:
                continue
            node = by_id.get(seat.node.node_id)
            if node is None or not self._setup.need.fits(node, used[node.node_id]):
                node = free_node(nodes, self._setup.need, used)
            if node is not None:
                used[node.node_id] += 1
                seat.restarts += 1
                self.counts["restarts"] += 1
                self._fill(seat, node)
            elif not self._is_up:
                self._miss(seat)

    def _miss(self, seat: Seat) -> None:
        """No node has room for a seat before all are ready: go on without it where that may be."""
        if self._config.num_replicas:
            lost = next(event for event in reversed(self.events) if event.replicas == seat.names)
            self._end(
                EngineError(
                    f"{_named(seat)} has nowhere to run: {lost.reason}, and no other node has "
                    "room.",
                    hint="start that node again (ray start --address=HEAD:PORT), or ask for fewer "
                    "engine.replicas.num_replicas (0: as many as there is room for)",
                )
            )
        elif seat.state != "missing":
            seat.state = "missing"
            self._note(seat, "missing", reason="no node has room for it; it starts when one comes")

    def _end_if_alone(self, now_s: float) -> None:
        """Nothing works: end when nothing is going to, in time."""
        if any(seat.state == "starting" for seat in self.seats):
            return
        alone_s = now_s - self._alone_since_s
        has_hope = any(seat.state in _TO_FILL for seat in self.seats)
        if has_hope and alone_s <= self._config.dead_timeout_s:
            return
        why = f"for {alone_s:.0f} s" if has_hope else "and each was started as often as may be"
        last = next(event for event in reversed(self.events) if event.what in _LOSSES)
        self._end(
            EngineError(
                f"No replica is left, {why}. The last one to go, {', '.join(last.replicas)} on "
                f"{last.host}: {last.reason}",
                hint="start the nodes again (ray start), then paceline run --resume DIR",
            )
        )

    def _end(self, error: PacelineError) -> None:
        if not self._has_ended:
            self._has_ended = True
            self._hooks.fail_all(error)


def _named(seat: Seat) -> str:
    return f"{', '.join(seat.names)} on {seat.node.label}"
