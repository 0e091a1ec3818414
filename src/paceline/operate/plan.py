"""Whether the model fits on the cards that are here, and how the run could be laid out on them.

The expected speed is a rule of thumb: what the best published submission made of each card. A
run's own speed comes from `paceline forecast`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from paceline.mlperf.published import PublishedResult, best_of
from paceline.mlperf.rules import benchmark
from paceline.models.describe import (
    PACKED,
    Precision,
    live_sequences,
    stored_precision,
    weight_bytes,
)
from paceline.models.layout import Model, read_model
from paceline.operate.cards import cards_needed, wants_cards
from paceline.operate.finding import Finding, blocker, fine, warning
from paceline.operate.subject import Asked
from paceline.submission.system_parse import size_text

__all__ = ["Placed", "fit_findings", "make_plan", "placed"]

_BENCHMARK = "llama2-70b-99.9"
_LLAMA2_70B = Model(
    num_layers=80,
    hidden=8192,
    inner=28672,
    num_heads=64,
    num_kv_heads=8,
    head_size=128,
    vocabulary=32000,
    tied=False,
    dtype="float16",
    layout=None,
    format=None,
    group_len=0,
    has_fixed_inputs=False,
    is_kv_fp8=False,
)
# Mean length of a live sequence of OpenOrca: a prompt of 290 tokens and 200 of its answer.
_CONTEXT_TOKENS = 490
# Sequences that a step needs to be worth its weights.
_ENOUGH_LIVE, _FEW_LIVE = 256, 64
_SIXTEEN, _FP8 = Precision("16 bit", 16.0, 16), Precision("fp8", 8.0, 8)
_GROUPS = (1, 2, 4, 8)
_WITH_FP8 = ("H100", "H200", "B200", "B300", "L40", "RTX PRO", "Ada", "4090", "MI3")


@dataclass(frozen=True, kw_only=True, slots=True)
class Placed:
    """A model, the cards here and the precision that the run would have on them.

    The precision is assumed where the checkpoint decides it and none is named.
    """

    model: Model
    cards: tuple[tuple[str, int], ...]
    precision: Precision
    is_assumed: bool

    def live(self, group: int) -> int:
        """Sequences that live at once in one copy over the first `group` cards."""
        memory = [size for _, size in self.cards[:group]]
        return live_sequences(self.model, memory, self.precision, context_tokens=_CONTEXT_TOKENS)


def placed(asked: Asked | None, cards: Sequence[tuple[str, int]]) -> Placed | str:
    """What can be said of the model on these cards, or why nothing can.

    Raises CheckpointError when the checkpoint's config.json cannot be read.
    """
    if not cards:
        return "no card whose memory is known is here"
    if asked is not None and not wants_cards(asked, len(cards)):
        return "the recipe uses no card of this machine"
    folder = asked.model_folder if asked else None
    model = read_model(folder) if folder else _LLAMA2_70B
    if asked is not None and folder is None and not asked.benchmark.is_mlperf:
        return "the shape of the model is not known without its config.json"
    names = [name for name, _ in cards]
    return Placed(
        model=model,
        cards=tuple(cards),
        precision=_precision(asked, model, has_folder=bool(folder), names=names),
        is_assumed=folder is None and not _is_stated(asked),
    )


def _is_stated(asked: Asked | None) -> bool:
    """Whether the recipe says what the weights are held as, whatever the checkpoint is."""
    if asked is None:
        return False
    if asked.config.engine == "reference" or _is_random_16_bit(asked):
        return True
    return bool(getattr(asked.settings, "quantization", "auto") != "auto")


def _is_random_16_bit(asked: Asked) -> bool:
    """Random weights are stored in no format, and the native engine takes them as they are."""
    said = getattr(asked.settings, "quantization", "auto")
    return asked.has_random_weights and asked.config.engine == "native" and said == "auto"


def _precision(
    asked: Asked | None, model: Model, *, has_folder: bool, names: Sequence[str]
) -> Precision:
    """What weights and cache would be held as."""
    has_fp8 = all(any(part in name for part in _WITH_FP8) for name in names)
    best = _FP8 if has_fp8 else _SIXTEEN
    if asked is None:
        return best
    engine, settings = asked.config.engine, asked.settings
    said = getattr(settings, "quantization", "auto")
    if engine == "reference":
        return _SIXTEEN
    if said.startswith("fp8"):
        found = _FP8
    elif (engine == "native" and said == "none") or _is_random_16_bit(asked):
        found = _SIXTEEN
    elif has_folder and (model.format or engine == "native" or said == "none"):
        found = stored_precision(model)
    elif said in PACKED:
        found = PACKED[said]
    else:  # a server is told to quantise what is not
        found = _SIXTEEN if said == "none" else best
    kv_dtype = "fp8" if engine == "managed" else getattr(settings, "kv_dtype", "auto")
    kv_bits = {"auto": found.kv_bits, "fp8": 8}.get(kv_dtype, 16)
    return dataclasses.replace(found, kv_bits=kv_bits)


def fit_findings(asked: Asked, where: Placed) -> list[Finding]:
    """Whether the model fits as the recipe lays it out, and whether every card gets work."""
    name, why = "model fits", "with few live sequences each step reads all weights for few tokens"
    num_cards = len(where.cards)
    group = num_cards if asked.config.engine == "reference" else cards_needed(asked)
    if group > num_cards:
        return []  # said of the cards
    weights = size_text(weight_bytes(where.model, where.precision.weight_bits))
    live = where.live(group)
    assumed = "; assumed, as the checkpoint decides and none is named" if where.is_assumed else ""
    seen = (
        f"{weights} of weights ({where.precision.name}{assumed}) on {group} x {where.cards[0][0]}: "
        f"{live:,} live sequences"
    )
    more = f"--set engine.{asked.config.engine}.tensor_parallel={min(2 * group, num_cards)}"
    smaller = "paceline quantize --help   for a smaller checkpoint"
    mend = f"{more}   or {smaller}" if 2 * group <= num_cards and group > 0 else smaller
    if live == 0:
        fit = blocker(name, seen, why="the engine ends at its start: out of memory", mend=mend)
    elif live < _FEW_LIVE:
        fit = warning(name, seen, why=why, mend=mend)
    else:
        fit = fine(name, seen, why=why)
    return [fit, *_use(asked, num_cards, group)]


def _use(asked: Asked, num_cards: int, group: int) -> list[Finding]:
    """Cards without work."""
    settings, engine = asked.settings, asked.config.engine
    named = len(getattr(settings, "gpus", ())) or num_cards
    used = {
        "native": group * getattr(settings, "data_parallel", 1),
        "managed": named // group * group,
    }.get(engine, num_cards)
    if used >= num_cards:
        return []
    lift = (
        f"--set engine.native.data_parallel={num_cards}"
        if engine == "native" and group == 1
        else "--engine managed   starts a copy on every group of cards"
        if engine == "native"
        else f"--set engine.{engine}.tensor_parallel=N   with N a divisor of {num_cards}, no gpus"
    )
    return [
        warning(
            "gpus used",
            f"the recipe uses {used} of {num_cards} cards",
            why="speed grows with the cards that work",
            mend=lift,
        )
    ]


def _least_s() -> float:
    return benchmark(_BENCHMARK).min_duration_ms / 1000


def _num_tokens() -> float:
    """Tokens of one pass over the dataset, were each answer the reference's mean."""
    rules = benchmark(_BENCHMARK)
    bounds = rules.accuracy["tokens_per_sample"]
    assert bounds.high is not None
    return rules.num_samples * (bounds.low + bounds.high) / 2


def make_plan(where: Placed, *, recipe: str) -> dict[str, Any] | None:
    """A layout by rule of thumb: the smallest group of cards with room for enough sequences."""
    num_cards = len(where.cards)
    groups = [group for group in _GROUPS if group <= num_cards and where.live(group) > 0]
    if not groups:
        return None
    group = next((g for g in groups if where.live(g) >= _ENOUGH_LIVE), groups[-1])
    replicas = num_cards // group
    name = where.cards[0][0]
    best = best_of(name)
    rate = None if best is None else best.per_accelerator
    if (
        where.precision.weight_bits == _SIXTEEN.weight_bits
        or where.model.linear_parameters != _LLAMA2_70B.linear_parameters
    ):
        rate = None
    expected = rate * group * replicas if rate else None
    hours = max(_least_s(), _num_tokens() / expected) / 3600 if expected else None
    return {
        "cards": f"{num_cards} x {name}",
        "precision": where.precision.name + (" (assumed)" if where.is_assumed else ""),
        "tensor_parallel": group,
        "replicas": replicas,
        "cards_left_over": num_cards - group * replicas,
        "live_sequences_per_replica": where.live(group),
        "tokens_per_second_at_best": expected,
        "performance_hours_at_least": None if hours is None else round(hours, 3),
        "accuracy_hours_at_least": None if hours is None else round(hours, 3),
        "basis": f"{rate:,.0f} tokens/s a card: {_source(best)}"
        if best is not None and rate
        else "no published result of this model, card and precision is known here",
        "measure": f"paceline forecast {recipe or 'RECIPE'}",
    }


def _source(result: PublishedResult) -> str:
    who = f"{result.submitter} {result.system}".strip()
    note = f", {result.note}" if result.note else ""
    return f"{who} x{result.accelerators}, {result.round}{note}"
