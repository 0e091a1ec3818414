"""Where replicas go: nodes with their room, and a spread over them. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from paceline.errors import EngineError

__all__ = ["Need", "Node", "count_places", "free_node", "plan_places"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """A node of the cluster. `label` is how people know it: host name and address."""

    node_id: str
    host: str
    address: str
    cpus: int
    gpus: int

    @property
    def label(self) -> str:
        return f"{self.host} ({self.address})"


@dataclass(frozen=True, kw_only=True, slots=True)
class Need:
    """What one process of replicas takes of its node. `is_alone`: no second one is there."""

    cpus: int
    gpus: int
    is_alone: bool = False

    def fits(self, node: Node, num_there: int) -> bool:
        """Whether one more fits a node that has `num_there`."""
        num = num_there + 1
        if self.is_alone and num_there:
            return False
        return num * self.cpus <= node.cpus and num * self.gpus <= node.gpus


def count_places(nodes: Sequence[Node], need: Need) -> int:
    """How many processes the cluster's GPUs hold; one a node where none is used."""
    if not need.gpus:
        return sum(1 for node in nodes if need.fits(node, 0))
    return sum(min(node.gpus // need.gpus, node.cpus // need.cpus) for node in nodes)


def plan_places(nodes: Sequence[Node], need: Need, count: int) -> list[Node]:
    """A node for each process, the emptiest one each time. Raises EngineError."""
    used = {node.node_id: 0 for node in nodes}
    places: list[Node] = []
    for _ in range(count):
        node = free_node(nodes, need, used)
        if node is None:
            has = "; ".join(f"{n.label}: {n.cpus} CPUs, {n.gpus} GPUs" for n in nodes) or "no node"
            raise EngineError(
                f"The cluster has room for {len(places)} of {count} processes of replicas, "
                f"{need.cpus} CPUs and {need.gpus} GPUs each. It has {has}.",
                hint="ray start --address=HEAD:PORT on more nodes, or fewer "
                "engine.replicas.num_replicas (ray status shows what is taken)",
            )
        used[node.node_id] += 1
        places.append(node)
    return places


def free_node(nodes: Sequence[Node], need: Need, used: Mapping[str, int]) -> Node | None:
    """The node with the fewest processes for its size that has room; None when none has."""
    free = [node for node in nodes if need.fits(node, used.get(node.node_id, 0))]
    if not free:
        return None

    def fill(node: Node) -> float:
        num = used.get(node.node_id, 0)
        return num * need.gpus / node.gpus if need.gpus else num * need.cpus / max(1, node.cpus)

    return min(free, key=fill)
