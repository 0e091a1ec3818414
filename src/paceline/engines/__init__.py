"""Engines turn Requests into Completions; this is the seam they share.

An engine knows token ids, limits and nothing of the benchmark: no dataset, no LoadGen, no
accuracy. It pushes what it makes into a Sink, because a latency-bound scenario wants the first
token the moment it exists.

    engine = load("reference")(config, context)     imports only that engine's module
    engine.start()                                  load the model, warm up; may take minutes
    engine.submit(requests, sink)                   returns at once; may be called again
    engine.drain()                                  block until all that was submitted is answered
    engine.close()                                  give everything back; safe to call twice

Every submitted request is answered exactly once, by `done`, `done_all` or `failed`, from any
thread. An engine that cannot go on raises EngineError from `drain`.

Five things an engine may do besides: hand every token to a StreamSink as it exists, forget
requests that nobody waits for (CancellingEngine), change whether a server is asked to stream
(StreamingEngine), count from a test's start (CountingEngine), and say how it is doing
(ObservableEngine).

The class of each engine and of its settings are named in ENGINES as dotted paths, so that naming
an engine costs no import of torch, ray or aiohttp.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from paceline.errors import InputError, PacelineError

__all__ = [
    "ENGINES",
    "HOSTS",
    "NETWORK_ENGINES",
    "CancellingEngine",
    "Completion",
    "CountingEngine",
    "Engine",
    "EngineContext",
    "EngineHost",
    "EngineState",
    "NetworkEngine",
    "ObservableEngine",
    "Part",
    "Request",
    "Sink",
    "StreamSink",
    "StreamingEngine",
    "TextCodec",
    "TokenIds",
    "config_class",
    "kept_path",
    "load",
    "load_host",
]

TokenIds = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to complete: `token_ids` (prompt_len,) int32, and the limits of its output.

    Decoding is greedy. EOS may not be chosen before `min_new_tokens` tokens exist; output ends
    with EOS, kept once, or at `max_new_tokens`.
    """

    request_id: int
    token_ids: TokenIds
    max_new_tokens: int
    min_new_tokens: int = 1


@dataclass(frozen=True, slots=True)
class Completion:
    """The answer to one Request: (output_len,) int32 ids, EOS included once where it was made.

    `finish_reason` is "stop" when EOS ended it and "length" when the limit did.
    """

    request_id: int
    token_ids: TokenIds
    finish_reason: str


class Sink(Protocol):
    """Where an engine pushes what it makes. Calls may come from any thread."""

    def first_token(self, request_id: int, token_id: int) -> None:
        """The first token of a request exists."""

    def done(self, completion: Completion) -> None:
        """A request is answered."""

    def done_all(self, completions: Sequence[Completion]) -> None:
        """Requests that were computed together are answered; they are kept or lost together."""

    def failed(self, request_id: int, error: PacelineError) -> None:
        """A request will never be answered. The run cannot be valid."""

    def progress(self, num_tokens: int) -> None:
        """So many more tokens exist than at the last call; for the live display only."""


@runtime_checkable
class StreamSink(Sink, Protocol):
    """A Sink that wants every token when it exists; engines that cannot give them leave it be."""

    def tokens(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Tokens after each request's first: (request_id, token_id), in the order they came."""


class Engine(Protocol):
    """What turns Requests into Completions; see the module docstring for the order of calls."""

    def start(self) -> None: ...

    def submit(self, requests: Sequence[Request], sink: Sink) -> None: ...

    def drain(self) -> None: ...

    def close(self) -> None: ...

    def describe(self) -> dict[str, Any]:
        """What made the tokens, for the manifest: device, precision, versions, counts."""


@runtime_checkable
class CancellingEngine(Protocol):
    """An engine that can forget requests."""

    def cancel(self, request_ids: Sequence[int]) -> None:
        """Nothing more is said of these; their room is given to others. Unknown ids are none."""


@runtime_checkable
class StreamingEngine(Protocol):
    """An engine that is told whether tokens are to be seen as they are made."""

    def set_streaming(self, wanted: bool | None) -> None:
        """From the next request on; None: as its settings have it."""


@runtime_checkable
class CountingEngine(Protocol):
    """An engine that counts what it does."""

    def begin_counting(self) -> None:
        """Have `describe` and `state` count from now on: what measured the engine before a test is
        no part of it. Called when all that was submitted is answered or cancelled."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One copy, server or replica of an engine at a moment; None for what it does not know."""

    name: str
    live_sequences: int
    waiting_sequences: int | None = None
    kv_used_fraction: float | None = None
    tokens: int | None = None
    answered: int | None = None
    is_up: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineState:
    """An engine at a moment; None for what it does not know.

    `live_sequences` are under way, `waiting_sequences` have no place yet: whoever deals requests to
    several engines gives one that has some no more. `queued_at_servers` are those of them that lie
    in the queues of servers. `kv_used_fraction` is of the whole KV cache, which holds `kv_slots`
    tokens; `preemptions` are counted since the start, or since counting began anew.
    """

    live_sequences: int | None = None
    waiting_sequences: int | None = None
    queued_at_servers: int | None = None
    kv_used_fraction: float | None = None
    preemptions: int | None = None
    kv_slots: int | None = None
    parts: tuple[Part, ...] = ()

    @property
    def taken_on(self) -> int | None:
        """Sequences that are under way or on the way: live, or in a server's own queue."""
        live = self.live_sequences
        return None if live is None else live + (self.queued_at_servers or 0)

    def as_json(self) -> dict[str, Any]:
        """Plain values of what is known, for a line of a run's timeline."""
        names = ("live_sequences", "waiting_sequences", "queued_at_servers")
        facts = {name: getattr(self, name) for name in (*names, "kv_used_fraction", "preemptions")}
        known: dict[str, Any] = {name: value for name, value in facts.items() if value is not None}
        if len(self.parts) > 1:
            known["parts"] = [
                {name: value for name, value in asdict(part).items() if value is not None}
                for part in self.parts
            ]
        return known


@runtime_checkable
class ObservableEngine(Protocol):
    """An engine that can say how it is doing.

    `state` is called about once a second, between `start` and `close`, by a thread that is not the
    engine's. It reads counters as they stand: it takes no lock that the engine's loop holds, waits
    for nothing, and its figures need not be of the very same moment.
    """

    def state(self) -> EngineState: ...


class TextCodec(Protocol):
    """Text and token ids of the run's tokenizer, for an engine that can only be talked to in text.

    Special tokens keep their text in both directions.
    """

    def ids_of(self, text: str) -> list[int]: ...

    def text_of(self, token_ids: Sequence[int]) -> str: ...


@runtime_checkable
class NetworkEngine(Protocol):
    """An engine that reaches its model over a network."""

    def server_names(self) -> Sequence[str]:
        """Each node's own name, asked of the node now: one round trip to every one of them.

        Raises EngineError when a node does not answer.
        """


def _ignore(what: str, fraction: float | None) -> None:
    del what, fraction


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineContext:
    """What an engine may know besides its own settings.

    `model` is a checkpoint directory or file, None when the engine needs none. `report` takes
    what the engine is doing while it starts and how far it is (0 to 1, None when unknown).
    `streaming` says that the first token of each request is wanted the moment it exists.
    `longest_prompt_len` is 0 when unknown. `codec` loads the run's tokenizer, None when the run
    has none. `kept` is the file in which an EngineHost says what it keeps for the run's tests;
    None: the engine starts all that it needs.
    """

    model: Path | None
    eos_token_id: int
    vocabulary_size: int
    max_new_tokens: int
    log_dir: Path
    report: Callable[[str, float | None], None] = _ignore
    streaming: bool = False
    longest_prompt_len: int = 0
    codec: Callable[[], TextCodec] | None = None
    kept: Path | None = None


class EngineHost(Protocol):
    """What an engine keeps from one test of a run to the next, in the process that starts them."""

    def ready(self, test: str, config: Any, context: EngineContext) -> None:
        """Have it ready for a test of these settings; `context.kept` tells the engine of it."""

    def ended(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """A test is over: what its engine said of itself, completed."""

    def close(self) -> None:
        """Keep nothing any more; safe to call twice."""


ENGINES: dict[str, tuple[str, str, str]] = {
    "endpoint": ("paceline.engines.endpoint", "EndpointEngine", "EndpointConfig"),
    "fake": ("paceline.engines.fake", "FakeEngine", "FakeConfig"),
    "managed": ("paceline.engines.managed", "ManagedEngine", "ManagedConfig"),
    "native": ("paceline.engines.native", "NativeEngine", "NativeConfig"),
    "reference": ("paceline.engines.reference", "ReferenceEngine", "ReferenceConfig"),
    "replicas": ("paceline.engines.replicas", "ReplicasEngine", "ReplicasConfig"),
}

# Engines that keep something between the tests of a run.
HOSTS: dict[str, tuple[str, str]] = {"managed": ("paceline.engines.managed_host", "ManagedHost")}

# Engines whose model runs on other hosts: what a run of the network division may use. Such an
# engine is a NetworkEngine.
NETWORK_ENGINES = frozenset({"endpoint"})


def _entry(name: str) -> tuple[str, str, str]:
    if name not in ENGINES:
        close = difflib.get_close_matches(name, list(ENGINES), n=1)
        guess = f"did you mean '{close[0]}'? " if close else ""
        raise InputError(
            f"There is no engine '{name}'.", hint=f"{guess}known: {', '.join(ENGINES)}"
        )
    return ENGINES[name]


def config_class(name: str) -> type[Any]:
    """The frozen dataclass of the engine's own settings. Raises InputError for a wrong name."""
    module, _, config = _entry(name)
    return getattr(importlib.import_module(module), config)  # type: ignore[no-any-return]


def load(name: str) -> Callable[[Any, EngineContext], Engine]:
    """The engine's class; call it with its config and a context. Raises InputError."""
    module, engine, _ = _entry(name)
    return getattr(importlib.import_module(module), engine)  # type: ignore[no-any-return]


def load_host(name: str, *, cwd: Path, note: Callable[[str], None]) -> EngineHost | None:
    """A host for the engine's tests, None for an engine that keeps nothing.

    What it starts runs in `cwd`; `note` hears what a reader of the run should know, a line each.
    """
    if name not in HOSTS:
        return None
    module, host = HOSTS[name]
    return getattr(importlib.import_module(module), host)(cwd=cwd, note=note)  # type: ignore[no-any-return]


def kept_path(name: str, log_dir: Path) -> Path | None:
    """Where the host of a run's engine says what it keeps; None for one that keeps nothing."""
    return log_dir / "kept.json" if name in HOSTS else None
