"""The winner of a search: the fastest of what was tried that is faster for sure and answers well.

    Contest(...).decide(tried)     who it is, or why nobody

The fastest by name run a final (`final`), and who leads it is measured against the default, pair by
pair. One that changes settings of the answers then runs the benchmark's accuracy test, beside the
default's: its run has to pass, and the two compared have to hold the same gate. One that does not
is put aside, with all that have the same settings of the answers, and the next fastest takes its
place. Those that answer as the default does need no such run, so a search for precision still ends
with what it found of speed.

What was measured is kept in a folder for each candidate, from which a search that was killed goes
on: `pairs.json` and `accuracy.json`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paceline.compare import compare_answers, open_side
from paceline.errors import EngineError
from paceline.operate.confirm import judge_pairs
from paceline.operate.final import MOST_RUNS, run_final
from paceline.operate.tuner import Tried
from paceline.rundir import make_folder, write_atomically

__all__ = ["Contest", "Decision"]

Values = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """`best` is who was judged last, `rejected` those before it that the gate put aside."""

    best: Tried
    is_won: bool
    outcome: str
    confirmation: dict[str, Any] | None
    accuracy: dict[str, Any] | None
    rejected: tuple[dict[str, Any], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Contest:
    """`guarded` are the names of settings that may change answers. `speed` measures tokens/s in a
    folder, 0 where it failed; `run_accuracy` is the verdict of an accuracy run in one."""

    out: Path
    default: Values
    guarded: frozenset[str]
    num_pairs: int
    speed: Callable[[Values, Path], float]
    run_accuracy: Callable[[Values, Path], dict[str, Any]]
    note: Callable[[str], None]

    @property
    def most_measurements(self) -> int:
        """How often a speed is measured, if nobody is rejected."""
        return MOST_RUNS + 2 * self.num_pairs

    def decide(self, tried: Sequence[Tried]) -> Decision:
        """The default, which is among them, ends the contest at the latest. Raises PacelineError
        when an accuracy run does not come to its end."""
        left = run_final(tried, folder=self.out / "final", speed=self.speed, note=self.note)
        rejected: list[dict[str, Any]] = []
        while True:
            best, values = left[0], dict(left[0].values)
            judged = accuracy = None
            if values == self.default:
                others = "the others" if rejected else "what was tried"
                outcome = f"the default is the best of {others}" if len(tried) > 1 else _NO_OTHER
            else:
                judged = self._confirm(best)
                accuracy = self._guard(best) if judged["is_better"] else None
                outcome = "better" if judged["is_better"] else _NO_BETTER
            if accuracy is None or accuracy["passed"]:
                return Decision(
                    best=best,
                    is_won=outcome == "better",
                    outcome=f"{_rejections(len(rejected))}{outcome}",
                    confirmation=judged,
                    accuracy=accuracy,
                    rejected=tuple(rejected),
                )
            rejected.append(
                {
                    "trial": best.number,
                    "values": values,
                    "tokens_per_second": best.tokens_per_second,
                    "confirmation": judged,
                    "accuracy": accuracy,
                }
            )
            self.note(f"trial {best.number} is rejected: {accuracy['reason']}")
            left = [one for one in left if self._answers(one.values) != self._answers(values)]

    def _answers(self, values: Values) -> dict[str, Any]:
        """The settings of the answers."""
        return {name: value for name, value in values.items() if name in self.guarded}

    def _confirm(self, best: Tried) -> dict[str, Any]:
        """Default and best, pair by pair; pairs that were made before are kept."""
        folder, values = self._folder(best), dict(best.values)
        path = folder / "pairs.json"
        pairs: list[tuple[float, float]] = [
            (float(first), float(second)) for first, second in _kept(path, values).get("pairs", ())
        ]
        while len(pairs) < self.num_pairs:
            number = len(pairs) + 1
            order = (self.default, values) if number % 2 else (values, self.default)
            first, second = (
                self.speed(one, folder / f"pair-{number}" / str(place))
                for place, one in enumerate(order)
            )
            pair = (first, second) if number % 2 else (second, first)
            pairs.append(pair)
            write_atomically(path, json.dumps({"values": values, "pairs": pairs}) + "\n")
            self.note(
                f"pair {number} of {self.num_pairs}: default {pair[0]:,.1f}, trial {best.number} "
                f"{pair[1]:,.1f} tokens/s"
            )
        return judge_pairs(pairs)

    def _guard(self, best: Tried) -> dict[str, Any] | None:
        """The benchmark's gate on an accuracy run, if answers may differ from the default's."""
        values = dict(best.values)
        own, base = self._answers(values), self._answers(self.default)
        changes = sorted(name for name in own if own[name] != base[name])
        if not changes:
            return None
        path = self._folder(best) / "accuracy.json"
        if kept := _kept(path, values):
            return dict(kept["accuracy"])
        self.run_accuracy(self.default, self._default_folder)
        try:
            verdict = self.run_accuracy(values, self._folder(best) / "accuracy")
        except EngineError as error:  # what cannot answer all samples is no winner
            lines = error.message.splitlines()
            return {"changed": changes, "passed": False, "verdict": "FAIL", "reason": lines[0]}
        found = {"changed": changes, **self._compared(best, verdict)}
        write_atomically(path, json.dumps({"values": values, "accuracy": found}) + "\n")
        return found

    def _compared(self, best: Tried, verdict: Mapping[str, Any]) -> dict[str, Any]:
        """The candidate's accuracy run against its own gate, and against the default's run."""
        sides = self._default_folder, self._folder(best) / "accuracy"
        compared = compare_answers(*(open_side(side) for side in sides))
        gate = compared["gate"]
        missed = [
            f"{one['rule']}: {one['detail']}" for one in verdict["findings"] if not one["passed"]
        ]
        return {
            "passed": verdict["accuracy"] == "PASS" and gate["b"],
            "verdict": verdict["accuracy"],
            "reason": "; ".join(missed or gate["missed"]),
            "default_passed": gate["a"],
            "gate": gate,
            "difference": compared["difference"],
            "identical": compared["identical"],
            "samples": compared["samples"],
        }

    @property
    def _default_folder(self) -> Path:
        return self.out / "accuracy-default"

    def _folder(self, best: Tried) -> Path:
        folder = self.out / f"best-{best.number:03}"
        make_folder(folder)
        return folder


_NO_BETTER = "not better than the default by more than noise"
_NO_OTHER = "nothing was tried but the default"


def _rejections(count: int) -> str:
    if not count:
        return ""
    who = "1 faster setting" if count == 1 else f"{count} faster settings"
    return f"{who} rejected by the accuracy gate; "


def _kept(path: Path, values: Values) -> dict[str, Any]:
    """What is in `path` of a candidate with these values; nothing where it is another's."""
    kept: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return kept if kept.get("values") == values else {}
