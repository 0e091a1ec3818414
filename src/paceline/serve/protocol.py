"""The body of POST /v1/completions: JSON in, a checked CompletionRequest out.

Nothing in a body is ignored. A key means what OpenAI and vLLM say it means and is heeded, or it
holds a value that changes nothing in greedy decoding and is accepted, or the answer is a 400 that
names it. NEUTRAL is the table of the second kind: clients of vLLM, SGLang and llama.cpp send
these with their defaults.

Source of the keys: OpenAI's "Create completion"; vLLM's CompletionRequest
(vllm/entrypoints/openai), whose `return_token_ids`, `min_tokens` and `add_special_tokens` are
heeded.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["NEUTRAL", "ApiError", "CompletionRequest", "parse_completion"]

_DEFAULT_MAX_TOKENS = 16


class ApiError(Exception):
    """An answer that is an OpenAI error object: a status, a sentence, and the key it is about."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s

    def as_json(self) -> dict[str, Any]:
        kinds = {404: "not_found_error", 429: "rate_limit_error", 401: "authentication_error"}
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": self.message,
                "type": kinds.get(self.status, kind),
                "param": self.param,
                "code": self.code,
            }
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class CompletionRequest:
    """A body that can be served. `prompts` are texts or token ids; limits are in tokens."""

    model: str | None
    prompts: tuple[str | list[int], ...]
    max_tokens: int
    min_tokens: int
    stop: tuple[str, ...]
    is_streaming: bool
    include_usage: bool
    return_token_ids: bool
    echo: bool
    add_special_tokens: bool
    has_temperature: bool


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _one_of(*values: Any) -> Callable[[Any], bool]:
    # Compared with the type, as 1 == True.
    kinds = {(type(value), value) for value in values}
    return lambda value: (type(value), value) in kinds


def _is_empty(value: Any) -> bool:
    return isinstance(value, list | dict) and not value


def _nothing(value: Any) -> bool:
    del value
    return False


def _anything(value: Any) -> bool:
    del value
    return True


def _is_text_format(value: Any) -> bool:
    return bool(value == {"type": "text"})


# Keys with the values that change nothing here; null always does. What else they hold is refused.
NEUTRAL: dict[str, Callable[[Any], bool]] = {
    "allowed_token_ids": _is_empty,
    "bad_words": _is_empty,
    "best_of": _one_of(1),
    "cache_prompt": _one_of(False),  # llama.cpp: no prompt's cache is ever reused here
    "cache_salt": _anything,  # as above
    "detokenize": _one_of(True),
    "frequency_penalty": _one_of(0, 0.0),
    "ignore_eos": _one_of(False),
    "include_stop_str_in_output": _one_of(False),
    "length_penalty": _one_of(1, 1.0),
    "logit_bias": _is_empty,
    "logprobs": _nothing,
    "min_p": _is_number,  # the best token passes every such filter: greedy stays greedy
    "n": _one_of(1),
    "presence_penalty": _one_of(0, 0.0),
    "priority": _one_of(0),
    "prompt_logprobs": _nothing,
    "repetition_penalty": _one_of(1, 1.0),
    "request_id": _anything,
    "response_format": _is_text_format,
    "return_tokens_as_token_ids": _one_of(False),
    "seed": _is_number,  # greedy decoding draws nothing
    "skip_special_tokens": _one_of(True),
    "spaces_between_special_tokens": _one_of(True),
    "stop_token_ids": _is_empty,
    "suffix": _one_of(""),
    "top_k": _is_number,
    "top_p": _is_number,
    "truncate_prompt_tokens": _nothing,
    "use_beam_search": _one_of(False),
    "user": _anything,
}
_HEEDED = (
    "add_special_tokens",
    "echo",
    "max_tokens",
    "min_tokens",
    "model",
    "prompt",
    "return_token_ids",
    "stop",
    "stream",
    "stream_options",
    "temperature",
)


def parse_completion(body: bytes) -> CompletionRequest:
    """The request of a body. Raises ApiError (400) with the key that is wrong."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"The body is not JSON: {error}.", code="invalid_json") from None
    if not isinstance(fields, dict):
        raise ApiError(400, "The body must be a JSON object.", code="invalid_json")
    _refuse_unserved(fields)
    given = {name: value for name, value in fields.items() if value is not None}
    max_tokens = _count(given, "max_tokens", _DEFAULT_MAX_TOKENS, low=1)
    min_tokens = _count(given, "min_tokens", 0, low=0)
    if min_tokens > max_tokens:
        raise ApiError(
            400, f"min_tokens {min_tokens} is above max_tokens {max_tokens}.", param="min_tokens"
        )
    is_streaming = _flag(given, "stream", False)
    return CompletionRequest(
        model=_model(given),
        prompts=_prompts(given),
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        stop=_stop(given),
        is_streaming=is_streaming,
        include_usage=_include_usage(given, is_streaming),
        return_token_ids=_flag(given, "return_token_ids", False),
        echo=_flag(given, "echo", False),
        add_special_tokens=_flag(given, "add_special_tokens", True),
        has_temperature=_has_temperature(given),
    )


def _refuse_unserved(fields: Mapping[str, Any]) -> None:
    for name, value in fields.items():
        if name in _HEEDED or value is None:
            if name not in _HEEDED and name not in NEUTRAL:
                raise _unknown(name)
            continue
        if name not in NEUTRAL:
            raise _unknown(name)
        if not NEUTRAL[name](value):
            raise ApiError(
                400,
                f"{name} = {json.dumps(value)[:80]} is not supported: this server decodes greedily "
                "and gives one plain completion a prompt.",
                param=name,
                code="unsupported_value",
            )


def _unknown(name: str) -> ApiError:
    close = difflib.get_close_matches(name, [*_HEEDED, *NEUTRAL], n=1)
    guess = f" Did you mean '{close[0]}'?" if close else ""
    return ApiError(
        400, f"There is no key '{name[:80]}'.{guess}", param=name[:80], code="unknown_parameter"
    )


def _flag(given: Mapping[str, Any], name: str, default: bool) -> bool:
    value = given.get(name, default)
    if not isinstance(value, bool):
        raise ApiError(400, f"{name} must be true or false.", param=name)
    return value


def _count(given: Mapping[str, Any], name: str, default: int, *, low: int) -> int:
    value = given.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ApiError(400, f"{name} must be a whole number of {low} or more.", param=name)
    return value


def _model(given: Mapping[str, Any]) -> str | None:
    model = given.get("model")
    if model is not None and not isinstance(model, str):
        raise ApiError(400, "model must be a text.", param="model")
    return model


def _prompts(given: Mapping[str, Any]) -> tuple[str | list[int], ...]:
    prompt = given.get("prompt")
    if isinstance(prompt, str):
        return (prompt,)
    if isinstance(prompt, list) and prompt:
        if all(type(item) is int for item in prompt):
            return (prompt,)
        if all(isinstance(item, str) for item in prompt):
            return tuple(prompt)
        if all(
            isinstance(item, list) and item and all(type(one) is int for one in item)
            for item in prompt
        ):
            return tuple(prompt)
    raise ApiError(
        400,
        "prompt must be a text, a list of texts, a list of token ids or a list of such lists; "
        "none of the lists may be empty.",
        param="prompt",
    )


def _stop(given: Mapping[str, Any]) -> tuple[str, ...]:
    stop = given.get("stop", [])
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or not all(isinstance(one, str) and one for one in stops):
        raise ApiError(400, "stop must be a text or a list of texts, none empty.", param="stop")
    return tuple(stops)


def _include_usage(given: Mapping[str, Any], is_streaming: bool) -> bool:
    options = given.get("stream_options")
    if options is None:
        return False
    if not is_streaming:
        raise ApiError(400, "stream_options needs stream = true.", param="stream_options")
    if not isinstance(options, dict):
        raise ApiError(400, "stream_options must be an object.", param="stream_options")
    for name, value in options.items():
        if name == "include_usage" or (name == "continuous_usage_stats" and value is False):
            continue
        raise ApiError(
            400,
            f"stream_options.{name[:80]} is not supported; include_usage is.",
            param="stream_options",
        )
    return _flag(options, "include_usage", False)


def _has_temperature(given: Mapping[str, Any]) -> bool:
    if "temperature" not in given:
        return False
    value = given["temperature"]
    if not _is_number(value) or value != 0:
        raise ApiError(
            400,
            f"temperature = {json.dumps(value)[:80]} is not supported: this server decodes "
            "greedily; send 0.",
            param="temperature",
            code="unsupported_value",
        )
    return True
