"""The only door to Optuna: a study on disk that proposes settings and is told what came of them.

A study of few trials: the settings that a recipe has are tried first, then the middle of the space
and two corners, then in turn what TPE proposes from what it was told and a step from the best so
far. What failed is told as 0 tokens/s, so that its neighbourhood is left alone. A proposal that was
tried before is replaced by one that was not, as long as there is one.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paceline.engines.knobs import Knob
from paceline.errors import MissingExtraError

__all__ = ["Study", "Tried"]

_STARTUP = 4
_NAME = "tune"
_ENUMERATED = 100_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Tried:
    """A trial that ended: `how` is ok, or what ended it; tokens/s are 0 then."""

    number: int
    values: Mapping[str, Any]
    tokens_per_second: float
    how: str
    detail: str
    seconds: float


class Study:
    """Trials of one space, kept in a journal that a killed search goes on from."""

    def __init__(
        self, path: Path, knobs: Sequence[Knob], *, default: Mapping[str, Any], seed: int
    ) -> None:
        if importlib.util.find_spec("optuna") is None:
            raise MissingExtraError(
                "The search needs Optuna, which is not installed.",
                hint="pip install 'paceline[tune]' -c constraints.txt",
            )
        import optuna
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna = optuna
        self._knobs = [_with_default(knob, default[knob.name]) for knob in knobs]
        self._default = {knob.name: default[knob.name] for knob in knobs}
        backend = JournalFileBackend(str(path))
        self._study = optuna.create_study(
            storage=optuna.storages.JournalStorage(backend),
            study_name=_NAME,
            direction="maximize",
            load_if_exists=True,
        )
        done = len(self._study.trials)
        self._study.sampler = optuna.samplers.TPESampler(
            seed=seed + done, n_startup_trials=_STARTUP, constant_liar=False
        )
        self._random = np.random.default_rng(seed + done)
        self.num_interrupted = self._close_interrupted()

    @property
    def size(self) -> int:
        """How many settings there are in all."""
        return math.prod(len(knob.choices) for knob in self._knobs)

    def tried(self) -> list[Tried]:
        """What was tried so far, in order."""
        complete = self._optuna.trial.TrialState.COMPLETE
        return [
            Tried(
                number=number,
                values=self._values(trial.params),
                tokens_per_second=float(trial.value or 0.0),
                how=trial.user_attrs["how"],
                detail=trial.user_attrs["detail"],
                seconds=trial.user_attrs["seconds"],
            )
            for number, trial in enumerate(
                trial for trial in self._study.trials if trial.state == complete
            )
        ]

    def ask(self) -> tuple[Any, dict[str, Any]] | None:
        """A handle and the settings to try; None when all were tried."""
        tried = self.tried()
        known = [tuple(one.values.values()) for one in tried]
        planned = self._first_few()
        # Every other trial then is a step from the best so far.
        if len(tried) % 2:
            planned += self._neighbours(tried)
        proposal = next((one for one in planned if tuple(one.values()) not in known), None)
        if proposal is None:
            trial = self._study.ask(self._distributions())
            values = self._values(trial.params)
            if tuple(values.values()) not in known:
                return trial, values
            self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)
            proposal = self._untried(set(known))
        if proposal is None:
            return None
        places = {knob.name: knob.choices.index(proposal[knob.name]) for knob in self._knobs}
        self._study.enqueue_trial(self._encoded(places))
        return self._study.ask(self._distributions()), proposal

    def tell(self, handle: Any, tried: Tried) -> None:
        """What came of it."""
        for name in ("how", "detail", "seconds"):
            handle.set_user_attr(name, getattr(tried, name))
        self._study.tell(handle, tried.tokens_per_second)

    def _first_few(self) -> list[dict[str, Any]]:
        """The default, the middle and two opposite corners."""
        last = [len(knob.choices) - 1 for knob in self._knobs]
        places = ([end // 2 for end in last], last, [0 for _ in last])
        return [dict(self._default)] + [
            {knob.name: knob.choices[at] for knob, at in zip(self._knobs, where, strict=True)}
            for where in places
        ]

    def _neighbours(self, tried: Sequence[Tried]) -> list[dict[str, Any]]:
        """One knob turned by one, from the best so far."""
        best = max(tried, key=lambda one: one.tokens_per_second).values
        found = []
        for knob in self._knobs:
            place = knob.choices.index(best[knob.name])
            for at in (place + 1, place - 1):
                if 0 <= at < len(knob.choices):
                    found.append({**best, knob.name: knob.choices[at]})
        return found

    def _untried(self, known: set[tuple[Any, ...]]) -> dict[str, Any] | None:
        names = [knob.name for knob in self._knobs]
        if self.size <= _ENUMERATED:
            every = itertools.product(*(knob.choices for knob in self._knobs))
            left = [values for values in every if values not in known]
            if not left:
                return None
            return dict(zip(names, left[int(self._random.integers(len(left)))], strict=True))
        while True:
            drawn = tuple(
                knob.choices[int(self._random.integers(len(knob.choices)))] for knob in self._knobs
            )
            if drawn not in known:
                return dict(zip(names, drawn, strict=True))

    def _distributions(self) -> dict[str, Any]:
        """Numbers by their place among the choices, which makes doublings equal steps."""
        kinds = self._optuna.distributions
        return {
            knob.name: kinds.IntDistribution(0, len(knob.choices) - 1)
            if knob.is_ordered
            else kinds.CategoricalDistribution([str(one) for one in knob.choices])
            for knob in self._knobs
        }

    def _encoded(self, places: Mapping[str, int]) -> dict[str, Any]:
        return {
            knob.name: places[knob.name]
            if knob.is_ordered
            else str(knob.choices[places[knob.name]])
            for knob in self._knobs
        }

    def _values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        return {
            knob.name: knob.choices[params[knob.name]]
            if knob.is_ordered
            else next(one for one in knob.choices if str(one) == params[knob.name])
            for knob in self._knobs
        }

    def _close_interrupted(self) -> int:
        """Trials that a killed search left running; they count as not made."""
        states = self._optuna.trial.TrialState
        running = [one for one in self._study.trials if one.state == states.RUNNING]
        for one in running:
            self._study.tell(one.number, state=states.FAIL)
        return len(running)


def _with_default(knob: Knob, default: Any) -> Knob:
    """The knob with the recipe's own value among its choices."""
    if default in knob.choices:
        return knob
    choices = (*knob.choices, default)
    return Knob(knob.name, tuple(sorted(choices)) if knob.is_ordered else choices)
