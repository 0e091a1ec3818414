"""What each kind of server is asked, and where in its answer the token ids are.

    SERVERS[kind]      what is known of a kind of server: how it shows itself, its dialects
    dialect.body(...)  a request in that dialect, as JSON can carry it
    dialect.read(...)  one answer, or one chunk of a streamed one, as a Piece
    gather(pieces)     the chunks of one answer, put together

A kind may speak several dialects; the preflight takes the first that gives token ids. Only a
dialect whose prompt and answer are ids is exact: text that is tokenised again can give other ids
than the model saw or chose.

Sources: request and response fields as of vLLM vllm/entrypoints/openai/completion/protocol.py
(002032ee); SGLang python/sglang/srt/entrypoints/openai/protocol.py (004c82e0) and its native
/generate; TensorRT-LLM tensorrt_llm/serve/openai_protocol.py (0076e939), which refuses keys that
it does not know; llama.cpp tools/server (25d5b0c5), POST /completion with return_tokens;
llama-cpp-python 0.3.36 llama_cpp/server/types.py, whose prompt is text only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from paceline.engines import TokenIds

__all__ = [
    "DIALECTS",
    "SERVERS",
    "Ask",
    "Dialect",
    "Piece",
    "ServerKind",
    "gather",
    "kind_of",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """One request, free of any dialect. `prompt` holds ids, or text where only text is taken."""

    model: str
    prompt: TokenIds | list[int] | str
    max_new_tokens: int
    min_new_tokens: int
    stream: bool = False
    force_token: int | None = None


@dataclass(slots=True)
class Piece:
    """A whole answer or a chunk of one; None is what was not said.

    `stop_token` is what ended the output, if the server names something other than its EOS.
    """

    token_ids: list[int] | None = None
    text: str = ""
    finish: str | None = None
    stop_token: int | str | None = None
    prompt_len: int | None = None
    output_len: int | None = None
    cached_len: int | None = None
    prompt_ids: list[int] | None = None
    model: str | None = None
    error: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Dialect:
    """How to talk to a server. `is_cumulative`: each chunk repeats what came before it."""

    name: str
    path: str
    body: Callable[[Ask], dict[str, Any]]
    read: Callable[[Any], Piece]
    takes_ids: bool = True
    gives_ids: bool = True
    is_cumulative: bool = False

    @property
    def is_exact(self) -> bool:
        """Whether prompts and answers are ids, so that nothing is tokenised twice."""
        return self.takes_ids and self.gives_ids


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerKind:
    """A kind of server: its mark in /v1/models, dialects by preference, where its version is.

    `extra` goes into every request: what makes greedy decoding certain, or turns a cache off.
    `is_serial`: it answers one request at a time, and breaks off a stream when another one comes.
    """

    owned_by: str
    dialects: tuple[str, ...]
    version_paths: tuple[str, ...] = ("/version",)
    extra: dict[str, Any] = field(default_factory=dict)
    is_serial: bool = False


def _completions(ask: Ask) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": ask.model,
        "prompt": ask.prompt,
        "max_tokens": ask.max_new_tokens,
        "min_tokens": ask.min_new_tokens,
        "temperature": 0.0,
        "top_p": 1.0,
    }
    if ask.stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    if ask.force_token is not None:
        body["logit_bias"] = {str(ask.force_token): 100}
    return body


def _with_ids(ask: Ask) -> dict[str, Any]:
    return _completions(ask) | {"return_token_ids": True}


def _without_text(ask: Ask) -> dict[str, Any]:
    return _completions(ask) | {"detokenize": False}


def _generate(ask: Ask) -> dict[str, Any]:
    return {
        "input_ids": ask.prompt,
        "stream": ask.stream,
        "sampling_params": {
            "temperature": 0.0,
            "top_p": 1.0,
            "max_new_tokens": ask.max_new_tokens,
            "min_new_tokens": ask.min_new_tokens,
        },
    }


def _native_completion(ask: Ask) -> dict[str, Any]:
    body: dict[str, Any] = {
        "prompt": ask.prompt,
        "n_predict": ask.max_new_tokens,
        "temperature": 0.0,
        "top_p": 1.0,
        "min_p": 0.0,
        "repeat_penalty": 1.0,
        "return_tokens": True,
        "cache_prompt": False,
        "stream": ask.stream,
    }
    if ask.force_token is not None:
        body["logit_bias"] = [[ask.force_token, 100]]
    return body


def _read_openai(answer: Any) -> Piece:
    piece = Piece(model=answer.get("model"), error=_error_of(answer))
    usage = answer.get("usage")
    if usage:
        piece.prompt_len = usage.get("prompt_tokens")
        piece.output_len = usage.get("completion_tokens")
        piece.cached_len = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    choices = answer.get("choices")
    if choices:
        choice = choices[0]
        piece.token_ids = choice.get("token_ids")
        piece.prompt_ids = choice.get("prompt_token_ids")
        piece.text = choice.get("text") or ""
        piece.finish = choice.get("finish_reason")
        stop = choice.get("stop_reason")
        piece.stop_token = choice.get("matched_stop") if stop is None else stop
    return piece


def _read_generate(answer: Any) -> Piece:
    meta = answer.get("meta_info") or {}
    finish = meta.get("finish_reason") or {}
    return Piece(
        token_ids=answer.get("output_ids"),
        text=answer.get("text") or "",
        finish=finish.get("type"),
        stop_token=finish.get("matched"),
        prompt_len=meta.get("prompt_tokens"),
        output_len=meta.get("completion_tokens"),
        cached_len=meta.get("cached_tokens"),
        error=_error_of(answer),
    )


def _read_native_completion(answer: Any) -> Piece:
    finish = None
    if answer.get("stop"):
        finish = {"eos": "stop", "limit": "length"}.get(answer.get("stop_type"), "stop")
    return Piece(
        token_ids=answer.get("tokens"),
        text=answer.get("content") or "",
        finish=finish,
        stop_token=answer.get("stopping_word") or None,
        prompt_len=answer.get("tokens_evaluated") if finish else None,
        output_len=answer.get("tokens_predicted") if finish else None,
        error=_error_of(answer),
    )


def _error_of(answer: Any) -> str | None:
    error = answer.get("error")
    if error is None:
        return None
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)


def gather(pieces: Sequence[Piece], *, is_cumulative: bool) -> Piece:
    """The chunks of one streamed answer as one answer."""
    whole = Piece()
    texts: list[str] = []
    for piece in pieces:
        if piece.token_ids is not None:
            if is_cumulative or whole.token_ids is None:
                whole.token_ids = []
            whole.token_ids.extend(piece.token_ids)
        texts = [piece.text] if is_cumulative and piece.text else [*texts, piece.text]
        for name in ("finish", "stop_token", "prompt_len", "output_len", "cached_len", "model"):
            value = getattr(piece, name)
            if value is not None:
                setattr(whole, name, value)
        whole.prompt_ids = whole.prompt_ids or piece.prompt_ids
        whole.error = whole.error or piece.error
    whole.text = "".join(texts)
    return whole


_COMPLETIONS = "/v1/completions"

DIALECTS: dict[str, Dialect] = {
    dialect.name: dialect
    for dialect in (
        Dialect(name="token-ids", path=_COMPLETIONS, body=_with_ids, read=_read_openai),
        Dialect(name="detokenize-off", path=_COMPLETIONS, body=_without_text, read=_read_openai),
        Dialect(
            name="generate",
            path="/generate",
            body=_generate,
            read=_read_generate,
            is_cumulative=True,
        ),
        Dialect(
            name="return-tokens",
            path="/completion",
            body=_native_completion,
            read=_read_native_completion,
        ),
        Dialect(
            name="text-out",
            path=_COMPLETIONS,
            body=_completions,
            read=_read_openai,
            gives_ids=False,
        ),
        Dialect(
            name="text-only",
            path=_COMPLETIONS,
            body=_completions,
            read=_read_openai,
            takes_ids=False,
            gives_ids=False,
        ),
    )
}

# Without these a model's generation_config.json could bring a penalty along.
_NO_PENALTY = {"repetition_penalty": 1.0}
_TEXT = ("text-out", "text-only")

SERVERS: dict[str, ServerKind] = {
    "paceline": ServerKind(owned_by="paceline", dialects=("token-ids",)),
    "vllm": ServerKind(owned_by="vllm", dialects=("token-ids", *_TEXT), extra=_NO_PENALTY),
    "sglang": ServerKind(
        owned_by="sglang",
        dialects=("token-ids", "generate", *_TEXT),
        version_paths=("/server_info", "/get_server_info"),
    ),
    "trtllm": ServerKind(
        owned_by="tensorrt_llm", dialects=("detokenize-off", *_TEXT), extra=_NO_PENALTY
    ),
    "llamacpp": ServerKind(
        owned_by="llamacpp", dialects=("return-tokens", *_TEXT), version_paths=("/props",)
    ),
    "llama-cpp-python": ServerKind(
        owned_by="me",
        dialects=("text-only",),
        version_paths=(),
        extra={"repeat_penalty": 1.0, "min_p": 0.0},
        is_serial=True,
    ),
    "openai": ServerKind(owned_by="", dialects=("token-ids", *_TEXT)),
}


def kind_of(owned_by: str | None) -> str:
    """The kind of server that signs its models so; "openai" for one that is not known."""
    for name, kind in SERVERS.items():
        if kind.owned_by and kind.owned_by == owned_by:
            return name
    return "openai"
