"""A seat: the place of one process of replicas, whoever sits in it, and what has happened to it."""

from __future__ import annotations

import datetime
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from paceline.engines import EngineState, Request
from paceline.engines.replicas_dispatch import Member, Work
from paceline.engines.replicas_plan import Node
from paceline.engines.replicas_wire import News

__all__ = ["Event", "Seat"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Something that happened to a seat, for the manifest."""

    at: str
    elapsed_s: float
    what: str
    replicas: tuple[str, ...]
    host: str
    reason: str
    moved: int = 0

    @classmethod
    def of(cls, seat: Seat, what: str, *, reason: str, moved: int, began_s: float) -> Event:
        """What happened to a seat now."""
        at = datetime.datetime.fromtimestamp(time.time(), datetime.UTC)
        return cls(
            at=at.isoformat(timespec="milliseconds"),
            elapsed_s=round(time.monotonic() - began_s, 3),
            what=what,
            replicas=seat.names,
            host=seat.node.label,
            reason=reason,
            moved=moved,
        )


@dataclass(eq=False, slots=True)
class Seat:
    """One process at a time. `generation` tells the present one from those that were lost.

    `state` is starting, ready, away (to be started again at `due_s`), missing (no node had room
    for it at the start) or given up. Of its `restarts` so many are `excused`: a node was at fault.
    Of the tokens that the present process has `made`, the `uncounted` came before counting began;
    `made_before` are those of lost processes.
    """

    index: int
    names: tuple[str, ...]
    node: Node
    state: str = "away"
    generation: int = 0
    process: Any = None
    members: list[Member] = field(default_factory=list)
    restarts: int = 0
    excused: int = 0
    due_s: float = 0.0
    is_asked: bool = False
    heard_s: float = 0.0
    made: list[int] = field(default_factory=list)
    uncounted: list[int] = field(default_factory=list)
    made_before: list[int] = field(default_factory=list)
    states: list[EngineState] = field(default_factory=list)
    preemptions_before: int = 0
    progress_s: list[float] = field(default_factory=list)
    outgoing: list[tuple[int, int, Request]] = field(default_factory=list)
    forgotten: dict[int, list[int]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    answered: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    cpu_s: float = 0.0
    up_since_s: float = 0.0
    up_s: float = 0.0

    @property
    def faults(self) -> int:
        """How often it was started again for a fault of its own."""
        return max(0, self.restarts - self.excused)

    def sit(self, members: list[Member], facts: dict[str, Any], now_s: float) -> None:
        """A process is ready."""
        self.made_before = self.made_before or [0] * len(members)
        self.made, self.uncounted = [0] * len(members), [0] * len(members)
        self.states = [EngineState()] * len(members)
        self.state, self.members, self.facts = "ready", members, facts
        self.progress_s = [now_s] * len(members)
        self.heard_s = self.up_since_s = now_s
        self.is_asked = False

    def rise(self, now_s: float) -> None:
        """The process is gone."""
        if self.state == "ready":
            self.up_s += now_s - self.up_since_s
            for place, member in enumerate(self.members):
                self.answered[place] += member.answered
                self.tokens[place] += member.tokens
                self.made_before[place] = self.num_made(place)
            self.preemptions_before += sum(one.preemptions or 0 for one in self.states)
        self.generation += 1
        self.state, self.process, self.members = "away", None, []
        self.made, self.uncounted = [0] * len(self.made), [0] * len(self.made)
        self.states = []
        self.outgoing, self.forgotten, self.is_asked = [], {}, False

    def begin_counting(self, made: Sequence[int] | None) -> None:
        """Answers and tokens of each replica begin at 0.

        `made` is what each has made by its own word, None where the process did not say.
        """
        self.uncounted = list(self.made if made is None else made)
        self.made_before = [0] * len(self.made_before)
        self.answered, self.tokens = [0] * len(self.names), [0] * len(self.names)
        self.preemptions_before = 0
        for member in self.members:
            member.answered = member.tokens = 0

    def send(self, place: int, works: Sequence[Work], now_s: float) -> None:
        """Samples for the next message; a replica that had none begins to be watched."""
        if len(self.members[place].held) == len(works):
            self.progress_s[place] = now_s
        self.outgoing += [(place, work.number, work.request) for work in works]

    def hear(self, news: News, now_s: float) -> int:
        """Note who has made something; returns how many tokens were made since the last time."""
        self.heard_s, self.cpu_s = now_s, news.cpu_s
        num_tokens = 0
        answered = set(news.places.tolist())
        for place, state in enumerate(news.states):
            num_tokens += state.made - self.made[place]
            if state.made != self.made[place] or place in answered:
                self.progress_s[place] = now_s
            self.made[place] = state.made
        self.states = [state.engine for state in news.states]
        return num_tokens

    def trouble(self, now_s: float, timeout_s: float) -> str | None:
        """Why a ready process is to be taken for lost; None while it does well."""
        silent_s = now_s - self.heard_s if self.is_asked else 0.0
        silent = f"silent: said nothing for {silent_s:.1f} s"
        if silent_s > timeout_s:
            return silent
        for member, since_s in zip(self.members, self.progress_s, strict=True):
            if member.held and now_s - since_s > timeout_s:
                # Who makes nothing still says so, twice in that time at the least.
                if silent_s > timeout_s / 2:
                    return silent
                return (
                    f"stalled: {member.name} made nothing for {now_s - since_s:.1f} s with "
                    f"{len(member.held)} samples"
                )
        return None

    def num_made(self, place: int) -> int:
        """Tokens that a replica has made since counting began, also in processes that were lost."""
        made, uncounted, before = self.made, self.uncounted, self.made_before
        num = before[place] if place < len(before) else 0
        if place < min(len(made), len(uncounted)):
            # What was last heard may be older than the process's own word at the begin.
            num += max(0, made[place] - uncounted[place])
        return num

    def describe(self, now_s: float) -> list[dict[str, Any]]:
        """Each replica of the seat, for the manifest."""
        up_s = self.up_s + (now_s - self.up_since_s if self.state == "ready" else 0.0)
        rows = []
        for place, name in enumerate(self.names):
            member = self.members[place] if self.state == "ready" else None
            rows.append(
                {
                    "name": name,
                    "host": self.node.label,
                    "is_up": member is not None,
                    "up_s": round(up_s, 3),
                    "restarts": self.restarts,
                    "answered": self.answered[place] + (member.answered if member else 0),
                    "tokens": self.tokens[place] + (member.tokens if member else 0),
                    "samples_per_second": round(member.rate, 4) if member else 0.0,
                    "latency_s": round(member.latency_s, 4) if member else 0.0,
                    "pid": self.facts.get("pid"),
                }
            )
        return rows
