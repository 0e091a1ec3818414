"""The client's own ceiling: the endpoint engine against a server that costs next to nothing.

    bench_endpoint(...)                            start the server, measure, stop it
    python -m paceline.engines.endpoint_bench N    the server: N tokens in every answer

The server is a process of its own on loopback. It reads whole HTTP requests and gives each the
same ready-made answer, so what is measured is the client: making the request, HTTP, reading JSON,
checking the answer, and handing it over. Prompts have as many tokens as answers.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paceline.engines import Completion, EngineContext, Request
from paceline.engines.endpoint import EndpointConfig, EndpointEngine
from paceline.errors import EngineError, PacelineError

__all__ = ["CannedServer", "bench_endpoint", "main"]

_EOS, _VOCABULARY = 2, 32000
_MODEL = "canned"
_HEAD_END = b"\r\n\r\n"
_LENGTH = b"content-length:"
_DIFFERENT_PROMPTS = 512


class CannedServer(asyncio.Protocol):
    """HTTP/1.1 with keep-alive, for requests that carry their Content-Length."""

    def __init__(self, answers: dict[bytes, bytes]) -> None:
        self._answers = answers
        self._data = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        while (end := self._data.find(_HEAD_END)) >= 0:
            head = self._data[:end].lower()
            at = head.find(_LENGTH)
            size = int(head[at + len(_LENGTH) :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            whole = end + len(_HEAD_END) + size
            if len(self._data) < whole:
                return
            self._data = self._data[whole:]
            assert self._transport is not None
            self._transport.write(self._answers.get(head.split(b" ", 2)[1], self._answers[b""]))


def _answers(num_tokens: int) -> dict[bytes, bytes]:
    ids = [3 + (7 * place) % 31990 for place in range(num_tokens - 1)] + [_EOS]
    models = {"data": [{"id": _MODEL, "owned_by": "paceline", "simulated": True}]}
    answer = {
        "model": _MODEL,
        "choices": [{"index": 0, "text": "", "token_ids": ids, "finish_reason": "stop"}],
        "usage": {"completion_tokens": num_tokens},
    }
    return {
        b"/v1/models": _http(200, models),
        b"/v1/completions": _http(200, answer),
        b"": _http(404, {"error": "no such path"}),
    }


def _http(status: int, body: Any) -> bytes:
    content = json.dumps(body, separators=(",", ":")).encode()
    head = f"HTTP/1.1 {status} -\r\nContent-Type: application/json\r\nContent-Length: "
    return head.encode() + str(len(content)).encode() + _HEAD_END + content


class _Count:
    """A Sink that counts."""

    def __init__(self) -> None:
        self.answered = 0
        self.tokens = 0
        self.error: PacelineError | None = None

    def first_token(self, request_id: int, token_id: int) -> None: ...

    def progress(self, num_tokens: int) -> None: ...

    def done(self, completion: Completion) -> None:
        self.answered += 1
        self.tokens += len(completion.token_ids)

    def done_all(self, completions: Sequence[Completion]) -> None:
        for completion in completions:
            self.done(completion)

    def failed(self, request_id: int, error: PacelineError) -> None:
        del request_id
        self.error = error


def bench_endpoint(num_requests: int, num_tokens: int, *, concurrency: int) -> dict[str, Any]:
    """Requests/s of the endpoint engine alone. Raises EngineError when one fails."""
    command = [sys.executable, "-m", "paceline.engines.endpoint_bench", str(num_tokens)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            url = f"http://127.0.0.1:{int(server.stdout.readline())}"
            return _measure(url, num_requests, num_tokens, concurrency=concurrency)
        finally:
            server.terminate()


def _measure(url: str, num_requests: int, num_tokens: int, *, concurrency: int) -> dict[str, Any]:
    context = EngineContext(
        model=None,
        eos_token_id=_EOS,
        vocabulary_size=_VOCABULARY,
        max_new_tokens=num_tokens,
        log_dir=Path(),
    )
    engine = EndpointEngine(EndpointConfig(urls=(url,), concurrency=concurrency), context)
    rng = np.random.default_rng(1)
    shape = (_DIFFERENT_PROMPTS, num_tokens)
    prompts = rng.integers(3, _VOCABULARY, shape).astype(np.int32)
    requests = [
        Request(place, prompts[place % _DIFFERENT_PROMPTS], num_tokens)
        for place in range(num_requests)
    ]
    sink = _Count()
    engine.start()
    try:
        start_s = time.perf_counter()
        engine.submit(requests, sink)
        engine.drain()
        seconds = time.perf_counter() - start_s
        client = engine.describe()["client"]
    finally:
        engine.close()
    if sink.error is not None or sink.answered != num_requests:
        raise sink.error or EngineError(f"{sink.answered} of {num_requests} were answered.")
    return {
        "requests_per_second": round(num_requests / seconds, 1),
        "tokens_per_second": round(sink.tokens / seconds),
        "seconds": round(seconds, 3),
        "requests": num_requests,
        "tokens_per_answer": num_tokens,
        "in_flight": concurrency,
        "client_busy_fraction": client["busy_fraction"],
    }


async def _serve(num_tokens: int) -> None:
    answers = _answers(num_tokens)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: CannedServer(answers), "127.0.0.1", 0)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    # The parent holds the other end: when it is gone, so is this process.
    await loop.run_in_executor(None, sys.stdin.read)


def main(arguments: Sequence[str]) -> None:
    """Serve until standard input ends."""
    asyncio.run(_serve(int(arguments[0])))


if __name__ == "__main__":
    main(sys.argv[1:])
