"""One server: what it is, and how a request becomes an answer of it."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from paceline.engines import Completion, EngineContext, TextCodec, TokenIds
from paceline.engines.endpoint_answer import Reader
from paceline.engines.endpoint_client import Client, ServerFault, encode
from paceline.engines.endpoint_dialect import (
    DIALECTS,
    SERVERS,
    Ask,
    Dialect,
    Piece,
    ServerKind,
    gather,
)
from paceline.engines.endpoint_state import Job
from paceline.errors import EngineError

__all__ = ["Identity", "RemoteServer"]

_TRIES, _TRY_AGAIN_S = 3, 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """What a server says of itself. `simulated`: it announces that no model runs."""

    kind: str
    model: str
    version: str | None
    context_len: int | None
    simulated: bool

    @property
    def rules(self) -> ServerKind:
        return SERVERS[self.kind]


class RemoteServer:
    """A server that was identified. `settle` decides its dialect; then it answers jobs."""

    def __init__(self, client: Client, identity: Identity, context: EngineContext) -> None:
        self.client = client
        self.identity = identity
        self._context = context
        self._dialect: Dialect | None = None
        self._reader: Reader | None = None
        self._codec: TextCodec | None = None
        self.streaming = False

    @property
    def dialect(self) -> Dialect:
        assert self._dialect is not None
        return self._dialect

    def settle(
        self,
        name: str,
        codec: TextCodec | None,
        *,
        counts: Counter[str],
        streaming: bool,
    ) -> None:
        """Talk to the server in this dialect from here on."""
        self._dialect = DIALECTS[name]
        self._codec = None if self._dialect.is_exact else codec
        self.streaming = streaming
        self._reader = Reader(
            server=self.client.name,
            model=self.identity.model,
            eos_token_id=self._context.eos_token_id,
            vocabulary_size=self._context.vocabulary_size,
            counts=counts,
            codec=self._codec,
        )

    async def is_back(self) -> bool:
        """Whether it serves the model again. Raises ServerFault."""
        models = await self.client.get("/v1/models")
        listed = models.get("data", []) if isinstance(models, dict) else []
        return any(card.get("id") == self.identity.model for card in listed)

    async def ask(self, job: Job) -> Completion:
        """Answer a job. Raises ServerFault, or EngineError for an answer that cannot be used."""
        assert self._reader is not None
        request = job.request
        ask = Ask(
            model=self.identity.model,
            prompt=self._prompt(np.ascontiguousarray(request.token_ids), self._codec),
            max_new_tokens=request.max_new_tokens,
            min_new_tokens=request.min_new_tokens,
            stream=self.streaming,
        )
        body = self._encode(self.dialect, ask)
        if self.streaming:
            return self._reader.read(request, await self._follow(job, body, self._reader))
        answer = self.dialect.read(await self.client.post(self.dialect.path, body))
        _raise_error(self.client, answer)
        return self._reader.read(request, answer)

    async def try_prompt(
        self,
        name: str,
        prompt: list[int],
        *,
        max_new_tokens: int,
        force_token: int | None = None,
        codec: TextCodec | None = None,
    ) -> Piece:
        """One prompt in a dialect that is still on trial, tried thrice. Raises ServerFault."""
        dialect = DIALECTS[name]
        ask = Ask(
            model=self.identity.model,
            prompt=self._prompt(prompt, None if dialect.takes_ids else codec),
            max_new_tokens=max_new_tokens,
            min_new_tokens=1,
            force_token=force_token,
        )
        body = self._encode(dialect, ask)
        for left in reversed(range(_TRIES)):
            try:
                answer = dialect.read(await self.client.post(dialect.path, body))
                _raise_error(self.client, answer)
                break
            except ServerFault as fault:
                if not fault.may_retry or not left:
                    raise
                await asyncio.sleep(_TRY_AGAIN_S)
        return answer

    async def _follow(self, job: Job, body: bytes, reader: Reader) -> Piece:
        """Read a stream to its end; the first token is pushed the moment it is there."""
        pieces: list[Piece] = []
        made = 0
        async for event in self.client.stream(self.dialect.path, body):
            piece = self.dialect.read(event)
            _raise_error(self.client, piece)
            pieces.append(piece)
            if job.first is None:
                first = reader.first_of(piece)
                if first is not None:
                    job.first = first
                    job.sink.first_token(job.request.request_id, first)
            if piece.token_ids and not self.dialect.is_cumulative:
                made += len(piece.token_ids)
                job.count(made)
        answer = gather(pieces, is_cumulative=self.dialect.is_cumulative)
        if answer.finish is None:
            raise ServerFault(
                "truncated", f"{self.client.name} ended a stream without an end.", may_retry=True
            )
        self._check_first(job, answer, reader)
        return answer

    def _check_first(self, job: Job, answer: Piece, reader: Reader) -> None:
        """The answer must begin with the token that LoadGen was told of."""
        first = reader.first_of(answer)
        if job.first is None or first is None or first == job.first:
            return
        if self._codec is not None:
            reader.counts["first_token_differs"] += 1
            return
        raise EngineError(
            f"{self.client.name} answered a retried request with another first token "
            f"({first}, before {job.first}): it is not deterministic."
        )

    def _prompt(
        self, token_ids: TokenIds | list[int], codec: TextCodec | None
    ) -> TokenIds | list[int] | str:
        takes_text = self._dialect is None or not self._dialect.takes_ids
        if codec is not None and takes_text:
            return codec.text_of([int(token) for token in token_ids])
        return token_ids

    def _encode(self, dialect: Dialect, ask: Ask) -> bytes:
        body: dict[str, Any] = dialect.body(ask)
        if dialect.path == "/v1/completions":
            body |= self.identity.rules.extra
        return encode(body)


def _raise_error(client: Client, piece: Piece) -> None:
    if piece.error is not None:
        said = client.shown(piece.error)
        raise ServerFault("server_error", f"{client.name} says: {said}", may_retry=True)
    if piece.finish == "abort":
        raise ServerFault("aborted", f"{client.name} gave a request up.", may_retry=True)
