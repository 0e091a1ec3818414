"""Generations as OpenAI's JSON: whole, or in parts as server-sent events.

The extra fields are vLLM's: `token_ids` and `prompt_token_ids` of a choice (`return_token_ids`),
`stop_reason`, the stop text that ended it. A part carries the text and the ids that came since
the last; text waits for whole characters, ids do not.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from paceline.mlperf.tokenizer import TextTokenizer
from paceline.serve.detokenize import Detokenizer, StopFinder
from paceline.serve.dispatch import Dispatcher, Generation
from paceline.serve.protocol import CompletionRequest

__all__ = ["Answer", "Reply", "encoded", "event"]


def event(value: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + encoded(value) + b"\n\n"


def encoded(value: Any) -> bytes:
    """Compact JSON in ASCII."""
    return json.dumps(value, separators=(",", ":")).encode()


class Answer:
    """One choice: what its generation made so far, as text and ids, cut at a stop text."""

    def __init__(
        self,
        generation: Generation,
        *,
        stops: Sequence[str],
        tokenizer: TextTokenizer | None,
        echo: str,
    ) -> None:
        self.generation = generation
        self.num_tokens = 0
        self.finish_reason: str | None = None
        self.stop_reason: str | None = None
        self._tokenizer = tokenizer
        self._detokenizer = Detokenizer(tokenizer) if tokenizer is not None else None
        self._finder = StopFinder(stops)
        self._has_stops = bool(stops)
        self._pending = echo

    @property
    def is_over(self) -> bool:
        return self.finish_reason is not None

    def advance(self, dispatcher: Dispatcher) -> tuple[str, list[int]]:
        """The text and the ids that came since the last call."""
        generation = self.generation
        fresh = generation.token_ids[self.num_tokens :]
        text, self._pending = self._pending, ""
        if self._has_stops:
            for count, token_id in enumerate(fresh, start=1):
                text += self._text([token_id])
                if self._finder.found is not None:
                    self.num_tokens += count
                    self._stop(dispatcher)
                    return text, fresh[:count]
        elif fresh:
            text += self._text(fresh)
        self.num_tokens += len(fresh)
        if generation.finish_reason is not None:
            text += self._rest()
            if self._finder.found is not None:
                self._stop(dispatcher)
            else:
                self.finish_reason = generation.finish_reason
        return text, fresh

    def _text(self, token_ids: Sequence[int]) -> str:
        if self._detokenizer is None:
            return ""
        return self._finder.add(self._detokenizer.add(token_ids))

    def _rest(self) -> str:
        if self._detokenizer is None:
            return ""
        text = self._finder.add(self._detokenizer.flush())
        return text if self._finder.found is not None else text + self._finder.flush()

    def _stop(self, dispatcher: Dispatcher) -> None:
        self.finish_reason = "stop"
        self.stop_reason = self._finder.found
        del self.generation.token_ids[self.num_tokens :]
        self.generation.finish_reason = "stop"
        dispatcher.leave(self.generation, "stop")


class Reply:
    """The JSON around the choices of one request."""

    def __init__(self, request: CompletionRequest, model: str) -> None:
        self._request = request
        self._head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, answers: Sequence[Answer], texts: Sequence[str]) -> bytes:
        choices = [
            self._choice(
                index, answer, text=text, token_ids=answer.generation.token_ids, whole=True
            )
            for index, (answer, text) in enumerate(zip(answers, texts, strict=True))
        ]
        return encoded({**self._head, "choices": choices, "usage": _usage(answers)})

    def part(self, index: int, answer: Answer, *, text: str, token_ids: list[int]) -> bytes:
        """An event with what came; the first of a choice carries its prompt's ids."""
        is_first = len(token_ids) == answer.num_tokens
        choice = self._choice(index, answer, text=text, token_ids=token_ids, whole=is_first)
        extra = {"usage": None} if self._request.include_usage else {}
        return event({**self._head, "choices": [choice], **extra})

    def last(self, answers: Sequence[Answer]) -> bytes:
        """The events after the choices."""
        usage = b""
        if self._request.include_usage:
            usage = event({**self._head, "choices": [], "usage": _usage(answers)})
        return usage + b"data: [DONE]\n\n"

    def _choice(
        self, index: int, answer: Answer, *, text: str, token_ids: list[int], whole: bool
    ) -> dict[str, Any]:
        choice = {
            "index": index,
            "text": text,
            "logprobs": None,
            "finish_reason": answer.finish_reason,
            "stop_reason": answer.stop_reason,
        }
        if self._request.return_token_ids:
            choice["token_ids"] = token_ids
            choice["prompt_token_ids"] = answer.generation.prompt_ids if whole else None
        return choice


def _usage(answers: Iterable[Answer]) -> dict[str, int]:
    prompt = sum(len(answer.generation.prompt_ids) for answer in answers)
    made = sum(len(answer.generation.token_ids) for answer in answers)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": made,
        "total_tokens": prompt + made,
    }
