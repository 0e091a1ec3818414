"""What travels between the head and a process of replicas: samples out, tokens back, in batches.

Token ids of many samples lie end to end in one array with their lengths beside it, so that a
message is a few arrays whatever the number of samples. A sample is known by a number that the
head gives it once; the place says which of the process's replicas it is for or from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from paceline.engines import Completion, EngineState, Request, TokenIds

__all__ = ["Batch", "Failure", "News", "PlaceState", "pack_batch", "pack_news"]

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples for a process: (places, numbers, prompt lengths, limits) and the prompts' tokens.

    `is_streaming`: from now on first tokens are wanted the moment they exist.
    """

    places: Ints
    numbers: Ints
    prompt_lens: Ints
    max_new_tokens: Ints
    min_new_tokens: Ints
    token_ids: TokenIds
    is_streaming: bool

    def requests(self) -> list[tuple[int, Request]]:
        """(place, request) of each; the request's id is the sample's number."""
        prompts = _split(self.token_ids, self.prompt_lens)
        return [
            (int(place), Request(int(number), prompt, int(most), int(least)))
            for place, number, prompt, most, least in zip(
                self.places,
                self.numbers,
                prompts,
                self.max_new_tokens,
                self.min_new_tokens,
                strict=True,
            )
        ]


@dataclass(frozen=True, slots=True)
class Failure:
    """A sample that an engine gave up. `is_input` when no other engine would do better."""

    place: int
    number: int
    message: str
    hint: str | None
    is_input: bool


@dataclass(frozen=True, slots=True)
class PlaceState:
    """How one replica is: tokens made since it began, and its engine, but for its own parts."""

    made: int
    engine: EngineState


@dataclass(frozen=True, slots=True)
class News:
    """What a process's replicas have made since they were last asked."""

    places: Ints
    numbers: Ints
    output_lens: Ints
    token_ids: TokenIds
    reasons: tuple[str, ...]
    first_places: Ints
    first_numbers: Ints
    first_tokens: TokenIds
    failures: tuple[Failure, ...]
    states: tuple[PlaceState, ...]
    cpu_s: float

    def completions(self) -> list[tuple[int, Completion]]:
        """(place, completion) of each answer, in the order they came."""
        outputs = _split(self.token_ids, self.output_lens)
        return [
            (int(place), Completion(int(number), output, reason))
            for place, number, output, reason in zip(
                self.places, self.numbers, outputs, self.reasons, strict=True
            )
        ]

    def firsts(self) -> list[tuple[int, int, int]]:
        """(place, number, token id) of each first token."""
        columns = (self.first_places, self.first_numbers, self.first_tokens)
        return list(zip(*(column.tolist() for column in columns), strict=True))


def pack_batch(requests: Sequence[tuple[int, int, Request]], *, is_streaming: bool) -> Batch:
    """(place, number, request) of each sample, as one message."""
    prompts = [request.token_ids for _, _, request in requests]
    return Batch(
        places=_ints([place for place, _, _ in requests]),
        numbers=_ints([number for _, number, _ in requests]),
        prompt_lens=_ints([len(prompt) for prompt in prompts]),
        max_new_tokens=_ints([request.max_new_tokens for _, _, request in requests]),
        min_new_tokens=_ints([request.min_new_tokens for _, _, request in requests]),
        token_ids=_joined(prompts),
        is_streaming=is_streaming,
    )


def pack_news(
    done: Sequence[tuple[int, Completion]],
    firsts: Sequence[tuple[int, int, int]],
    failures: Sequence[Failure],
    *,
    states: Sequence[PlaceState],
    cpu_s: float,
) -> News:
    """Answers, first tokens (place, number, token id) and failures, as one message."""
    outputs = [completion.token_ids for _, completion in done]
    return News(
        places=_ints([place for place, _ in done]),
        numbers=_ints([completion.request_id for _, completion in done]),
        output_lens=_ints([len(output) for output in outputs]),
        token_ids=_joined(outputs),
        reasons=tuple(completion.finish_reason for _, completion in done),
        first_places=_ints([place for place, _, _ in firsts]),
        first_numbers=_ints([number for _, number, _ in firsts]),
        first_tokens=np.asarray([token for _, _, token in firsts], np.int32),
        failures=tuple(failures),
        states=tuple(states),
        cpu_s=cpu_s,
    )


def _ints(values: Sequence[int]) -> Ints:
    return np.asarray(values, np.int64)


def _joined(arrays: Sequence[TokenIds]) -> TokenIds:
    return np.concatenate(arrays, dtype=np.int32) if arrays else np.empty(0, np.int32)


def _split(flat: TokenIds, lengths: Ints) -> list[Any]:
    return np.split(flat, np.cumsum(lengths)[:-1]) if len(lengths) else []
