"""The server's life: take the port, start the engine, answer, end in order.

The port is taken before the engine loads, so that a port in use is known at once, and listens
only when the engine is ready: until then a connection is refused, as by a server that is not
there. SIGINT or SIGTERM ends it: no connection is accepted any more, answers under way have
`grace_s` to end, then they are dropped; a second signal drops them at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from paceline import engines
from paceline.config import EngineChoice
from paceline.errors import EngineError, EnvironmentProblem, InputError, InterruptedRun
from paceline.mlperf.tokenizer import load_tokenizer
from paceline.serve.app import make_app
from paceline.serve.completions import Served
from paceline.serve.dispatch import Dispatcher
from paceline.serve.metrics import Metrics

__all__ = ["ServeOptions", "serve"]

log = logging.getLogger(__name__)

_CLOSE_WITHIN_S = 15.0
_POLL_S = 0.1

Report = Callable[[str, float | None], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeOptions:
    """Where to listen and what to allow. `model_name` None: the name of the model's file."""

    host: str = "127.0.0.1"
    port: int = 8000
    model_name: str | None = None
    max_in_flight: int = 1024
    max_queue: int = 4096
    max_body_bytes: int = 64 << 20
    client_timeout_s: float = 60.0
    grace_s: int = 30
    api_key: str | None = None

    def __post_init__(self) -> None:
        if self.max_in_flight < 1 or self.max_queue < 0 or self.max_body_bytes < 1024:
            raise InputError(
                "serve: a limit is too small.",
                hint="--max-in-flight is at least 1, --max-queue 0, --max-body-mib 1",
            )


def serve(
    choice: EngineChoice,
    options: ServeOptions,
    *,
    report: Report,
    on_ready: Callable[[str, Served], None],
) -> dict[str, Any]:
    """Serve until a signal; returns the engine's last description.

    `report` gets what the engine does while it starts; `on_ready` the address, once it listens.
    Raises PacelineError.
    """
    with _listening_socket(options) as listener, _signals() as stop:
        engine = _make_engine(choice, report)
        try:
            engine.start()
            metrics = Metrics()
            dispatcher = Dispatcher(
                engine, metrics, max_in_flight=options.max_in_flight, max_queue=options.max_queue
            )
            served = _served(choice, options, engine.describe())
            app = make_app(served, dispatcher, metrics)
            server = uvicorn.Server(
                uvicorn.Config(
                    app,
                    lifespan="off",
                    log_config=None,
                    access_log=False,
                    server_header=False,
                    timeout_keep_alive=75,
                    timeout_graceful_shutdown=options.grace_s,
                )
            )
            host, port = listener.getsockname()[:2]
            _run(server, listener, stop=stop, ready=lambda: on_ready(_url(host, port), served))
            facts = engine.describe()
            dispatcher.leave_all()
        finally:
            _close(engine)
    return facts


@contextlib.contextmanager
def _listening_socket(options: ServeOptions) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((options.host, options.port))
        except (OSError, OverflowError) as error:
            raise EnvironmentProblem(
                f"Cannot listen on {options.host} port {options.port}: {error}.",
                hint="--port N for another port (0: any free one), --host for another address",
            ) from error
        yield listener


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Stop:
    """How often a signal asked to stop; until `is_serving` it ends the start at once."""

    def __init__(self) -> None:
        self.count = 0
        self.is_serving = False

    def ask(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.count += 1
        if not self.is_serving:
            raise InterruptedRun(f"Stopped by {signal.Signals(number).name} before it served.")


@contextlib.contextmanager
def _signals() -> Iterator[_Stop]:
    stop = _Stop()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, stop.ask)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run(
    server: uvicorn.Server, listener: socket.socket, *, stop: _Stop, ready: Callable[[], None]
) -> None:
    """Serve from a thread, as signals are the main thread's; until one came or it failed."""
    failures: list[BaseException] = []

    def work() -> None:
        try:
            asyncio.run(server.serve(sockets=[listener]))
        except (Exception, SystemExit) as error:
            failures.append(error)

    thread = threading.Thread(target=work, name="serve", daemon=True)
    stop.is_serving = True
    thread.start()
    is_told = False
    while thread.is_alive():
        thread.join(_POLL_S)
        if server.started and not is_told:
            is_told = True
            ready()
        server.should_exit = server.should_exit or stop.count > 0
        server.force_exit = server.force_exit or stop.count > 1
    if failures:
        raise EnvironmentProblem(f"The server ended: {failures[0]!r}.") from failures[0]


def _make_engine(choice: EngineChoice, report: Report) -> engines.Engine:
    context = engines.EngineContext(
        model=choice.model_path,
        eos_token_id=choice.benchmark.eos_token_id,
        vocabulary_size=choice.benchmark.vocabulary_size,
        max_new_tokens=choice.benchmark.max_new_tokens,
        log_dir=Path(tempfile.gettempdir()) / f"paceline-serve-{os.getpid()}",
        report=report,
        streaming=True,
    )
    return engines.load(choice.engine)(choice.engine_config, context)


def _served(choice: EngineChoice, options: ServeOptions, facts: dict[str, Any]) -> Served:
    benchmark, path = choice.benchmark, choice.tokenizer_path
    name = options.model_name
    if name is None:
        model = choice.model_path
        name = choice.engine if model is None else model.stem if model.is_file() else model.name
    # Random weights and a simulated engine have no tokenizer; ids work all the same.
    has_tokenizer = path is not None and path.exists()
    return Served(
        model=name,
        engine=choice.engine,
        is_simulated=bool(facts.get("simulated", False)),
        tokenizer=load_tokenizer(path) if path is not None and has_tokenizer else None,
        vocabulary_size=facts.get("vocabulary_size", benchmark.vocabulary_size),
        max_model_len=facts.get(
            "max_context_len", benchmark.prompt_limit + benchmark.max_new_tokens
        ),
        max_body_bytes=options.max_body_bytes,
        client_timeout_s=options.client_timeout_s,
        api_key=options.api_key,
    )


def _close(engine: engines.Engine) -> None:
    """Close the engine, but not for ever: one that hangs must not keep the server from ending."""
    thread = threading.Thread(target=engine.close, name="close", daemon=True)
    thread.start()
    thread.join(_CLOSE_WITHIN_S)
    if thread.is_alive():
        raise EngineError(f"The engine did not close within {_CLOSE_WITHIN_S:.0f} s.")
