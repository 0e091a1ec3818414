"""Any OpenAI-compatible server as the engine, or many of them at once.

    endpoint             the Engine: one event loop in a thread of its own
    endpoint_settings    its settings
    endpoint_client      HTTP; the only importer of aiohttp
    endpoint_dialect     what each kind of server is asked, and where its token ids are
    endpoint_server      one server: a request in, a Completion out
    endpoint_answer      the contract that an answer must hold
    endpoint_dispatch    which server answers which request; retries
    endpoint_state       requests and servers while they are under way
    endpoint_metrics     what servers say of their queues and caches meanwhile
    endpoint_preflight   what is checked before the clock starts
    endpoint_notes       what a reader of the verdict should know

Prompts are token ids, decoding is greedy, and nothing is lost on the way: a request that failed is
sent again a stated number of times, each try is counted, and one that fails for good is named.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from paceline.engines import EngineContext, EngineState, Request, Sink, TextCodec
from paceline.engines.endpoint_notes import notes_of
from paceline.engines.endpoint_settings import EndpointConfig
from paceline.errors import EngineError, MissingExtraError

if TYPE_CHECKING:
    from paceline.engines.endpoint_dispatch import Dispatcher
    from paceline.engines.endpoint_metrics import MetricsWatch
    from paceline.engines.endpoint_server import RemoteServer

__all__ = ["EndpointConfig", "EndpointEngine"]

log = logging.getLogger(__name__)

_Result = TypeVar("_Result")
# One is answered, one waits at the server, so that it never waits for us.
_NEXT_OF_SERIAL = 2


class EndpointEngine:
    """Talks to the servers from one event loop; see the module docstring for its parts."""

    def __init__(self, config: EndpointConfig, context: EngineContext) -> None:
        self._config = config
        self._context = context
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run_loop, name="endpoint", daemon=True)
        self._idle = threading.Condition()
        self._pending = 0
        self._counts: Counter[str] = Counter()
        self._session: Any = None
        self._codec: TextCodec | None = None
        self._servers: list[RemoteServer] = []
        self._checks: list[dict[str, Any]] = []
        self._dispatcher: Dispatcher | None = None
        self._states: list[Any] = []
        self._watches: list[MetricsWatch] = []
        self._watching: list[asyncio.Task[None]] = []
        self._began: tuple[float, float] | None = None
        self._ended: tuple[float, float] | None = None

    @property
    def _streaming(self) -> bool:
        choice = self._config.stream
        return self._context.streaming if choice == "auto" else choice == "true"

    def start(self) -> None:
        missing = [name for name in ("aiohttp", "orjson") if importlib.util.find_spec(name) is None]
        if missing:
            raise MissingExtraError(
                f"The endpoint engine needs {' and '.join(missing)}, which is not installed.",
                hint="pip install 'paceline[endpoint]' -c constraints.txt",
            )
        if self._context.codec is not None:
            self._codec = _LazyCodec(self._context.codec)
        self._loop = asyncio.new_event_loop()
        self._thread.start()
        self._await(self._start())
        for server in self._servers:
            if not server.dialect.is_exact:
                log.warning("%s gives text only: token ids are not exact", server.client.name)

    def set_streaming(self, wanted: bool | None) -> None:
        is_free = wanted is not None and self._config.stream == "auto"
        for server in self._servers:
            server.streaming = bool(wanted) if is_free else self._streaming

    def submit(self, requests: Sequence[Request], sink: Sink) -> None:
        with self._idle:
            self._pending += len(requests)
            if self._began is None:
                self._began = self._clocks()
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._add, requests, sink)

    def drain(self) -> None:
        with self._idle:
            self._idle.wait_for(lambda: self._pending == 0)

    def close(self) -> None:
        if self._loop is None or not self._thread.is_alive():
            return
        self._await(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def begin_counting(self) -> None:
        self._await(self._begin_counting())

    def describe(self) -> dict[str, Any]:
        identities = [server.identity for server in self._servers]
        states = [state.facts() for state in self._states]
        rows = zip(states, self._servers, self._watches, strict=True)
        for state, server, watch in rows:
            state |= {
                "metrics": watch.facts(),
                "kind": server.identity.kind,
                "model": server.identity.model,
                "version": server.identity.version,
                "dialect": server.dialect.name,
            }
        retries = dict(self._dispatcher.retries) if self._dispatcher is not None else {}
        client = self._client_facts(sum(state["answered"] for state in states))
        facts = {
            "device": "remote",
            "model": ", ".join(dict.fromkeys(identity.model for identity in identities)),
            "dtype": self._config.dtype,
            "simulated": any(identity.simulated for identity in identities),
            "exact_token_ids": all(server.dialect.is_exact for server in self._servers),
            "streaming": self._streaming,
            "verify_tls": self._config.verify_tls,
            "servers": states,
            "in_flight": sum(state["concurrency"] for state in states),
            "retries": retries,
            "counts": dict(self._counts),
            "preflight": self._checks,
            "client": client,
        }
        return facts | {"notes": notes_of(facts)}

    def give_up(self, error: EngineError) -> None:
        """Fail what is unanswered by this error; whoever runs the servers knows they are gone."""
        loop, dispatcher = self._loop, self._dispatcher
        if loop is not None and dispatcher is not None and not loop.is_closed():
            loop.call_soon_threadsafe(dispatcher.give_up, error)

    def state(self) -> EngineState:
        """What is in flight and waits here, and what the servers say of themselves."""
        if self._dispatcher is None:
            return EngineState()
        from paceline.engines.endpoint_metrics import with_gauges

        return with_gauges(self._dispatcher.state(), [watch.now() for watch in self._watches])

    def server_names(self) -> list[str]:
        """What each server says it is, asked now. Raises EngineError when one does not answer."""
        return self._await(self._ask_names())

    def _run_loop(self) -> None:
        assert self._loop is not None
        self._loop.run_forever()

    def _await(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _start(self) -> None:
        from paceline.engines.endpoint_client import open_connection

        self._session, secret = open_connection(self._config)
        total = len(self._config.urls)
        self._context.report(f"asking {total} server{'s' if total > 1 else ''}", None)
        found = await asyncio.gather(
            *(self._meet(url, secret) for url in self._config.urls), return_exceptions=True
        )
        for result in found:
            if isinstance(result, BaseException):
                raise result
        self._servers = [result for result in found if not isinstance(result, BaseException)]
        self._report_failed_checks()
        self._make_dispatcher()

    async def _meet(self, url: str, secret: Any) -> RemoteServer:
        """Identify one server, choose its dialect and check it."""
        from paceline.engines import endpoint_preflight
        from paceline.engines.endpoint_client import Client
        from paceline.engines.endpoint_server import RemoteServer

        config = self._config
        client = Client(self._session, url, secret)
        identity, facts = await endpoint_preflight.identify(
            client, model=config.model, server=config.server, timeout_s=config.start_timeout_s
        )
        server = RemoteServer(client, identity, self._context)
        dialect, checks = await endpoint_preflight.examine(
            server, self._context, facts=facts, codec=self._codec
        )
        server.settle(dialect, self._codec, counts=self._counts, streaming=self._streaming)
        self._checks += [check.as_json() for check in checks]
        return server

    async def _begin_counting(self) -> None:
        assert self._dispatcher is not None
        self._dispatcher.begin_counting()
        self._counts.clear()
        self._began = self._ended = None

    async def _ask_names(self) -> list[str]:
        from paceline.engines import endpoint_preflight

        config = self._config
        found = await asyncio.gather(
            *(
                endpoint_preflight.identify(
                    server.client,
                    model=config.model,
                    server=config.server,
                    timeout_s=config.start_timeout_s,
                )
                for server in self._servers
            )
        )
        return [
            f"{server.client.name} ({' '.join(filter(None, (identity.kind, identity.version)))})"
            for server, (identity, _) in zip(self._servers, found, strict=True)
        ]

    def _report_failed_checks(self) -> None:
        failed = [check for check in self._checks if check["passed"] is False]
        for check in failed:
            log.warning("preflight: %(server)s: %(name)s: %(detail)s", check)
        blocking = [check for check in failed if check["is_blocking"]]
        if blocking and self._config.preflight == "strict":
            shown = "; ".join(f"{c['server']}: {c['name']}: {c['detail']}" for c in blocking)
            hint = next((c["hint"] for c in blocking if c["hint"]), None)
            raise EngineError(f"The preflight failed. {shown}.", hint=hint)

    def _make_dispatcher(self) -> None:
        from paceline.engines.endpoint_dispatch import Dispatcher
        from paceline.engines.endpoint_metrics import MetricsWatch
        from paceline.engines.endpoint_state import Policy, Server

        config, loop = self._config, asyncio.get_running_loop()
        self._watches = [MetricsWatch(server.client) for server in self._servers]
        self._watching = [loop.create_task(watch.run()) for watch in self._watches]
        self._states = [
            Server(
                name=server.client.name,
                limit=self._limit_of(server),
                ceiling=self._limit_of(server),
                ask=server.ask,
                is_back=server.is_back,
            )
            for server in self._servers
        ]
        policy = Policy(
            retries=config.retries,
            backoff_s=config.backoff_s,
            dead_timeout_s=config.dead_timeout_s,
        )
        self._dispatcher = Dispatcher(self._states, policy, answered=self._count_answered)

    def _limit_of(self, server: RemoteServer) -> int:
        """Requests in flight: what is asked for, but of a serial server only what is next."""
        if server.identity.rules.is_serial:
            return min(self._config.concurrency, 1 if self._streaming else _NEXT_OF_SERIAL)
        return self._config.concurrency

    def _add(self, requests: Sequence[Request], sink: Sink) -> None:
        from paceline.engines.endpoint_state import Job

        assert self._dispatcher is not None
        self._dispatcher.add([Job(request, sink) for request in requests])

    def _count_answered(self, count: int) -> None:
        with self._idle:
            self._pending -= count
            if self._pending == 0:
                self._ended = self._clocks()
                self._idle.notify_all()

    async def _stop(self) -> None:
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        if self._dispatcher is not None:
            await self._dispatcher.close()
        if self._session is not None:
            await self._session.close()

    def _clocks(self) -> tuple[float, float]:
        """Wall time, and the CPU time of the event loop's thread, in seconds."""
        ident = self._thread.ident
        assert ident is not None
        return time.monotonic(), time.clock_gettime(time.pthread_getcpuclockid(ident))

    def _client_facts(self, answered: int) -> dict[str, Any]:
        """How busy this side was: what it could have done, had the servers been free."""
        if self._began is None or answered == 0 or not self._thread.is_alive():
            return {}
        wall_s, cpu_s = (
            end - start
            for end, start in zip(self._ended or self._clocks(), self._began, strict=True)
        )
        if wall_s <= 0 or cpu_s <= 0:
            return {}
        return {
            "busy_fraction": round(cpu_s / wall_s, 4),
            "samples_per_second": round(answered / wall_s, 2),
            "ceiling_samples_per_second": round(answered / cpu_s, 1),
            "num_cores": os.cpu_count(),
        }


class _LazyCodec:
    """The run's tokenizer, read when a server turns out to need it: most do not."""

    def __init__(self, load: Callable[[], TextCodec]) -> None:
        self._load = load
        self._loaded: TextCodec | None = None

    def ids_of(self, text: str) -> list[int]:
        return self._get().ids_of(text)

    def text_of(self, token_ids: Sequence[int]) -> str:
        return self._get().text_of(token_ids)

    def _get(self) -> TextCodec:
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded
