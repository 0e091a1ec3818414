"""POST /v1/completions: read, check, generate, answer; and notice when the client has left.

limits      a body above `max_body_bytes` is a 413 before it is read to its end; a body that
            comes too slowly a 408; a prompt that cannot fit the context a 400
clients     one that leaves, or takes nothing of its answer for `client_timeout_s`, gives its
            places back at once
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.types import Receive, Scope, Send

from paceline.mlperf.tokenizer import TextTokenizer
from paceline.serve.answers import Answer, Reply, encoded, event
from paceline.serve.dispatch import Dispatcher, Generation
from paceline.serve.metrics import Metrics
from paceline.serve.protocol import ApiError, CompletionRequest, parse_completion

__all__ = ["Completions", "Served", "check_key"]

log = logging.getLogger(__name__)

PATH = "/v1/completions"
_CLIENT_LEFT = 499
# Texts of more characters than this are tokenised beside the event loop.
_LONG_TEXT_CHARS = 50_000
_NOTE = "temperature was not given; this server decodes greedily, as with 0"


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """What is served and its limits."""

    model: str
    engine: str
    is_simulated: bool
    tokenizer: TextTokenizer | None
    vocabulary_size: int
    max_model_len: int
    max_body_bytes: int
    client_timeout_s: float
    api_key: str | None


class _ClientLeft(Exception):
    """Nobody is there to answer."""


def check_key(served: Served, scope: Scope) -> None:
    """Raises ApiError (401) when a key is wanted and not given."""
    if served.api_key is None:
        return
    given = dict(scope["headers"]).get(b"authorization", b"")
    if not hmac.compare_digest(given, b"Bearer " + served.api_key.encode()):
        raise ApiError(
            401, "Wrong API key; send Authorization: Bearer KEY.", code="invalid_api_key"
        )


class Completions:
    """The ASGI application of one path."""

    def __init__(self, served: Served, dispatcher: Dispatcher, metrics: Metrics) -> None:
        self._served = served
        self._dispatcher = dispatcher
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = _Client(send, self._served.client_timeout_s)
        try:
            check_key(self._served, scope)
            request = parse_completion(await self._read_body(scope, receive))
            generations, echoes = await self._generations(request, client)
            await self._answer(request, generations, echoes=echoes, client=client, receive=receive)
        except ApiError as error:
            with contextlib.suppress(_ClientLeft):
                await client.send_error(error)
        except _ClientLeft:
            client.status = _CLIENT_LEFT
        except asyncio.CancelledError:  # the server ends, and this task with it
            with contextlib.suppress(_ClientLeft):
                await client.send_error(ApiError(503, "The server is stopping.", code="stopping"))
        self._metrics.http[PATH, client.status] += 1

    async def _read_body(self, scope: Scope, receive: Receive) -> bytes:
        headers = dict(scope["headers"])
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if kind != b"application/json":
            raise ApiError(415, "Send the header Content-Type: application/json.")
        most = self._served.max_body_bytes
        too_long = ApiError(
            413, f"The body is longer than {most} bytes, this server's limit.", code="body_too_long"
        )
        if int(headers.get(b"content-length", b"0")) > most:
            raise too_long
        body = bytearray()
        try:
            async with asyncio.timeout(self._served.client_timeout_s):
                is_more = True
                while is_more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _ClientLeft
                    body += message.get("body", b"")
                    is_more = message.get("more_body", False)
                    if len(body) > most:
                        raise too_long
        except TimeoutError:
            raise ApiError(
                408, f"The body did not come within {self._served.client_timeout_s:.0f} s."
            ) from None
        return bytes(body)

    async def _generations(
        self, request: CompletionRequest, client: _Client
    ) -> tuple[list[Generation], list[str]]:
        """The prompts as token ids that fit, and the text that each answer begins with."""
        served = self._served
        if request.model not in (None, served.model):
            raise ApiError(
                404,
                f"There is no model '{request.model}'; this server has '{served.model}'.",
                param="model",
                code="model_not_found",
            )
        if served.tokenizer is None and (not request.return_token_ids or request.stop):
            raise ApiError(
                400,
                "This server has no tokenizer and makes no text: set return_token_ids, no stop.",
                param="return_token_ids",
            )
        prompts = await self._token_ids(request)
        for prompt in prompts:
            self._check_prompt(prompt, request.max_tokens)
        echoes = [""] * len(prompts)
        if request.echo and served.tokenizer is not None:
            echoes = [
                given if isinstance(given, str) else served.tokenizer.decode_batch([given])[0]
                for given in request.prompts
            ]
        generations = [
            Generation(
                prompt,
                max_tokens=request.max_tokens,
                min_tokens=request.min_tokens,
                changed=client.changed,
            )
            for prompt in prompts
        ]
        return generations, echoes

    async def _token_ids(self, request: CompletionRequest) -> list[list[int]]:
        texts = [prompt for prompt in request.prompts if isinstance(prompt, str)]
        if not texts:
            return [prompt for prompt in request.prompts if isinstance(prompt, list)]
        tokenizer = self._served.tokenizer
        if tokenizer is None:
            raise ApiError(400, "This server has no tokenizer: send token ids.", param="prompt")

        def encode() -> list[list[int]]:
            return tokenizer.encode_batch(texts, add_special=request.add_special_tokens)

        if sum(map(len, texts)) > _LONG_TEXT_CHARS:
            return await asyncio.to_thread(encode)
        return encode()

    def _check_prompt(self, prompt: list[int], max_tokens: int) -> None:
        most = self._served.max_model_len
        if len(prompt) + max_tokens > most:
            raise ApiError(
                400,
                f"This model's maximum context length is {most} tokens. However, you requested "
                f"{len(prompt) + max_tokens} tokens ({len(prompt)} in your prompt; {max_tokens} "
                "for the completion). Please reduce your prompt or max_tokens.",
                param="prompt",
                code="context_length_exceeded",
            )
        if not prompt:
            raise ApiError(400, "A prompt has no tokens.", param="prompt")
        if min(prompt) < 0 or max(prompt) >= self._served.vocabulary_size:
            raise ApiError(
                400,
                f"A token id of the prompt is not from 0 to {self._served.vocabulary_size - 1}.",
                param="prompt",
            )

    async def _answer(
        self,
        request: CompletionRequest,
        generations: list[Generation],
        *,
        echoes: Sequence[str],
        client: _Client,
        receive: Receive,
    ) -> None:
        if not request.has_temperature:
            client.note = _NOTE
            self._metrics.notes["no_temperature"] += 1
        answers = [
            Answer(generation, stops=request.stop, tokenizer=self._served.tokenizer, echo=echo)
            for generation, echo in zip(generations, echoes, strict=True)
        ]
        reply = Reply(request, self._served.model)
        self._dispatcher.add(generations)
        watch = asyncio.create_task(client.watch(receive))
        try:
            if request.is_streaming:
                await self._stream(answers, reply, client)
            else:
                texts = await self._collect(answers, client, has_stops=bool(request.stop))
                await client.send_json(200, reply.whole(answers, texts))
        finally:
            watch.cancel()
            for generation in generations:
                self._dispatcher.leave(generation, "dropped")

    async def _collect(
        self, answers: Sequence[Answer], client: _Client, *, has_stops: bool
    ) -> list[str]:
        """Wait for all answers; their texts. Stop texts are looked for as the tokens come."""
        texts = [""] * len(answers)
        first = 0
        while first < len(answers):
            await client.wait()
            while first < len(answers) and answers[first].generation.is_over:
                self._raise_failure(answers[first].generation)
                if not answers[first].is_over:
                    texts[first] += answers[first].advance(self._dispatcher)[0]
                first += 1
            if has_stops:
                for index in range(first, len(answers)):
                    if not answers[index].is_over:
                        texts[index] += answers[index].advance(self._dispatcher)[0]
        return texts

    async def _stream(self, answers: Sequence[Answer], reply: Reply, client: _Client) -> None:
        await client.start(200, b"text/event-stream; charset=utf-8")
        open_answers = list(enumerate(answers))
        while open_answers:
            await client.wait()
            parts = []
            for index, answer in open_answers:
                self._raise_failure(answer.generation)
                text, ids = answer.advance(self._dispatcher)
                if ids or text or answer.is_over:
                    parts.append(reply.part(index, answer, text=text, token_ids=ids))
            open_answers = [(i, answer) for i, answer in open_answers if not answer.is_over]
            if parts:
                await client.send_body(b"".join(parts), is_more=True)
        await client.send_body(reply.last(answers), is_more=False)

    def _raise_failure(self, generation: Generation) -> None:
        if generation.error is not None:
            raise ApiError(500, f"The engine failed: {generation.error}", code="engine_error")


class _Client:
    """The other end of one request."""

    def __init__(self, send: Send, write_timeout_s: float) -> None:
        self.status = 500
        self.note: str | None = None
        self.changed = asyncio.Event()
        self._send = send
        self._write_timeout_s = write_timeout_s
        self._has_begun = False
        self._has_left = False

    async def watch(self, receive: Receive) -> None:
        """Notice when the client leaves."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self._has_left = True
        self.changed.set()

    async def wait(self) -> None:
        """Until something happened. Raises _ClientLeft."""
        await self.changed.wait()
        self.changed.clear()
        if self._has_left:
            raise _ClientLeft

    async def start(
        self, status: int, kind: bytes, *, headers: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        self.status = status
        self._has_begun = True
        note = [(b"x-paceline-note", self.note.encode())] if self.note else []
        await self._put(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [(b"content-type", kind), *note, *headers],
            }
        )

    async def send_body(self, body: bytes, *, is_more: bool) -> None:
        await self._put({"type": "http.response.body", "body": body, "more_body": is_more})

    async def send_json(
        self, status: int, body: bytes, *, headers: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        length = (b"content-length", str(len(body)).encode())
        await self.start(status, b"application/json", headers=[length, *headers])
        await self.send_body(body, is_more=False)

    async def send_error(self, error: ApiError) -> None:
        """In place of an answer; once one has begun, as its last event."""
        if self._has_begun:
            end = event(error.as_json()) + b"data: [DONE]\n\n"
            await self.send_body(end, is_more=False)
            return
        headers = []
        if error.retry_after_s is not None:
            headers.append((b"retry-after", str(error.retry_after_s).encode()))
        if error.status in (408, 413):
            # The rest of the body is not waited for.
            headers.append((b"connection", b"close"))
        await self.send_json(error.status, encoded(error.as_json()), headers=headers)

    async def _put(self, message: dict[str, object]) -> None:
        try:
            async with asyncio.timeout(self._write_timeout_s):
                await self._send(message)
        except TimeoutError:
            log.warning("a client took nothing for %.0f s: let go", self._write_timeout_s)
            raise _ClientLeft from None
        if self._has_left:
            raise _ClientLeft
