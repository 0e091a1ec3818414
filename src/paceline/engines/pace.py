"""An engine's pace: what a step costs, from slices of a measurement, and how long a query takes.

A step makes one token of every live sequence. Its cost is taken as

    step_s + token_s x live sequences + context_token_s x tokens of their contexts
           + prompt_token_s x prompt tokens that begin in it
           + prompt_context_token_s x tokens before each of those in its prompt

which holds for continuous batching wherever reading the weights, the work of a token, reading the
keys and values before it and the work of a prompt add up. `fit` finds the costs, none of them
negative, from slices of time with different numbers of live sequences; `Pace.seconds` plays a query
through them. Its contexts are longer than those of a short measurement, whose answers have not got
far; and at its end few sequences are left, with steps nearly as long as before. Where the tokens
of a step are known to have a limit, prompts wait for room in it: many short answers then take as
many steps as their prompts fill, and most of them end before the last has begun.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Pace", "Slice", "before", "fit", "noise_s", "spread"]

_BLOCKS = 8
# Of the columns of a fit, those that are always there, and others that may be.
_ALWAYS, _EXTRA, _ENOUGH_F = 3, ((), (3,), (4,), (3, 4)), 4.0
_SHORTEST_S = 1e-6


class _Prompt(NamedTuple):
    """A prompt that waits, and how much of it was not computed yet."""

    prompt_len: int
    output_len: int
    left: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """What an engine did in a slice of time: tokens made, prompt tokens of sequences that began,
    the steps that it took, and the tokens that stood before each token made, and before each token
    of those prompts, summed over them."""

    seconds: float
    tokens: float
    prompt_tokens: float
    steps: float
    context_tokens: float = 0.0
    prompt_context_tokens: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """Costs in seconds, and how many sequences live at once, tokens are in a step, and tokens are
    in the cache, prompts and outputs together; None where no limit was met or is known."""

    step_s: float
    token_s: float
    prompt_token_s: float
    max_live: int | None
    step_tokens: int | None = None
    context_token_s: float = 0.0
    prompt_context_token_s: float = 0.0
    cache_tokens: int | None = None

    def seconds(self, lengths: Sequence[tuple[int, int]]) -> float:
        """How long requests of (prompt_len, output_len) take that are all submitted at once."""
        waiting = [_Prompt(*one, left=one[0]) for one in reversed(lengths)]
        limit = self.max_live or len(lengths)
        # Of each live sequence the number of the step with which it ends, and its context then.
        ends: list[tuple[int, int]] = []
        steps, context, now_s = 0, 0, 0.0
        while waiting or ends:
            begun, prompt_tokens = self._take_prompts(waiting, limit, len(ends), context)
            count = 1 if prompt_tokens else ends[0][0] - steps
            now_s += count * self._step_s(len(ends) + len(begun))
            now_s += self.prompt_token_s * prompt_tokens
            # A context is longer by a token after each of the steps.
            grown = len(ends) * count
            now_s += self.context_token_s * (context * count + grown * (count - 1) / 2)
            steps, context = steps + count, context + grown
            for prompt_len, output_len in begun:  # the step of a prompt makes the first token
                now_s += self.prompt_context_token_s * before(prompt_len)
                heapq.heappush(ends, (steps + output_len - 1, prompt_len + output_len - 1))
                context += prompt_len
            while ends and ends[0][0] <= steps:
                context -= heapq.heappop(ends)[1]
        return now_s

    def slice_s(self, one: Slice) -> float:
        """How long the work of a slice takes."""
        prompts_s = self.prompt_token_s * one.prompt_tokens
        prompts_s += self.prompt_context_token_s * one.prompt_context_tokens
        tokens_s = self.token_s * one.tokens + self.context_token_s * one.context_tokens
        return self.step_s * one.steps + tokens_s + prompts_s

    def prompt_s(self, prompt_len: int) -> float:
        """What a prompt costs, without the steps that it is computed in."""
        tokens_s = self.prompt_token_s * prompt_len
        return tokens_s + self.prompt_context_token_s * before(prompt_len)

    def _step_s(self, tokens: int) -> float:
        return self.step_s + self.token_s * tokens

    def _take_prompts(
        self, waiting: list[_Prompt], limit: int, live: int, context: int
    ) -> tuple[list[tuple[int, int]], int]:
        """Prompts that the next step and the cache have room for: (prompt_len, output_len) of each
        that ends in it, and the tokens taken. What is left of the last one goes on waiting. One
        that the cache never has room for alone is taken when nothing else lives."""
        room = math.inf if self.step_tokens is None else self.step_tokens - live
        cache = math.inf if self.cache_tokens is None else self.cache_tokens - context - live
        begun: list[tuple[int, int]] = []
        taken = 0
        while waiting and room > taken and live + len(begun) < limit:
            one = waiting[-1]
            cache -= one.prompt_len
            if cache < 0 and live + len(begun) > 0:
                break
            if one.left > room - taken:
                part = int(room - taken)
                waiting[-1] = one._replace(left=one.left - part)
                return begun, taken + part
            waiting.pop()
            taken += one.left
            begun.append((one.prompt_len, one.output_len))
        return begun, taken


def _contexts(one: Slice) -> tuple[float, float]:
    return one.context_tokens, one.prompt_context_tokens


def before(prompt_len: float) -> float:
    """How many tokens stand before each token of a prompt, summed over them."""
    return prompt_len * (prompt_len - 1) / 2


def fit(
    slices: Sequence[Slice],
    *,
    max_live: int | None,
    step_tokens: int | None = None,
    cache_tokens: int | None = None,
) -> Pace:
    """The costs that explain the slices best. Slices in which nothing happened count as well.

    Costs that cannot be told apart, as those of slices with equally many sequences, go to the
    step first, then to the token: a step that is long even for one sequence is the rule. What
    stands before a token costs something only where that explains more of what the slices took than
    chance would (an F of 4): the cost is carried on to contexts that were not seen. What makes a
    slice longer or shorter grows with the root of its length, as sums do, and slices count by that.
    """
    seconds = np.array([one.seconds for one in slices])
    columns = np.array(
        [(one.steps, one.tokens, one.prompt_tokens, *_contexts(one)) for one in slices]
    )
    weights = 1 / np.sqrt(np.maximum(seconds, _SHORTEST_S))
    columns, seconds = columns * weights[:, None], seconds * weights
    penalty = 1 + _ENOUGH_F / max(1, len(slices) - columns.shape[1])
    costs, least = np.zeros(columns.shape[1]), math.inf
    for extra in _EXTRA:
        kept = columns * [place < _ALWAYS or place in extra for place in range(columns.shape[1])]
        found = _non_negative(kept, seconds)
        left_over = _left_over(kept, found, seconds) * penalty ** len(extra)
        if left_over < least:
            costs, least = found, left_over
    return Pace(
        step_s=float(costs[0]),
        token_s=float(costs[1]),
        prompt_token_s=float(costs[2]),
        context_token_s=float(costs[3]),
        prompt_context_token_s=float(costs[4]),
        max_live=max_live,
        step_tokens=step_tokens,
        cache_tokens=cache_tokens,
    )


def spread(
    slices: Sequence[Slice],
    lengths: Sequence[tuple[int, int]],
    *,
    max_live: int | None,
    step_tokens: int | None = None,
    cache_tokens: int | None = None,
) -> float:
    """One standard error of the time of a query as the costs are known, as a fraction of it, by
    leaving parts out, each of which has slices of all the time. What the query itself varies by
    comes on top: see `noise_s`."""
    blocks = min(_BLOCKS, len(slices))
    if blocks < 3:
        return float("nan")
    found = []
    for part in range(blocks):
        left = [one for place, one in enumerate(slices) if place % blocks != part]
        fitted = fit(left, max_live=max_live, step_tokens=step_tokens, cache_tokens=cache_tokens)
        found.append(fitted.seconds(lengths))
    times = np.array(found)
    mean = float(times.mean())
    variance = (blocks - 1) / blocks * float(((times - mean) ** 2).sum())
    return variance**0.5 / mean if mean else float("nan")


def noise_s(slices: Sequence[Slice], pace: Pace) -> float:
    """How unsteady an engine is: what it takes for work of so many seconds by its pace has this
    much variance for each of them, in seconds. Blocks of slices are looked at, equally long ones,
    as what slows a machine lasts longer than a slice."""
    blocks = min(_BLOCKS, len(slices))
    if blocks < 3:
        return float("nan")
    seconds = np.array([one.seconds for one in slices])
    middles = np.cumsum(seconds) - seconds / 2
    places = (blocks * middles / seconds.sum()).astype(int)
    found = []
    for block in range(blocks):
        held = [one for one, place in zip(slices, places, strict=True) if place == block]
        expected_s = sum(pace.slice_s(one) for one in held)
        if expected_s > 0:
            found.append((sum(one.seconds for one in held) - expected_s) ** 2 / expected_s)
    return sum(found) / (len(found) - 1) if len(found) > 1 else float("nan")


def _left_over(
    columns: NDArray[np.float64], costs: NDArray[np.float64], wanted: NDArray[np.float64]
) -> float:
    """The sum of the squares of what costs leave unexplained."""
    return float(((columns @ costs - wanted) ** 2).sum())


def _non_negative(columns: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.float64]:
    """Least squares without negative costs: the best of the choices of columns that has none.

    Among choices that explain equally much the one with the fewest columns is kept.
    """
    scale = np.abs(columns).max(axis=0)
    num_columns = columns.shape[1]
    best, best_error = np.zeros(num_columns), float((wanted**2).sum())
    for size in range(1, num_columns + 1):
        for chosen in itertools.combinations(range(num_columns), size):
            kept = list(chosen)
            if not scale[kept].all():
                continue
            found, *_ = np.linalg.lstsq(columns[:, kept] / scale[kept], wanted, rcond=None)
            if (found < 0).any():
                continue
            error = _left_over(columns[:, kept] / scale[kept], found, wanted)
            if error < best_error * (1 - 1e-6):
                best_error = error
                best = np.zeros(num_columns)
                best[kept] = found / scale[kept]
    return best
