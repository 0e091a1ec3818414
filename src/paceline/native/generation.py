"""What goes into the engine and what comes out, in token ids."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

__all__ = ["GenRequest", "GenResult"]


@dataclass(frozen=True, kw_only=True, slots=True)
class GenRequest:
    """A prompt and its limits, in tokens. `ignore_eos` runs to `max_new_tokens` whatever comes."""

    request_id: int
    token_ids: SequenceOf[int]
    max_new_tokens: int
    min_new_tokens: int = 1
    ignore_eos: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class GenResult:
    """What a request produced. `token_ids` holds the end-of-sequence id once if it came.

    `finish_reason` is "stop" (end of sequence) or "length". Times are of the host's monotonic
    clock: when the first id, and when the last, was in the host's hands.
    """

    request_id: int
    token_ids: list[int]
    finish_reason: str
    first_token_ns: int
    done_ns: int
