"""An engine's pace: what a step costs, from slices of a measurement, and how long a query takes.

A step makes one token of every live sequence. Its cost is taken as

    step_s + token_s x live sequences + prompt_token_s x prompt tokens that begin in it

which holds for continuous batching wherever reading the weights, the work of a token and the work
of a prompt add up. `fit` finds the three costs, none of them negative, from slices of time with
different numbers of live sequences; `Pace.seconds` plays a query through them, end included, when
few sequences are left and steps are nearly as long as before. Where the tokens of a step are known
to have a limit, prompts wait for room in it: many short answers then take as many steps as their
prompts fill, and most of them end before the last has begun.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Pace", "Slice", "fit", "noise_s", "spread"]

_BLOCKS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """What an engine did in a slice of time: tokens made, prompt tokens of sequences that began,
    and the steps that it took."""

    seconds: float
    tokens: float
    prompt_tokens: float
    steps: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """Costs in seconds, and how many sequences live at once and tokens are in a step, prompts
    and outputs together; None where no limit was met or is known."""

    step_s: float
    token_s: float
    prompt_token_s: float
    max_live: int | None
    step_tokens: int | None = None

    def seconds(self, lengths: Sequence[tuple[int, int]]) -> float:
        """How long requests of (prompt_len, output_len) take that are all submitted at once."""
        waiting = list(reversed(lengths))
        limit = self.max_live or len(lengths)
        # The number of the step with which each live sequence ends.
        ends: list[int] = []
        steps, now_s = 0, 0.0
        while waiting or ends:
            begun, prompt_tokens = self._take_prompts(waiting, limit, len(ends))
            if prompt_tokens:
                now_s += self._step_s(len(ends) + len(begun)) + self.prompt_token_s * prompt_tokens
                steps += 1
                for output_len in begun:  # the step of a prompt makes the first token
                    heapq.heappush(ends, steps + output_len - 1)
            else:
                now_s += (ends[0] - steps) * self._step_s(len(ends))
                steps = ends[0]
            while ends and ends[0] <= steps:
                heapq.heappop(ends)
        return now_s

    def slice_s(self, one: Slice) -> float:
        """How long the work of a slice takes."""
        work_s = self.token_s * one.tokens + self.prompt_token_s * one.prompt_tokens
        return self.step_s * one.steps + work_s

    def _step_s(self, tokens: int) -> float:
        return self.step_s + self.token_s * tokens

    def _take_prompts(
        self, waiting: list[tuple[int, int]], limit: int, live: int
    ) -> tuple[list[int], int]:
        """Prompts that the next step has room for: output_len of each that ends in it, and their
        tokens. What is left of the last one goes on waiting."""
        room = math.inf if self.step_tokens is None else self.step_tokens - live
        begun: list[int] = []
        taken = 0
        while waiting and room > taken and live + len(begun) < limit:
            prompt_len, output_len = waiting.pop()
            if prompt_len > room - taken:
                part = int(room - taken)
                waiting.append((prompt_len - part, output_len))
                return begun, taken + part
            taken += prompt_len
            begun.append(output_len)
        return begun, taken

    def tokens_per_second(self, live: float, *, prompt_len: float, output_len: float) -> float:
        """The steady pace with so many sequences live, each that ends replaced by another."""
        step_s = self.step_s + live * (self.token_s + self.prompt_token_s * prompt_len / output_len)
        return live / step_s if step_s else float("inf")


def fit(slices: Sequence[Slice], *, max_live: int | None, step_tokens: int | None = None) -> Pace:
    """The costs that explain the slices best. Slices in which nothing happened count as well.

    Costs that cannot be told apart, as those of slices with equally many sequences, go to the
    step first, then to the token: a step that is long even for one sequence is the rule.
    """
    seconds = np.array([one.seconds for one in slices])
    columns = np.array([[one.steps, one.tokens, one.prompt_tokens] for one in slices])
    costs = _non_negative(columns, seconds)
    return Pace(
        step_s=float(costs[0]),
        token_s=float(costs[1]),
        prompt_token_s=float(costs[2]),
        max_live=max_live,
        step_tokens=step_tokens,
    )


def spread(
    slices: Sequence[Slice],
    lengths: Sequence[tuple[int, int]],
    *,
    max_live: int | None,
    step_tokens: int | None = None,
) -> float:
    """One standard error of the time of a query as the costs are known, as a fraction of it, by
    leaving blocks out. What the query itself varies by comes on top: see `noise_s`."""
    blocks = min(_BLOCKS, len(slices))
    if blocks < 3:
        return float("nan")
    cuts = np.array_split(np.arange(len(slices)), blocks)
    found = []
    for cut in cuts:
        left = [one for place, one in enumerate(slices) if place not in set(cut.tolist())]
        found.append(fit(left, max_live=max_live, step_tokens=step_tokens).seconds(lengths))
    times = np.array(found)
    mean = float(times.mean())
    variance = (blocks - 1) / blocks * float(((times - mean) ** 2).sum())
    return variance**0.5 / mean if mean else float("nan")


def noise_s(slices: Sequence[Slice], pace: Pace) -> float:
    """How unsteady an engine is: what it takes for work of so many seconds by its pace has this
    much variance for each of them, in seconds. Blocks of slices are looked at, as what slows a
    machine lasts longer than a slice."""
    blocks = min(_BLOCKS, len(slices))
    if blocks < 3:
        return float("nan")
    found = []
    for block in np.array_split(np.arange(len(slices)), blocks):
        held = [slices[place] for place in block]
        expected_s = sum(pace.slice_s(one) for one in held)
        if expected_s > 0:
            found.append((sum(one.seconds for one in held) - expected_s) ** 2 / expected_s)
    return sum(found) / (len(found) - 1) if len(found) > 1 else float("nan")


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
            error = float(((columns[:, kept] / scale[kept] @ found - wanted) ** 2).sum())
            if error < best_error * (1 - 1e-6):
                best_error = error
                best = np.zeros(num_columns)
                best[kept] = found / scale[kept]
    return best
