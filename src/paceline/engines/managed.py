"""Vendor servers that paceline starts, and the endpoint engine that talks to them.

    engine.name = "managed", engine.managed.preset = "vllm"

One server for each GPU, or for each group of tensor_parallel x pipeline_parallel GPUs; all start
together, each sees its own GPUs only, and all end with the run. The tests of one run share them
(`managed_host`); an engine that is of no run starts its own. `server_presets` has the kinds,
`managed_plan` their command lines, `servers` the processes, `endpoint` the requests.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paceline.engines import EngineContext, EngineState, Request, Sink
from paceline.engines.endpoint import EndpointConfig, EndpointEngine
from paceline.engines.managed_host import KeptServers, ManagedHost
from paceline.engines.managed_settings import ManagedConfig
from paceline.errors import EngineError

__all__ = ["ManagedConfig", "ManagedEngine"]


class ManagedEngine:
    """Servers, the run's or its own, and an EndpointEngine that live together."""

    def __init__(self, config: ManagedConfig, context: EngineContext) -> None:
        self._config = config
        self._context = context
        self._host: ManagedHost | None = None
        self._kept: KeptServers | None = None
        self._endpoint: EndpointEngine | None = None

    def start(self) -> None:
        try:
            endpoint = EndpointEngine(self._find_servers(), self._context)
            self._endpoint = endpoint
            endpoint.start()
        except BaseException:
            self.close()
            raise

    def _find_servers(self) -> EndpointConfig:
        if self._context.kept is not None:
            self._kept = KeptServers(self._context.kept, on_lost=self._give_up)
            return self._kept.endpoint
        self._host = ManagedHost(cwd=Path.cwd(), on_lost=self._give_up)
        return self._host.start(self._config, self._context)

    def set_streaming(self, wanted: bool | None) -> None:
        assert self._endpoint is not None
        self._endpoint.set_streaming(wanted)

    def begin_counting(self) -> None:
        assert self._endpoint is not None
        self._endpoint.begin_counting()

    def submit(self, requests: Sequence[Request], sink: Sink) -> None:
        assert self._endpoint is not None
        self._endpoint.submit(requests, sink)

    def drain(self) -> None:
        assert self._endpoint is not None
        self._endpoint.drain()

    def _give_up(self, account: str) -> None:
        endpoint = self._endpoint
        if endpoint is not None:
            endpoint.give_up(
                EngineError(
                    f"No server is left.\n{account}",
                    hint="mend what ended them, then paceline run --resume DIR; "
                    "engine.managed.restarts sets how often each is started again",
                )
            )

    def close(self) -> None:
        with contextlib.ExitStack() as stack:
            for one in (self._host, self._kept, self._endpoint):
                if one is not None:
                    stack.callback(one.close)
        self._endpoint = None

    def state(self) -> EngineState:
        return EngineState() if self._endpoint is None else self._endpoint.state()

    def describe(self) -> dict[str, Any]:
        """What the servers are; of those that a run keeps, its host knows the rest."""
        assert self._endpoint is not None
        facts = self._endpoint.describe()
        return facts if self._host is None else self._host.complete(facts)
