"""A completions server on loopback that behaves, or misbehaves, as a test tells it to."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from paceline.engines import Completion, EngineContext, Request
from paceline.engines.endpoint import EndpointConfig, EndpointEngine
from paceline.errors import PacelineError

EOS, VOCABULARY, LIMIT = 2, 32000, 64


@dataclass
class Call:
    """One POST: which it is on this server, where, what, and its headers in lower case."""

    place: int
    path: str
    body: dict[str, Any]
    headers: dict[str, str]

    @property
    def prompt(self) -> Any:
        return self.body.get("prompt", self.body.get("input_ids"))

    @property
    def is_preflight(self) -> bool:
        limit = self.body.get("max_tokens") or self.body.get("n_predict")
        limit = limit or self.body.get("sampling_params", {}).get("max_new_tokens")
        return limit in (4, 16)


@dataclass
class Reply:
    """What is sent back. `cut` sends so many bytes of it and then resets the connection."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    cut: int | None = None
    events: Sequence[Any] | None = None
    event_delay_s: float = 0.0


def answer_ids(prompt: Sequence[int], limit: int = LIMIT) -> list[int]:
    """The right answer to a prompt."""
    length = 3 + sum(prompt) % 17
    ids = [3 + (sum(prompt) + 7 * place) % 31000 for place in range(length)]
    return [*ids, EOS] if length < limit else ids[:limit]


def completion(ids: Sequence[int], **changes: Any) -> dict[str, Any]:
    """An answer as vLLM gives it."""
    finish = changes.pop("finish", "stop" if ids and ids[-1] == EOS else "length")
    body = {
        "model": "m",
        "choices": [{"index": 0, "text": "", "token_ids": list(ids), "finish_reason": finish}],
        "usage": {"completion_tokens": len(ids)},
    }
    return body | changes


def right(call: Call) -> Reply:
    """Answer as one should, in one piece or streamed."""
    ids = answer_ids(call.prompt, call.body["max_tokens"])
    whole = completion(ids)
    whole["usage"]["prompt_tokens"] = len(call.prompt)
    if not call.body.get("stream"):
        return Reply(whole)
    return Reply(events=chunks(ids, whole["usage"]))


def chunks(ids: Sequence[int], usage: dict[str, int]) -> list[Any]:
    """The events of a streamed answer, a token each, the usage in the last."""
    events = [completion([token], finish=None, usage=None) for token in ids]
    events[-1]["choices"][0]["finish_reason"] = "stop" if ids[-1] == EOS else "length"
    return [*events, {"model": "m", "choices": [], "usage": usage}]


Behaviour = Callable[[Call], Reply]


class FaultServer:
    """The server, in a thread of its own. `stop` breaks every connection; `start` comes back."""

    def __init__(
        self,
        behave: Behaviour = right,
        *,
        gets: dict[str, Any] | None = None,
        card: dict[str, Any] | None = None,
        tls: tuple[Path, Path] | None = None,
    ) -> None:
        self.behave = behave
        self.calls: list[Call] = []
        self.times: list[float] = []
        self.most_open = self.open = self.connections = 0
        self.gets = {"/v1/models": {"data": [{"id": "m", "owned_by": "vllm"} | (card or {})]}}
        self.gets |= gets or {}
        self._port = 0
        self._tls: ssl.SSLContext | None = None
        if tls is not None:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(*tls)

    @property
    def url(self) -> str:
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self._port}"

    @property
    def asked(self) -> list[Call]:
        """The calls that were no preflight."""
        return [call for call in self.calls if not call.is_preflight]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._writers: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()

    def stop(self) -> None:
        if not self._loop.is_running():
            return
        asyncio.run_coroutine_threadsafe(self._shut(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(
            self._connection, "127.0.0.1", self._port, ssl=self._tls
        )
        self._port = self._server.sockets[0].getsockname()[1]

    async def _shut(self) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        mine = asyncio.current_task()
        tasks = [task for task in asyncio.all_tasks() if task is not mine]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        self.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                method, path, _ = head[0].split(" ")
                pairs = (line.split(":", 1) for line in head[1:] if line)
                headers = {name.lower(): value.strip() for name, value in pairs}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                if method == "GET":
                    found = self.gets.get(path)
                    _send(writer, Reply(found or {}, status=200 if found else 404))
                else:
                    await self._post(writer, Call(0, path, json.loads(body), headers))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _post(self, writer: asyncio.StreamWriter, call: Call) -> None:
        call.place = len(self.asked)
        self.calls.append(call)
        self.times.append(time.monotonic())
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            reply = self.behave(call)
            await asyncio.sleep(reply.delay_s)
            if reply.events is not None:
                await _send_events(writer, reply)
            else:
                _send(writer, reply)
            if reply.cut is not None:
                await writer.drain()
                await asyncio.sleep(0.01)
                writer.transport.abort()
        finally:
            self.open -= 1


def _send(writer: asyncio.StreamWriter, reply: Reply) -> None:
    body = reply.body.encode() if isinstance(reply.body, str) else reply.body
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {reply.status} x", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in reply.headers.items()]
    data = "\r\n".join(lines).encode() + b"\r\n\r\n" + body
    writer.write(data if reply.cut is None else data[: reply.cut])


async def _send_events(writer: asyncio.StreamWriter, reply: Reply) -> None:
    assert reply.events is not None
    writer.write(b"HTTP/1.1 200 x\r\nTransfer-Encoding: chunked\r\n\r\n")
    for place, event in enumerate([*reply.events, "[DONE]"]):
        if reply.cut is not None and place == reply.cut:
            return
        text = event if isinstance(event, str) else json.dumps(event)
        data = f"data: {text}\n\n".encode()
        writer.write(b"%x\r\n%s\r\n" % (len(data), data))
        await writer.drain()
        await asyncio.sleep(reply.event_delay_s)
    writer.write(b"0\r\n\r\n")


class Collector:
    """A Sink that keeps everything, with the time of each first token."""

    def __init__(self) -> None:
        self.completions: dict[int, Completion] = {}
        self.failures: dict[int, PacelineError] = {}
        self.first: dict[int, tuple[int, float]] = {}
        self.made = 0

    def first_token(self, request_id: int, token_id: int) -> None:
        assert request_id not in self.first
        self.first[request_id] = (token_id, time.monotonic())

    def done(self, completion: Completion) -> None:
        assert completion.request_id not in self.completions
        assert completion.request_id not in self.failures
        self.completions[completion.request_id] = completion

    def done_all(self, completions: Sequence[Completion]) -> None:
        for one in completions:
            self.done(one)

    def failed(self, request_id: int, error: PacelineError) -> None:
        assert request_id not in self.completions
        assert request_id not in self.failures
        self.failures[request_id] = error

    def progress(self, num_tokens: int) -> None:
        self.made += num_tokens


def requests(count: int, *, seed: int = 5) -> list[Request]:
    rng = np.random.default_rng(seed)
    return [Request(i, rng.integers(3, 9000, 20).astype(np.int32), LIMIT) for i in range(count)]


def context(**changes: Any) -> EngineContext:
    values: dict[str, Any] = {
        "model": None,
        "eos_token_id": EOS,
        "vocabulary_size": VOCABULARY,
        "max_new_tokens": LIMIT,
        "log_dir": Path(),
    }
    return EngineContext(**(values | changes))


def settings(*servers: FaultServer, **changes: Any) -> EndpointConfig:
    values: dict[str, Any] = {
        "urls": tuple(server.url for server in servers),
        "concurrency": 8,
        "backoff_s": 0.02,
        "start_timeout_s": 0.1,
    }
    return EndpointConfig(**(values | changes))


@dataclass
class Result:
    """What came of a run of the engine."""

    sink: Collector
    facts: dict[str, Any]
    seconds: float

    def require_all(self, asked: Sequence[Request]) -> None:
        """Every request was answered once, and rightly."""
        assert not self.sink.failures, self.sink.failures
        assert set(self.sink.completions) == {request.request_id for request in asked}
        for request in asked:
            got = self.sink.completions[request.request_id]
            assert got.token_ids.tolist() == answer_ids(request.token_ids.tolist())
            assert got.token_ids.dtype == np.int32


def run(
    config: EndpointConfig,
    asked: Sequence[Request],
    *,
    during: Callable[[Collector], None] | None = None,
    **changes: Any,
) -> Result:
    """The engine from start to close."""
    engine, sink = EndpointEngine(config, context(**changes)), Collector()
    try:
        engine.start()
        start_s = time.monotonic()
        engine.submit(asked, sink)
        if during is not None:
            during(sink)
        engine.drain()
        return Result(sink, engine.describe(), time.monotonic() - start_s)
    finally:
        engine.close()


def wait_for(sink: Collector, count: int) -> None:
    """Until so many requests are answered."""
    deadline_s = time.monotonic() + 30
    while len(sink.completions) < count:
        assert time.monotonic() < deadline_s, f"only {len(sink.completions)} of {count} in 30 s"
        time.sleep(0.002)
