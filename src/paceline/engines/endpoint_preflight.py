"""What is found out about a server before the clock starts.

    identify(...)   wait until the server answers; its kind, version, model, context length
    examine(...)    choose the dialect and check it, with a few short requests: greedy decoding,
                    EOS, ids that come back as they went, prefix caching

A check that fails stops the run (`engine.endpoint.preflight=strict`) or is on record ("warn").
What cannot be known is recorded as not known, never as passed.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from paceline.engines import EngineContext, TextCodec
from paceline.engines.endpoint_client import Client, ServerFault
from paceline.engines.endpoint_dialect import DIALECTS, Piece, kind_of
from paceline.engines.endpoint_server import Identity, RemoteServer
from paceline.errors import EngineError, InputError

__all__ = ["Check", "examine", "identify"]

_PROMPT_LEN = 64
_ANSWER_LEN = 16
_POLL_S = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One thing that was checked. `passed` is None when it cannot be known."""

    name: str
    server: str
    passed: bool | None
    detail: str
    hint: str | None = None
    is_blocking: bool = True

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


async def identify(
    client: Client, *, model: str, server: str, timeout_s: float
) -> tuple[Identity, dict[str, Any]]:
    """Who answers there, and what else it says of itself.

    Raises EngineError when nobody does within `timeout_s`, InputError when the model is not there.
    """
    models = await _await_models(client, timeout_s)
    card = _find_model(client.name, models, model)
    kind = kind_of(card.get("owned_by")) if server == "auto" else server
    identity = Identity(
        kind=kind, model=str(card["id"]), version=None, context_len=None, simulated=False
    )
    facts: dict[str, Any] = {}
    for path in identity.rules.version_paths:
        try:
            answer = await client.get(path)
        except ServerFault:
            continue
        if isinstance(answer, dict):
            facts = answer
            break
    default = facts.get("default_generation_settings") or {}
    context_len = card.get("max_model_len") or default.get("n_ctx")
    version = facts.get("version") or facts.get("build_info") or card.get("version")
    return Identity(
        kind=kind,
        model=str(card["id"]),
        version=None if version is None else str(version),
        context_len=int(context_len) if context_len else None,
        simulated=bool(card.get("simulated")),
    ), facts


async def _await_models(client: Client, timeout_s: float) -> list[dict[str, Any]]:
    deadline_s = time.monotonic() + timeout_s
    while True:
        try:
            answer = await client.get("/v1/models")
            break
        except ServerFault as fault:
            if not fault.may_retry or time.monotonic() >= deadline_s:
                raise EngineError(
                    f"{client.name} cannot be used: {fault.message}",
                    hint="start the server, check engine.endpoint.urls, or give it longer: "
                    "--set engine.endpoint.start_timeout_s=SECONDS",
                ) from None
        await asyncio.sleep(_POLL_S)
    cards = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(cards, list) or not all(isinstance(card, dict) for card in cards):
        raise EngineError(
            f"{client.name}/v1/models is not a list of models.",
            hint="engine.endpoint.urls are the roots of OpenAI-compatible servers, without /v1",
        )
    return [card for card in cards if "id" in card]


def _find_model(name: str, cards: Sequence[dict[str, Any]], model: str) -> dict[str, Any]:
    served = [str(card["id"]) for card in cards]
    if model == "auto" and len(cards) == 1:
        return cards[0]
    for card in cards:
        if card["id"] == model:
            return card
    shown = ", ".join(served) or "none"
    what = "several models" if model == "auto" else f"no model '{model}'"
    raise InputError(
        f"{name} serves {what}: {shown}.",
        hint=f"--set engine.endpoint.model={served[0]}" if served else "load the model there",
    )


async def examine(
    server: RemoteServer,
    context: EngineContext,
    *,
    facts: dict[str, Any],
    codec: TextCodec | None,
) -> tuple[str, list[Check]]:
    """The dialect to talk in, and what was checked. Raises EngineError when none works."""
    prompt = _test_prompt(context)
    name, first = await _choose_dialect(server, prompt, codec)
    exact = DIALECTS[name].is_exact
    second = await server.try_prompt(name, prompt, max_new_tokens=_ANSWER_LEN, codec=codec)
    checks = [
        Check(
            name="token ids",
            server=server.client.name,
            passed=True if exact else None,
            detail="prompts and answers are token ids"
            if exact
            else "the server gives text only; its tokens are counted by tokenising it again",
        ),
        _check_context(server, context),
        _check_round_trip(server, prompt, first, exact=exact),
        _check_greedy(server, first, second),
        await _check_eos(server, name, prompt, context=context, codec=codec),
        await _check_prefix_cache(server, facts, second=second, exact=exact),
    ]
    return name, checks


def _test_prompt(context: EngineContext) -> list[int]:
    """Ids from the middle of the vocabulary, no special ones; longer than a block of a cache."""
    low, span = context.vocabulary_size // 4, context.vocabulary_size // 2
    return [low + (37 * place) % span for place in range(_PROMPT_LEN)]


async def _choose_dialect(
    server: RemoteServer, prompt: list[int], codec: TextCodec | None
) -> tuple[str, Piece]:
    """The first dialect that the server understands, and its answer to the prompt."""
    refusals = []
    for name in server.identity.rules.dialects:
        dialect = DIALECTS[name]
        if not dialect.is_exact and codec is None:
            refusals.append(f"{name}: needs a tokenizer (data.tokenizer)")
            continue
        try:
            answer = await server.try_prompt(name, prompt, max_new_tokens=_ANSWER_LEN, codec=codec)
        except ServerFault as fault:
            refusals.append(f"{name}: {fault.message}")
            if fault.kind in ("http_400", "http_404", "http_405", "http_422"):
                continue
            break
        if dialect.gives_ids and not answer.token_ids:
            refusals.append(f"{name}: no token ids in the answer")
            continue
        return name, answer
    raise EngineError(
        f"{server.client.name} ({server.identity.kind}) cannot be talked to. "
        + "; ".join(refusals),
        hint="docs/engines.md has the servers that work and how to start them",
    )


def _check_context(server: RemoteServer, context: EngineContext) -> Check:
    have, need = server.identity.context_len, context.longest_prompt_len + context.max_new_tokens
    if have is None:
        return _check(server, "context length", None, "the server does not say")
    return _check(
        server,
        "context length",
        have >= need,
        f"{have} tokens; the longest prompt and {context.max_new_tokens} more are {need}",
        hint="start the server with a longer context (max_model_len, n_ctx)",
    )


def _check_round_trip(
    server: RemoteServer, prompt: list[int], answer: Piece, *, exact: bool
) -> Check:
    name = "token ids round trip"
    if answer.prompt_ids is not None:
        same = answer.prompt_ids == prompt
        detail = "the prompt came back as sent" if same else "the prompt came back changed"
        return _check(server, name, same, detail, is_blocking=exact)
    if answer.prompt_len is None:
        return _check(server, name, None, "the server does not say what prompt it saw")
    return _check(
        server,
        name,
        answer.prompt_len == len(prompt),
        f"{len(prompt)} tokens sent, {answer.prompt_len} seen",
        hint="the server must add no BOS to token ids",
        is_blocking=exact,
    )


def _check_greedy(server: RemoteServer, first: Piece, second: Piece) -> Check:
    same = (first.token_ids, first.text) == (second.token_ids, second.text)
    return _check(
        server,
        "greedy determinism",
        same,
        "one prompt gave the same tokens twice" if same else "one prompt gave two answers",
        hint="the server must heed temperature 0; start it without sampling defaults of its own",
    )


async def _check_eos(
    server: RemoteServer,
    dialect: str,
    prompt: list[int],
    *,
    context: EngineContext,
    codec: TextCodec | None,
) -> Check:
    """Push EOS up so far that it must come as the second token, and see what is made of it."""
    name, eos = "EOS", context.eos_token_id
    try:
        answer = await server.try_prompt(
            dialect, prompt, max_new_tokens=4, force_token=eos, codec=codec
        )
    except ServerFault as fault:
        return _check(server, name, None, f"not tried: {fault.message}")
    ids = answer.token_ids
    if answer.finish != "stop" or (ids is not None and len(ids) > 3):
        return _check(server, name, None, "not known: the server takes no logit_bias")
    if ids is not None and eos in ids[:-1]:
        return _check(server, name, False, "goes on after EOS", hint="start it without ignore_eos")
    kept = ids is not None and ids[-1:] == [eos]
    return _check(server, name, True, "kept, once" if kept else "left out; it is put back")


async def _check_prefix_cache(
    server: RemoteServer, facts: dict[str, Any], *, second: Piece, exact: bool
) -> Check:
    """Reuse of one query's work for another is not allowed; most servers do it by default."""
    name, kind = "prefix caching", server.identity.kind
    off: bool | None = None
    if kind == "vllm":
        off = await _vllm_cache_is_off(server.client)
    elif kind == "sglang" and "disable_radix_cache" in facts:
        off = bool(facts["disable_radix_cache"])
    elif kind in ("llamacpp", "paceline"):
        off = True
    elif kind == "llama-cpp-python":
        off = False
    if second.cached_len:
        off = False
    if off is None:
        return _check(server, name, None, "the server does not say")
    return _check(
        server,
        name,
        off,
        "off" if off else "on: the benchmark's rules forbid it",
        hint="vllm serve --no-enable-prefix-caching, sglang --disable-radix-cache; to measure "
        "all the same: --set engine.endpoint.preflight=warn",
        is_blocking=exact,
    )


async def _vllm_cache_is_off(client: Client) -> bool | None:
    try:
        text = await client.get("/metrics")
    except ServerFault:
        return None
    found = re.search(r'enable_prefix_caching="(\w+)"', str(text))
    return None if found is None else found[1] == "False"


def _check(
    server: RemoteServer,
    name: str,
    passed: bool | None,
    detail: str,
    *,
    hint: str | None = None,
    is_blocking: bool = True,
) -> Check:
    return Check(
        name=name,
        server=server.client.name,
        passed=passed,
        detail=detail,
        hint=None if passed else hint,
        is_blocking=is_blocking,
    )
