"""The only door to Ray: connect, see the nodes, run a process of replicas on one, end it.

Ray is imported when a cluster is opened. Its reports of usage are switched off, its dashboard is
not started, and its logs stay in its own files.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paceline.engines.replicas_host import HostOrder, ReplicaHost
from paceline.engines.replicas_plan import Need, Node
from paceline.errors import EngineError, MissingExtraError

__all__ = ["Cluster", "Process", "short_error"]

log = logging.getLogger(__name__)

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
# Ray's smallest: messages below 100 KB do not pass through it.
_OBJECT_STORE_BYTES = 80_000_000
_CALLS_AT_ONCE = 4
_KNOCK_S = 10.0
_CLOSE_WITHIN_S = 15.0
_ASK_NODES_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Process:
    """An actor and the placement group that holds its room."""

    actor: Any
    group: Any


class Cluster:
    """A connection to a Ray cluster, from the host that is its head or one of its nodes."""

    def __init__(
        self, address: str, *, environment: Mapping[str, str], own_cpus: int | None = None
    ) -> None:
        """Connect. `own_cpus` are the CPUs of a Ray that has to be started. Raises EngineError."""
        os.environ.update({name: os.environ.get(name, value) for name, value in _QUIET.items()})
        try:
            import ray
        except ImportError as error:
            raise MissingExtraError(
                f"The replicas engine needs Ray, which cannot be imported: {error}.",
                hint="pip install 'paceline[ray]' -c constraints.txt",
            ) from error
        self._ray = ray
        asked = address or os.environ.get("RAY_ADDRESS", "")
        path = {"PYTHONPATH": os.environ["PYTHONPATH"]} if "PYTHONPATH" in os.environ else {}
        own = {
            "num_cpus": own_cpus,
            "object_store_memory": _OBJECT_STORE_BYTES,
            "include_dashboard": False,
        }
        try:
            _knock(asked)
            ray.init(
                address=asked or "local",
                log_to_driver=False,
                logging_level=logging.WARNING,
                runtime_env={"env_vars": {**path, **environment}},
                **({} if asked else own),
            )
        except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.RayError) as e:
            raise EngineError(
                f"There is no Ray to reach at {asked or 'this host'}: {short_error(e)}",
                hint="ray status --address HOST:PORT; this host has to be a node of the cluster: "
                "ray start --head, or ray start --address=HEAD:PORT",
            ) from e
        self.is_own = not asked
        self.address = str(ray.get_runtime_context().gcs_address)
        self.version = importlib.metadata.version("ray")

    def nodes(self) -> list[Node]:
        """The nodes that are alive, this one first."""
        here = self._ray.get_runtime_context().get_node_id()
        found = [
            Node(
                node_id=node["NodeID"],
                host=node["NodeManagerHostname"],
                address=node["NodeManagerAddress"],
                cpus=int(node["Resources"].get("CPU", 0)),
                gpus=int(node["Resources"].get("GPU", 0)),
            )
            for node in self._ray.nodes()
            if node["Alive"]
        ]
        return sorted(found, key=lambda node: (node.node_id != here, node.address, node.node_id))

    def launch(self, node: Node, need: Need, order: HostOrder) -> Process:
        """Have a process of replicas started on a node; returns at once."""
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        bundle = {"CPU": need.cpus} | ({"GPU": need.gpus} if need.gpus else {})
        group = placement_group(
            [bundle],
            strategy="STRICT_PACK",
            bundle_label_selector=[{"ray.io/node-id": node.node_id}],
        )
        actor = (
            self._ray.remote(ReplicaHost)
            .options(
                num_cpus=need.cpus,
                num_gpus=need.gpus,
                max_concurrency=_CALLS_AT_ONCE,
                max_restarts=0,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, 0),
            )
            .remote(order)
        )
        return Process(actor, group)

    def call(
        self, process: Process, method: str, *arguments: Any, then: Callable[[Any], None]
    ) -> None:
        """Call a process's method; `then` gets its result or the exception, on another thread."""
        future = getattr(process.actor, method).remote(*arguments).future()
        future.add_done_callback(lambda done: then(done.exception() or done.result()))

    def is_in_doubt(self, error: BaseException) -> bool:
        """Whether a call failed for want of an answer: Ray does not know yet what is gone."""
        return isinstance(error, self._ray.exceptions.ActorUnavailableError)

    def ask(self, process: Process, method: str, *, timeout_s: float) -> Any:
        """Call a process's method and wait. Raises EngineError."""
        try:
            return self._ray.get(getattr(process.actor, method).remote(), timeout=timeout_s)
        except self._ray.exceptions.RayError as error:
            raise EngineError(f"A replica did not answer: {short_error(error)}") from error

    def close_all(self, processes: Sequence[Process]) -> None:
        """Have processes end their engines, and the servers that these started, in time."""
        calls = [process.actor.close.remote() for process in processes]
        if calls:
            self._ray.wait(calls, num_returns=len(calls), timeout=_CLOSE_WITHIN_S)

    def end(self, process: Process) -> None:
        """Kill a process and give its room back; one that is gone already is none."""
        from ray.util.placement_group import remove_placement_group

        with contextlib.suppress(self._ray.exceptions.RayError, ValueError):
            self._ray.kill(process.actor)
        with contextlib.suppress(self._ray.exceptions.RayError, ValueError):
            remove_placement_group(process.group)

    def on_every_node(
        self, function: Callable[..., Any], *arguments: Any
    ) -> list[tuple[Node, Any]]:
        """Call a module's function once on each node. Raises EngineError if one is silent."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        nodes = self.nodes()
        calls = [
            self._ray.remote(function)
            .options(
                num_cpus=0,
                max_retries=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node.node_id, soft=False),
            )
            .remote(*arguments)
            for node in nodes
        ]
        results = []
        for node, call in zip(nodes, calls, strict=True):
            try:
                results.append((node, self._ray.get(call, timeout=_ASK_NODES_TIMEOUT_S)))
            except self._ray.exceptions.RayError as error:
                raise EngineError(
                    f"{node.label} did not answer: {short_error(error)}",
                    hint="ray status, and paceline has to be installed there as it is here",
                ) from error
        return results

    def close(self) -> None:
        """Leave the cluster; a Ray that was started for this ends."""
        self._ray.shutdown()


def _knock(address: str) -> None:
    """Raise OSError where nobody listens: Ray itself would try for minutes, without a word."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_S).close()


def short_error(error: BaseException) -> str:
    """What happened, in one line: Ray's messages are pages."""
    cause = getattr(error, "cause", None)
    said = cause if isinstance(cause, BaseException) else error
    lines: Sequence[str] = [line.strip() for line in str(said).splitlines() if line.strip()]
    reason = next((line for line in reversed(lines) if line.startswith("The actor")), None)
    text = reason or (lines[0] if lines else "no word")
    return f"{type(said).__name__}: {text.partition(' Some common causes')[0]}"
