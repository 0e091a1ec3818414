"""A stand-in for Ray's cluster: real processes of replicas as objects here, on nodes that can die.

It does what Ray was seen to do. A node that dies stays on the list until Ray has noticed; calls of
its processes fail at once with a doubt, and what is started there is never ready, nor fails.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from paceline.engines.replicas_host import HostOrder, ReplicaHost
from paceline.engines.replicas_plan import Need, Node


class InDoubt(Exception):
    """Ray's ActorUnavailableError."""


class Died(Exception):
    """Ray's ActorDiedError."""


@dataclass(eq=False)
class Process:
    node: Node
    host: ReplicaHost
    has_died: bool = False


def node_of(name: str, *, cpus: int = 1, gpus: int = 0) -> Node:
    return Node(node_id=name, host=name, address=f"at {name}", cpus=cpus, gpus=gpus)


class StandInCluster:
    """Nodes that live, `dead` ones that Ray still lists, and those that it knows to be gone."""

    def __init__(self, *nodes: Node) -> None:
        self._listed = {node.node_id: node for node in nodes}
        self._dead: set[str] = set()
        self._pool = ThreadPoolExecutor(16)
        self._pending: list[tuple[Process, Callable[[Any], None]]] = []
        self.version = "stand-in"
        self.started: list[str] = []
        self.ended: list[str] = []
        self.is_slow: Callable[[Node], Any] = lambda _: None

    def die(self, name: str) -> None:
        """A node's processes are gone; Ray has not noticed."""
        self._dead.add(name)
        for process, then in [pair for pair in self._pending if pair[0].node.node_id == name]:
            process.has_died = True
            then(InDoubt(f"{name} does not answer"))

    def cut_off(self, name: str) -> None:
        """A node does not answer, and nothing is said about it."""
        self._dead.add(name)

    def notice(self, name: str) -> None:
        """Ray strikes a node off its list."""
        del self._listed[name]

    def come(self, node: Node) -> None:
        """A node joins, or joins again."""
        self._dead.discard(node.node_id)
        self._listed[node.node_id] = node

    def kill(self, name: str, error: Exception) -> None:
        """The processes of a node die, and Ray says so; the node lives."""
        for process, then in [pair for pair in self._pending if pair[0].node.node_id == name]:
            process.has_died = True
            then(error)

    def nodes(self) -> list[Node]:
        return list(self._listed.values())

    def launch(self, node: Node, need: Need, order: HostOrder) -> Process:
        del need
        self.started.append(node.node_id)
        return Process(node, ReplicaHost(order))

    def call(
        self, process: Process, method: str, *arguments: Any, then: Callable[[Any], None]
    ) -> None:
        pair = (process, then)
        self._pending.append(pair)
        if process.node.node_id not in self._dead and not process.has_died:
            self._pool.submit(self._do, pair, method, arguments)

    def _do(self, pair: tuple[Process, Callable[[Any], None]], method: str, words: Any) -> None:
        process, then = pair
        if method == "start":
            self.is_slow(process.node)
        result = getattr(process.host, method)(*words)
        if process.has_died or process.node.node_id in self._dead:
            return
        self._pending.remove(pair)
        then(result)

    def ask_all(self, processes: Sequence[Process], method: str, *, timeout_s: float) -> list[Any]:
        del timeout_s
        return [
            None
            if process.has_died or process.node.node_id in self._dead
            else getattr(process.host, method)()
            for process in processes
        ]

    def is_in_doubt(self, error: BaseException) -> bool:
        return isinstance(error, InDoubt)

    def close_all(self, processes: Sequence[Process]) -> None:
        for process in processes:
            if process.node.node_id not in self._dead and not process.has_died:
                process.host.close()

    def end(self, process: Process) -> None:
        process.has_died = True
        self.ended.append(process.node.node_id)

    def close(self) -> None:
        self._pool.shutdown(wait=False)
