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
_FRAME_HEAD_LEN, _HTTP2_SETTINGS = 9, b"\x04"
_HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0" + _HTTP2_SETTINGS + b"\0" * 5
_START_RAY = (
    "this host has to be a node of the cluster: ray start --head --port=6379 on the first one, ray "
    "start --address=HEAD:6379 on others; ray status shows them"
)
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
                f"Many nodes need Ray, which cannot be imported here: {error}.",
                hint="pip install 'paceline[ray]' -c constraints.txt",
            ) from error
        self._ray = ray
        asked = address or os.environ.get("RAY_ADDRESS", "")
        found = _find(asked)
        where = "this host" if not asked else found if asked == "auto" else asked
        path = {"PYTHONPATH": os.environ["PYTHONPATH"]} if "PYTHONPATH" in os.environ else {}
        own = {
            "num_cpus": own_cpus,
            "object_store_memory": _OBJECT_STORE_BYTES,
            "include_dashboard": False,
        }
        try:
            if asked:
                _knock(found)
                self._ask_entry(asked, found)
            ray.init(
                address=asked or "local",
                log_to_driver=False,
                logging_level=logging.WARNING,
                runtime_env={"env_vars": {**path, **environment}},
                **({} if asked else own),
            )
        except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.RayError) as e:
            raise EngineError(
                f"There is no Ray to reach at {where}: {short_error(e)}",
                hint=_START_RAY,
            ) from e
        self.is_own = not asked
        self.address = str(ray.get_runtime_context().gcs_address)
        self.version = importlib.metadata.version("ray")

    def _ask_entry(self, asked: str, found: str) -> None:
        """Raise EngineError where the cluster asks for a token that this process has not.

        A cluster that Ray finds by itself gets the token that Ray finds by itself.
        """
        from ray._raylet import GcsClient  # type: ignore[attr-defined]

        if asked == "auto" and "RAY_AUTH_MODE" not in os.environ:
            return
        try:
            GcsClient(address=found)
        except self._ray.exceptions.AuthenticationError as error:
            raise EngineError(
                f"Ray at {found} asks for a token, and takes none of this process.",
                hint="export RAY_AUTH_MODE=token, with the head's token in ~/.ray/auth_token "
                "(ray get-auth-token prints it there)",
            ) from error

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

    def ask_all(self, processes: Sequence[Process], method: str, *, timeout_s: float) -> list[Any]:
        """Call a method of every process; None for each that has not answered in that time."""
        calls = [getattr(process.actor, method).remote() for process in processes]
        ready, _ = self._ray.wait(calls, num_returns=len(calls), timeout=timeout_s)
        answers: list[Any] = []
        for call in calls:
            answers.append(None)
            if call in ready:
                with contextlib.suppress(self._ray.exceptions.RayError):
                    answers[-1] = self._ray.get(call)
        return answers

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
        """Call a module's function once on each node. Raises EngineError naming those that do not
        answer."""
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
        _, late = self._ray.wait(calls, num_returns=len(calls), timeout=_ASK_NODES_TIMEOUT_S)
        results, silent = [], []
        for node, call in zip(nodes, calls, strict=True):
            if call in late:
                silent.append(f"{node.label} said nothing for {_ASK_NODES_TIMEOUT_S:g} s")
                continue
            try:
                results.append((node, self._ray.get(call)))
            except self._ray.exceptions.RayError as error:
                silent.append(f"{node.label} did not answer: {short_error(error)}")
        if silent:
            raise EngineError(
                f"{'; '.join(silent)}.",
                hint="ray status; a node that is gone leaves its list within two minutes, and on "
                "the others paceline has to be installed as it is here",
            )
        return results

    def close(self) -> None:
        """Leave the cluster; a Ray that was started for this ends."""
        self._ray.shutdown()


def _find(asked: str) -> str:
    """HOST:PORT of a cluster's head; "local" where none is asked for. Raises EngineError."""
    from ray._private import services

    if not asked:
        return "local"
    try:
        return str(services.canonicalize_bootstrap_address(asked))
    except ConnectionError as error:
        raise EngineError(
            "No Ray runs on this host, and RAY_ADDRESS names none elsewhere.", hint=_START_RAY
        ) from error
    except ValueError as error:
        raise EngineError(
            f"'{asked}' is no address of a Ray cluster: {error}.", hint="HOST:PORT, or auto"
        ) from error


def _knock(address: str) -> None:
    """Raise OSError where no Ray answers: Ray itself would try for minutes, without a word.

    Ray speaks HTTP/2, in which both sides begin with their settings.
    """
    host, _, port = address.rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_S) as link:
        if os.environ.get("RAY_USE_TLS", "0") == "0":
            link.sendall(_HTTP2_HELLO)
            if link.recv(_FRAME_HEAD_LEN, socket.MSG_WAITALL)[3:4] != _HTTP2_SETTINGS:
                raise ConnectionError("what listens there is no Ray.")


def short_error(error: BaseException) -> str:
    """What happened, in one line: Ray's messages are pages."""
    cause = getattr(error, "cause", None)
    said = cause if isinstance(cause, BaseException) else error
    lines: Sequence[str] = [line.strip() for line in str(said).splitlines() if line.strip()]
    reason = next((line for line in reversed(lines) if line.startswith("The actor")), None)
    text = reason or (lines[0] if lines else "no word")
    return f"{type(said).__name__}: {text.partition(' Some common causes')[0]}"
