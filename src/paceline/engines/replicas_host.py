"""One process of replicas: engines that run there, and what they have made since last asked.

A plain class; `replicas_cluster` makes an actor of it. The head calls `start` once, `give` and
`news` all the time, each from a thread of its own. `news` waits until there is something to say
or for as long as it may, and never answers twice within the batch time: tokens leave in batches.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paceline
from paceline import engines
from paceline.engines import Completion, EngineContext, TextCodec
from paceline.engines.replicas_wire import Batch, Failure, News, PlaceState, pack_news
from paceline.errors import CheckpointError, InputError, PacelineError

__all__ = ["HostOrder", "ReplicaHost", "Trouble", "code_digest", "model_digest"]


@dataclass(frozen=True, kw_only=True, slots=True)
class HostOrder:
    """What a process is to run: the engine, a config for each replica, and the context's fields."""

    engine: str
    configs: tuple[Any, ...]
    first_replica: int
    model: str | None
    context: Mapping[str, Any]
    log_dir: str
    codec: Callable[[], TextCodec] | None
    environment: Mapping[str, str]
    batch_s: float
    report_s: float


@dataclass(frozen=True, slots=True)
class Trouble:
    """A PacelineError as it travels: kind, message, hint."""

    kind: str
    message: str
    hint: str | None


class ReplicaHost:
    """The engines of one process."""

    def __init__(self, order: HostOrder) -> None:
        self._order = order
        os.environ.update(order.environment)
        self._changed = threading.Condition()
        self._boxes = [_Outbox(place, self._changed) for place in range(len(order.configs))]
        self._engines: list[engines.Engine] = []
        self._stream(bool(order.context["streaming"]))
        self._said_s = 0.0
        self._status = "starting"

    def start(self) -> dict[str, Any] | Trouble:
        """Load the models. Returns facts of this process, or why it cannot be used."""
        order = self._order
        try:
            model = Path(order.model) if order.model is not None else None
            if model is not None and not str(model).startswith("random:") and not model.exists():
                raise CheckpointError(
                    f"{socket.gethostname()} has no model at {model}.",
                    hint="put it at the same path on every node, or on storage that they share",
                )
            for place, config in enumerate(order.configs):
                engine = engines.load(order.engine)(config, self._context(place, model))
                self._engines.append(engine)
                engine.start()
        except PacelineError as error:
            return Trouble(type(error).__name__, error.message, error.hint)
        return {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "can_cancel": isinstance(self._engines[0], engines.CancellingEngine),
            "version": paceline.__version__,
            "code": code_digest(),
            "model": model_digest(model),
        }

    def status(self) -> str:
        """What it is doing while it starts."""
        return self._status

    def give(self, batch: Batch) -> None:
        """More samples."""
        if batch.is_streaming != self._is_streaming:
            self._stream(batch.is_streaming)
        by_place: dict[int, list[engines.Request]] = {}
        for place, request in batch.requests():
            by_place.setdefault(place, []).append(request)
        for place, requests in by_place.items():
            self._boxes[place].open += len(requests)
            self._engines[place].submit(requests, self._boxes[place])

    def _stream(self, wanted: bool) -> None:
        """Whether first tokens are wanted; an engine is told where that differs from its start."""
        self._is_streaming = wanted
        for box in self._boxes:
            box.is_streaming = wanted
        is_as_started = wanted == bool(self._order.context["streaming"])
        for engine in self._engines:
            if isinstance(engine, engines.StreamingEngine):
                engine.set_streaming(None if is_as_started else wanted)

    def forget(self, numbers: Mapping[int, Sequence[int]]) -> None:
        """Samples that were answered elsewhere, by place."""
        for place, forgotten in numbers.items():
            engine = self._engines[place]
            if isinstance(engine, engines.CancellingEngine):
                engine.cancel(forgotten)

    def news(self, batch: Batch | None, forgotten: Mapping[int, Sequence[int]]) -> News:
        """Take samples, then wait for something to say, and say it."""
        if forgotten:
            self.forget(forgotten)
        if batch is not None:
            self.give(batch)
        with self._changed:
            self._changed.wait_for(
                lambda: any(box.has_news for box in self._boxes), self._order.report_s
            )
        pause_s = self._said_s + self._order.batch_s - time.monotonic()
        if pause_s > 0:
            time.sleep(pause_s)
        self._said_s = time.monotonic()
        states = [
            PlaceState(box.made, _state(engine))
            for box, engine in zip(self._boxes, self._engines, strict=True)
        ]
        with self._changed:
            taken = [box.take() for box in self._boxes]
        return pack_news(
            [(box.place, c) for box, (done, _, _) in self._taken(taken) for c in done],
            [(box.place, *first) for box, (_, firsts, _) in self._taken(taken) for first in firsts],
            [failure for _, _, failures in taken for failure in failures],
            states=states,
            cpu_s=time.process_time(),
        )

    def describe(self) -> list[dict[str, Any]]:
        """What each engine says of itself."""
        return [engine.describe() for engine in self._engines]

    def begin_counting(self) -> list[int]:
        """Have each engine count from now on; returns the tokens that each has made so far."""
        for engine in self._engines:
            if isinstance(engine, engines.CountingEngine):
                engine.begin_counting()
        return [box.made for box in self._boxes]

    def close(self) -> None:
        """End the engines: servers that they started end with them."""
        for engine in self._engines:
            engine.close()

    def _taken(self, taken: list[_Taken]) -> list[tuple[_Outbox, _Taken]]:
        return list(zip(self._boxes, taken, strict=True))

    def _context(self, place: int, model: Path | None) -> EngineContext:
        order = self._order
        name = f"replica-{order.first_replica + place}"
        base = Path(order.log_dir)
        # The head's run directory need not be there on another host.
        is_here = base.is_absolute() and base.is_dir()
        log_dir = base / name if is_here else Path(tempfile.mkdtemp(prefix=f"{name}-"))
        log_dir.mkdir(exist_ok=True)
        return EngineContext(
            model=model, log_dir=log_dir, report=self._report, codec=order.codec, **order.context
        )

    def _report(self, what: str, fraction: float | None) -> None:
        self._status = what if fraction is None else f"{what} ({fraction:.0%})"


_Taken = tuple[list[Completion], list[tuple[int, int]], list[Failure]]


class _Outbox:
    """A Sink that keeps what one replica makes until it is asked for. Shares its host's lock."""

    is_streaming = False

    def __init__(self, place: int, changed: threading.Condition) -> None:
        self.place = place
        self.open = 0
        self.made = 0
        self._changed = changed
        self._done: list[Completion] = []
        self._firsts: list[tuple[int, int]] = []
        self._failures: list[Failure] = []

    @property
    def has_news(self) -> bool:
        return bool(self._done or self._firsts or self._failures)

    def take(self) -> _Taken:
        """What there is; the lock is held."""
        taken = (self._done, self._firsts, self._failures)
        self._done, self._firsts, self._failures = [], [], []
        return taken

    def first_token(self, request_id: int, token_id: int) -> None:
        if self.is_streaming:
            with self._changed:
                self._firsts.append((request_id, token_id))
                self._changed.notify_all()

    def done(self, completion: Completion) -> None:
        self.done_all((completion,))

    def done_all(self, completions: Sequence[Completion]) -> None:
        with self._changed:
            self.open -= len(completions)
            self._done += completions
            self._changed.notify_all()

    def failed(self, request_id: int, error: PacelineError) -> None:
        is_input = isinstance(error, InputError)
        with self._changed:
            self.open -= 1
            self._failures.append(
                Failure(self.place, request_id, error.message, error.hint, is_input)
            )
            self._changed.notify_all()

    def progress(self, num_tokens: int) -> None:
        self.made += num_tokens


def code_digest() -> str:
    """SHA-256 of paceline's own source as this process has it, to tell hosts that differ."""
    root = Path(paceline.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def model_digest(model: Path | None) -> str:
    """Names and sizes of a checkpoint's files: quick, and tells another model or half a copy."""
    if model is None or not model.exists():
        return ""
    files = [model] if model.is_file() else sorted(p for p in model.rglob("*") if p.is_file())
    listed = "\n".join(f"{path.name} {path.stat().st_size}" for path in files)
    return hashlib.sha256(listed.encode()).hexdigest()[:16]


def _state(engine: engines.Engine) -> engines.EngineState:
    """How the engine is, where it can say so."""
    if not isinstance(engine, engines.ObservableEngine):
        return engines.EngineState()
    return dataclasses.replace(engine.state(), parts=())
