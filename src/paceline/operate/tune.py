"""`paceline tune`: an engine's own settings, searched for speed by short trials.

    search_speed(plan, ...)     the facts, as plain values; writes tuned.toml if it found more

Each trial is a process of its own with a time limit, so one that runs out of memory, crashes or
hangs is counted and the search goes on. What was tried is in `study.journal`: a search that was
killed goes on from it. Precision and the like, which change the answers, are searched only when
asked; who wins then, and with what proof, is `contest`'s to say.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paceline import config as configs
from paceline.config import RunConfig, Setting
from paceline.engines.knobs import Knob, answer_settings
from paceline.errors import EngineError, InputError
from paceline.harness import preflight
from paceline.harness import resume as resume_benchmark
from paceline.harness import run as run_benchmark
from paceline.harness.trial import Job, Trial, crowding, run_trial
from paceline.operate.contest import Contest, Decision
from paceline.operate.tuned import tuned_recipe
from paceline.operate.tuner import Study, Tried
from paceline.rundir import RunDir, write_atomically

__all__ = ["Plan", "knobs_of", "search_speed"]

Observer = Callable[[Mapping[str, Any]], None]

# Of the budget, what final and pairs may keep from the search.
_HELD_PART = 0.5
_FIRST_LIMIT_S = 3600.0
# A trial may take so many times as long as the default's, and never less than this.
_LIMIT_TIMES, _LEAST_LIMIT_S = 3.0, 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What to search, how long, and where to keep it. `settings` is the recipe's own run."""

    settings: Mapping[str, Setting]
    wheel_round: str | None
    knobs: Sequence[Knob]
    budget_s: float
    trial_s: float
    max_trials: int | None
    num_pairs: int
    seed: int
    out: Path
    recipe: str


def knobs_of(
    config: RunConfig,
    *,
    num_gpus: int,
    choices: Mapping[str, tuple[Any, ...]],
    with_accuracy: bool,
) -> list[Knob]:
    """The engine's knobs with two choices or more; `choices` replaces theirs, and searches only
    these. Raises InputError, as for one that may change the answers without `with_accuracy`."""
    of_engine = getattr(config.engine_config, "knobs", None)
    found: list[Knob] = list(of_engine(num_gpus)) if of_engine is not None else []
    guarded = frozenset() if with_accuracy else answer_settings(config.engine_config)
    if choices:
        fields = {field.name for field in dataclasses.fields(config.engine_config)}
        for name in choices:
            if name not in fields:
                raise InputError(
                    f"--search {name}: the {config.engine} engine has no such setting.",
                    hint=f"one of {', '.join(sorted(fields))}",
                )
            if name in guarded:
                raise InputError(
                    f"--search {name}: it may change the answers, and only speed is searched.",
                    hint="--accuracy-settings, with which the winner's accuracy run has to pass",
                )
        found = [Knob(name, values) for name, values in choices.items()]
    kept = [knob for knob in found if knob.name not in guarded and len(knob.choices) > 1]
    if not kept:
        raise InputError(
            f"The {config.engine} engine has no setting of speed to search.",
            hint="--engine native, managed, endpoint or reference; or --search NAME=A,B,C",
        )
    return kept


def search_speed(plan: Plan, *, observer: Observer) -> dict[str, Any]:
    """Search, confirm, write. Raises PacelineError when the recipe's own settings do not run, and
    InputError for a budget that is over with them."""
    searched_s = plan.budget_s * (1 - _HELD_PART)
    if searched_s <= plan.trial_s:
        raise InputError(
            f"--budget of {plan.budget_s:g} s: half of it is for the search, and a trial measures "
            f"for {plan.trial_s:g} s.",
            hint="--budget 30m, or fewer --trial-seconds",
        )
    return _Search(plan, observer).execute()


class _Search:
    def __init__(self, plan: Plan, observer: Observer) -> None:
        self._plan = plan
        self._observer = observer
        self._start_s = time.monotonic()
        self._base = configs.resolve(plan.settings, plan.wheel_round)
        self._default = {
            knob.name: getattr(self._base.engine_config, knob.name) for knob in plan.knobs
        }
        self._study = Study(
            plan.out / "study.journal", plan.knobs, default=self._default, seed=plan.seed
        )
        self._resumed = len(self._study.tried())

    def execute(self) -> dict[str, Any]:
        names = ", ".join(knob.name for knob in self._plan.knobs)
        self._note(
            f"{self._study.size:,} settings of {names}, {self._plan.trial_s:g} s a trial; what was "
            f"stopped goes on by: paceline tune --resume {self._plan.out}"
        )
        if (own_len := preflight.own_len(self._base)) is not None:
            self._note(
                f"the run has {own_len:,} samples (loadgen.min_query_count), so no more are in "
                "flight in a trial: settings for more at once are all alike to it"
            )
        if self._resumed:
            were = "1 trial was" if self._resumed == 1 else f"{self._resumed} trials were"
            self._note(f"{were} made before and kept")
        if self._study.num_interrupted:
            self._note(f"{self._study.num_interrupted} trial was broken off and counts as not made")
        self._search()
        tried = self._study.tried()
        self._tell_of_budget(tried)
        decided = self._contest().decide(tried)
        facts = self._facts(tried, decided)
        if not decided.is_won:
            return facts
        path = self._plan.out / "tuned.toml"
        text = tuned_recipe(
            self._plan.settings,
            self._base.engine,
            decided.best.values,
            facts | {"recipe": self._plan.recipe},
        )
        write_atomically(path, text)
        return facts | {"recipe": str(path)}

    def _contest(self) -> Contest:
        return Contest(
            out=self._plan.out,
            default=self._default,
            guarded=answer_settings(self._base.engine_config),
            num_pairs=self._plan.num_pairs,
            speed=self._speed,
            run_accuracy=self._run_accuracy,
            note=self._note,
        )

    def _search(self) -> None:
        self._require_default()  # of a search that goes on
        while not self._is_over() and (asked := self._study.ask()) is not None:
            handle, values = asked
            number = len(self._study.tried())
            tried = self._try(number, values)
            self._study.tell(handle, tried)
            self._note(_line(tried))
            self._require_default()

    def _require_default(self) -> None:
        """There is nothing to beat where the recipe's own settings do not run."""
        for tried in self._study.tried()[:1]:
            if tried.how != "ok":
                raise EngineError(
                    f"The recipe's own settings do not run ({tried.how}): {tried.detail}",
                    hint=f"see {self._folder(0) / 'log.txt'}; mend it, and search anew with "
                    "another --out",
                )

    def _is_over(self) -> bool:
        tried = self._study.tried()
        if self._plan.max_trials is not None and len(tried) >= self._plan.max_trials:
            return True
        if len(tried) == self._resumed:
            return False
        held_s = min(self._contest_s(tried), self._plan.budget_s * _HELD_PART)
        return self._used_s >= self._plan.budget_s - held_s

    @property
    def _used_s(self) -> float:
        return time.monotonic() - self._start_s

    def _contest_s(self, tried: Sequence[Tried]) -> float:
        """How long final and pairs take at the most, without accuracy runs."""
        one_s = statistics.median(one.seconds for one in tried if one.how == "ok")
        return self._contest().most_measurements * one_s

    def _tell_of_budget(self, tried: Sequence[Tried]) -> None:
        """Whatever was begun is ended, so what was asked for may take longer than it was given."""
        if len(tried) == 1:
            return
        over_s = self._used_s + self._contest_s(tried) - self._plan.budget_s
        if over_s > 0:
            self._note(
                f"the fastest are measured against the default up to "
                f"{self._contest().most_measurements} times, which takes up to {over_s:,.0f} s "
                "more than the budget: fewer --pairs or --trial-seconds take less"
            )

    def _try(self, number: int, values: Mapping[str, Any]) -> Tried:
        start_s = time.monotonic()
        try:
            ended = self._measure(values, self._folder(number))
        except InputError as error:  # settings that do not go together
            ended = Trial(how="refused", facts=None, error=error)
        facts = ended.facts or {}
        found = facts.get("speed", {})
        speed = found.get("tokens_per_second", 0.0)
        details = [] if ended.error is None else [ended.error.message.splitlines()[0]]
        if not found.get("is_full", True):
            details.append(f"the engine was not yet full after {found['ramp_s']:.0f} s")
        if number == 0 and facts.get("samples_note"):
            self._note(facts["samples_note"])
        if said := crowding(facts):
            details.append(said)
        return Tried(
            number=number,
            values=values,
            tokens_per_second=speed,
            how=ended.how,
            detail="; ".join(details),
            seconds=round(time.monotonic() - start_s, 1),
        )

    def _measure(self, values: Mapping[str, Any], folder: Path) -> Trial:
        job = Job(
            config=self._config(values),
            kind="speed",
            seconds=self._plan.trial_s,
            limit_s=self._limit_s(),
        )
        shown = str(folder.relative_to(self._plan.out))
        return run_trial(
            job, folder, observer=lambda event: self._observer({**event, "test": shown})
        )

    def _limit_s(self) -> float:
        tried = self._study.tried()
        if not tried:
            return _FIRST_LIMIT_S
        return max(_LEAST_LIMIT_S + self._plan.trial_s, _LIMIT_TIMES * tried[0].seconds)

    def _config(self, values: Mapping[str, Any]) -> RunConfig:
        config = configs.resolve(self._settings(values), self._plan.wheel_round)
        # Speed is what is measured: no size, no search for a rate.
        loadgen = dataclasses.replace(config.loadgen, target_qps=1.0, probe_s=0.0)
        return dataclasses.replace(config, loadgen=loadgen, find_qps=None)

    def _settings(self, values: Mapping[str, Any]) -> dict[str, Setting]:
        engine = self._base.engine
        changed = {f"engine.{engine}.{name}": Setting(v, "tune") for name, v in values.items()}
        return {**self._plan.settings, **changed}

    def _speed(self, values: Mapping[str, Any], folder: Path) -> float:
        ended = self._measure(values, folder)
        return float(ended.facts["speed"]["tokens_per_second"]) if ended.facts is not None else 0.0

    def _run_accuracy(self, values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        """The verdict of an accuracy run with these settings; one that was begun is finished."""
        if (folder / "manifest.json").exists():
            begun = RunDir.open(folder)
            is_over = begun.read_manifest()["status"] == "COMPLETE"
            told = begun.read_verdict() if is_over else None
            return told or resume_benchmark(folder, observer=self._observer)
        settings = self._settings(values) | {"run.mode": Setting("accuracy", "tune")}
        config = configs.resolve(settings, self._plan.wheel_round)
        return run_benchmark(
            config, folder, settings=settings, recipe=None, observer=self._observer
        )

    def _facts(self, tried: Sequence[Tried], decided: Decision) -> dict[str, Any]:
        best = decided.best
        counts: dict[str, int] = {}
        for one in tried:
            counts[one.how] = counts.get(one.how, 0) + 1
        return {
            "benchmark": self._base.benchmark,
            "engine": self._base.engine,
            "space": {knob.name: list(knob.choices) for knob in self._plan.knobs},
            "space_size": self._study.size,
            "trials": [dataclasses.asdict(one) for one in tried],
            "num_trials": len(tried),
            "counts": counts,
            "default": {"values": self._default, "tokens_per_second": tried[0].tokens_per_second},
            "best": {"values": dict(best.values), "tokens_per_second": best.tokens_per_second},
            "confirmation": decided.confirmation,
            "accuracy": decided.accuracy,
            "rejected": list(decided.rejected),
            "outcome": decided.outcome,
            "recipe": None,
            "seconds": round(self._used_s, 1),
        }

    def _folder(self, number: int) -> Path:
        return self._plan.out / f"trial-{number:03}"

    def _note(self, text: str) -> None:
        self._observer({"event": "note", "text": text})


def _line(tried: Tried) -> str:
    shown = ", ".join(f"{name} {value}" for name, value in tried.values.items())
    said = (
        f"{tried.tokens_per_second:,.1f} tokens/s{', ' if tried.detail else ''}{tried.detail}"
        if tried.how == "ok"
        else f"{tried.how}: {tried.detail}"
    )
    return f"trial {tried.number}  {tried.seconds:6.1f} s  {shown}   {said}"
