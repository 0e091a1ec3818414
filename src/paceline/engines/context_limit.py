"""How long a sample may be for an engine: its prompt, and the most that its answer may have.

A checkpoint's positions limit it, a cache of a given size, or a server's flag. Settings that know
their limit before anything is loaded have `context_limit(stored_len)`, which takes the positions
of the checkpoint, None where they are not known, and gives a ContextLimit, or None where only the
started engine can tell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from paceline.errors import InputError

__all__ = ["ContextLimit", "refuse_longest", "refuse_samples", "stored_limit"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ContextLimit:
    """Most `tokens` of a prompt and its answer together.

    `said` names what limits them; `mend` says how to have room for a number of tokens.
    """

    tokens: int
    said: str
    mend: Callable[[int], str]


def stored_limit(stored_len: int | None) -> ContextLimit | None:
    """The limit that the checkpoint's own positions are."""
    if stored_len is None:
        return None
    return ContextLimit(
        tokens=stored_len,
        said="the checkpoint's context",
        mend=lambda need: (
            f"--model PATH of a checkpoint with a context of {need} tokens or more, "
            "or --data FILE with shorter prompts"
        ),
    )


def refuse_samples(limit: ContextLimit, prompt_lens: Sequence[int], max_new_tokens: int) -> None:
    """Raise InputError, with how many samples are too long, unless all of them fit."""
    num_long = sum(prompt_len + max_new_tokens > limit.tokens for prompt_len in prompt_lens)
    if num_long:
        count = f"{num_long} of {len(prompt_lens)} samples"
        raise _too_long(limit, count, max(prompt_lens), max_new_tokens)


def refuse_longest(limit: ContextLimit, longest_prompt_len: int, max_new_tokens: int) -> None:
    """Raise InputError unless a sample with the longest prompt fits."""
    if longest_prompt_len + max_new_tokens > limit.tokens:
        raise _too_long(limit, "some samples", longest_prompt_len, max_new_tokens)


def _too_long(
    limit: ContextLimit, count: str, longest_prompt_len: int, max_new_tokens: int
) -> InputError:
    need = longest_prompt_len + max_new_tokens
    return InputError(
        f"Too long for the engine: {count}; the longest prompt has {longest_prompt_len} tokens and "
        f"its answer up to {max_new_tokens}, {need} together, and {limit.said} is {limit.tokens}.",
        hint=limit.mend(need),
    )
