"""Copies of any engine over the nodes of a Ray cluster.

    engine.name = "replicas", engine.replicas.engine = "native"

Each copy has GPUs of one node to itself and is an actor in a placement group of its own; LoadGen
stays with the head. Copies pull samples (`replicas_dispatch`), a copy or a node that dies or
stalls has its samples answered elsewhere (`replicas_head`), and what happened is in `describe`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import paceline
from paceline.engines import EngineContext, EngineState, Request, Sink
from paceline.engines.managed_settings import variables
from paceline.engines.replicas_cluster import Cluster
from paceline.engines.replicas_crew import Setup
from paceline.engines.replicas_dispatch import Member, Pool, PoolPolicy
from paceline.engines.replicas_head import Head
from paceline.engines.replicas_host import HostOrder, code_digest, model_digest
from paceline.engines.replicas_plan import Need, Node, count_places, plan_places
from paceline.engines.replicas_seat import Seat
from paceline.engines.replicas_settings import ReplicasConfig, capacity_of, devices_of
from paceline.errors import EngineError

__all__ = ["ReplicasConfig", "ReplicasEngine"]

_RESERVE_PART = 8
_DESCRIBE_TIMEOUT_S = 60.0
_REPORT_EVERY_S = 1.0
# News may have to wait for a batch to end, and what it brings for the next.
_LAG_IN_BATCHES = 2.0
# What is one copy's own is not said of all of them.
_OF_ONE_COPY = ("copies", "notes", "answered", "client", "servers", "processes", "counts")

Vary = Callable[[int, Any], Any]


class ReplicasEngine:
    """A cluster, its seats, and the head that minds them."""

    def __init__(
        self,
        config: ReplicasConfig,
        context: EngineContext,
        *,
        vary: Vary | None = None,
        connect: Callable[..., Cluster] = Cluster,
    ) -> None:
        """`vary` makes the config of the replica of a number; all are alike without. `connect`
        opens the cluster."""
        self._config = config
        self._context = context
        self._vary = vary or (lambda _, inner: inner)
        self._connect = connect
        self._cluster: Cluster | None = None
        self._head: Head | None = None
        self._nodes: list[Node] = []
        self._need = Need(cpus=1, gpus=0)
        self._began: tuple[float, float, float] | None = None

    def start(self) -> None:
        config = self._config
        self._context.report("reaching Ray", None)
        wanted = config.num_replicas * config.cpus_per_replica
        self._cluster = self._connect(
            config.address,
            environment=self._environment(),
            own_cpus=max(os.cpu_count() or 1, wanted),
        )
        try:
            self._place()
        except BaseException:
            self.close()
            raise

    def submit(self, requests: Sequence[Request], sink: Sink) -> None:
        head = self._running()
        if self._began is None:
            self._began = self._clocks(head)
        head.submit(requests, sink)

    def drain(self) -> None:
        self._running().drain()

    def close(self) -> None:
        head, cluster = self._head, self._cluster
        self._head = self._cluster = None
        with contextlib.ExitStack() as stack:
            if cluster is not None:
                stack.callback(cluster.close)
            if head is not None:
                head.close()

    def set_streaming(self, wanted: bool | None) -> None:
        self._running().set_streaming(wanted)

    def state(self) -> EngineState:
        """The replicas as one engine, and each of them; empty when it is closed."""
        head = self._head
        return EngineState() if head is None else head.state()

    def head_of_seats(self) -> Head:
        """The head, for whoever watches or harms it: the bench and the tests."""
        return self._running()

    def begin_counting(self) -> None:
        told = self._ask_all("begin_counting")
        self._running().begin_counting({who: made for who, made in told if made is not None})
        self._began = None

    def describe(self) -> dict[str, Any]:
        assert self._cluster is not None
        head, cluster, now_s = self._running(), self._cluster, time.monotonic()
        answers = [answer for _, answer in self._ask_all("describe")]
        told = [one for answer in answers for one in answer or ()]
        first = told[0] if told else {}
        replicas = [row for seat in head.seats for row in seat.describe(now_s)]
        facts = {name: value for name, value in first.items() if name not in _OF_ONE_COPY}
        counts = dict(head.counts + head.pool.counts)
        counts["undescribed"] = answers.count(None)
        facts |= {
            "copied_engine": self._config.engine,
            "simulated": any(one.get("simulated") for one in told) or self._config.engine == "fake",
            "copies": [copy for one in told for copy in one.get("copies", ())],
            "replicas": replicas,
            "nodes": [dataclasses.asdict(node) for node in self._nodes],
            "gpus_per_replica": self._need.gpus,
            "ray": cluster.version,
            "events": [dataclasses.asdict(event) for event in head.events],
            "counts": counts,
            "in_flight": head.in_flight(),
            "head": self._head_facts(head, counts),
        }
        return facts | {"notes": _notes(facts, told)}

    def _ask_all(self, method: str) -> list[tuple[tuple[int, int], Any]]:
        """Call a method of every process that is ready.

        Returns each one's seat and generation with its answer, None where it does not answer.
        """
        assert self._cluster is not None
        present = [
            ((seat.index, seat.generation), seat.process)
            for seat in self._running().seats
            if seat.state == "ready" and seat.process is not None
        ]
        processes = [process for _, process in present]
        answers = self._cluster.ask_all(processes, method, timeout_s=_DESCRIBE_TIMEOUT_S)
        return [(who, answer) for (who, _), answer in zip(present, answers, strict=True)]

    def _running(self) -> Head:
        assert self._head is not None, "the engine was not started"
        return self._head

    def _environment(self) -> dict[str, str]:
        """Variables of every process: threads that wait by spinning would slow down the others."""
        return {
            "OMP_WAIT_POLICY": "PASSIVE",
            "OMP_NUM_THREADS": str(self._config.cpus_per_replica),
            **variables(self._config.environment),
        }

    def _plan(self) -> list[Seat]:
        """A seat for each process, on a node with room for it. Raises EngineError."""
        config = self._config
        gpus = devices_of(config, has_gpus=any(node.gpus for node in self._nodes))
        one = Need(cpus=config.cpus_per_replica, gpus=gpus)
        count = config.num_replicas or count_places(self._nodes, one)
        if count == 0:
            hint = f"a copy needs {gpus} GPUs and {one.cpus} CPUs of one node; see ray status"
            raise EngineError("The cluster's nodes have no room for a replica.", hint=hint)
        each = min(config.replicas_per_actor, count)
        is_alone = not config.num_replicas and not gpus
        self._need = Need(cpus=one.cpus * each, gpus=gpus, is_alone=is_alone)
        places = plan_places(self._nodes, self._need, math.ceil(count / each))
        seats = []
        for index, node in enumerate(places):
            mine = range(index * each, min((index + 1) * each, count))
            names = tuple(f"replica-{number}" for number in mine)
            zeros = [0] * len(names)
            seats.append(Seat(index, names, node, answered=zeros, tokens=list(zeros)))
        return seats

    def _place(self) -> None:
        """Plan the seats, fill them and wait until all are ready."""
        assert self._cluster is not None
        config, context, cluster = self._config, self._context, self._cluster
        self._nodes = cluster.nodes()
        seats = self._plan()
        expected = {"version": paceline.__version__, "code": code_digest()}
        if context.model is not None and context.model.exists():
            expected["model"] = model_digest(context.model)
        is_offline = not context.streaming
        policy = PoolPolicy(
            retries=config.retries,
            is_offline=is_offline,
            may_double=is_offline and config.duplicate_tail,
            lag_s=_LAG_IN_BATCHES * config.batch_ms / 1000,
        )
        setup = Setup(
            need=self._need,
            order_of=self._order,
            member_of=self._member,
            expected=expected,
            streaming=context.streaming,
        )
        self._head = Head(config, cluster, Pool(policy), seats, setup=setup)
        over = threading.Event()
        reporter = threading.Thread(target=self._report_start, args=(over,), daemon=True)
        reporter.start()
        try:
            self._head.start()
        finally:
            over.set()
            reporter.join()

    def _report_start(self, over: threading.Event) -> None:
        head = self._running()
        while True:
            ready, total = head.num_ready(), len(head.seats)
            self._context.report(f"{ready} of {total} processes of replicas ready", ready / total)
            if over.wait(_REPORT_EVERY_S):
                return

    def _order(self, seat: Seat) -> HostOrder:
        config, context = self._config, self._context
        first = seat.index * config.replicas_per_actor
        return HostOrder(
            engine=config.engine,
            configs=tuple(self._vary(first + i, config.inner) for i in range(len(seat.names))),
            first_replica=first,
            model=None if context.model is None else str(context.model),
            context={
                "eos_token_id": context.eos_token_id,
                "vocabulary_size": context.vocabulary_size,
                "max_new_tokens": context.max_new_tokens,
                "streaming": context.streaming,
                "longest_prompt_len": context.longest_prompt_len,
            },
            log_dir=str(context.log_dir),
            codec=context.codec,
            environment=self._environment(),
            batch_s=config.batch_ms / 1000,
            report_s=config.report_s,
        )

    def _member(self, name: str, can_cancel: bool) -> Member:
        capacity = capacity_of(self._config)
        reserve = self._config.reserve or math.ceil(capacity / _RESERVE_PART)
        return Member(name, capacity=capacity, reserve=reserve, can_cancel=can_cancel)

    def _clocks(self, head: Head) -> tuple[float, float, float]:
        """Wall time, CPU time of the head's thread, and of this whole process, in seconds."""
        return time.monotonic(), head.cpu_s(), time.process_time()

    def _head_facts(self, head: Head, counts: Counter[str] | dict[str, int]) -> dict[str, Any]:
        """What the head had to do, so that its limit is known from any run."""
        if self._began is None:
            return {}
        ends = self._clocks(head)
        wall_s, thread_s, process_s = (
            end - begin for end, begin in zip(ends, self._began, strict=True)
        )
        return {
            "wall_s": round(wall_s, 3),
            "thread_cpu_s": round(thread_s, 3),
            "process_cpu_s": round(process_s, 3),
            "messages": counts.get("messages", 0),
            "messages_per_second": round(counts.get("messages", 0) / max(wall_s, 1e-9), 1),
        }


def _notes(facts: dict[str, Any], told: Sequence[dict[str, Any]]) -> list[str]:
    """What a reader of the verdict should know, a sentence each."""
    counts = facts["counts"]
    notes = list(dict.fromkeys(note for one in told for note in one.get("notes", ())))
    devices = sorted({str(one.get("device_name", one.get("device"))) for one in told})
    if len(devices) > 1:
        notes.append(f"The replicas run on unlike devices: {', '.join(devices)}.")
    for event in facts["events"]:
        moved = f"; {event['moved']} samples went to others" if event["what"] == "lost" else ""
        notes.append(
            f"{', '.join(event['replicas'])} on {event['host']}, {event['at']}, "
            f"{event['elapsed_s']:.1f} s: {event['what']} ({event['reason']}){moved}."
        )
    sentences = {
        "moved": "samples were run again after their replica was lost",
        "doubled": "of the last samples were run by a second replica; the first answer counts",
        "recalled": "of those were taken back from the other one",
        "second": "answers came second and were dropped",
        "late": "answers of lost replicas came late and were dropped",
        "undescribed": "of the processes did not say what they are: lost as the run ended",
        "first_token_differs": "answers began with another token than was streamed first",
    }
    notes += [f"{counts[name]} {words}." for name, words in sentences.items() if counts.get(name)]
    return notes
