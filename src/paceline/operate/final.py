"""The fastest of a search by name are close, and were measured minutes apart: measured again, in
turn, a machine that became slower or faster meanwhile is the same for all of them.

    run_final(tried, ...)     the trials that ended well, fastest first

Those within a fifth of the fastest are in it, three at most, in rounds whose order alternates; the
sum of the logarithms of what they make ranks them. The rounds are kept in `final/rounds.json`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from paceline.operate.tuner import Tried
from paceline.rundir import make_folder, write_atomically

__all__ = ["MOST_RUNS", "run_final"]

_NEAR, _MOST, _ROUNDS = 0.8, 3, 2
MOST_RUNS = _MOST * _ROUNDS


def run_final(
    tried: Sequence[Tried],
    *,
    folder: Path,
    speed: Callable[[Mapping[str, Any], Path], float],
    note: Callable[[str], None],
) -> list[Tried]:
    """`speed` measures tokens/s in a folder, 0 where it failed: such a one ranks last of them."""
    ranked = sorted(
        (one for one in tried if one.how == "ok"), key=lambda one: -one.tokens_per_second
    )
    least = _NEAR * ranked[0].tokens_per_second
    near = [one for one in ranked[:_MOST] if one.tokens_per_second >= least]
    if len(near) == 1:
        return ranked
    make_folder(folder)
    path, values = folder / "rounds.json", [dict(one.values) for one in near]
    kept = json.loads(path.read_text()) if path.exists() else {}
    rounds: list[list[float]] = kept["rounds"] if kept.get("values") == values else []
    while len(rounds) < _ROUNDS:
        places = range(len(near))
        found = dict.fromkeys(places, 0.0)
        for place in reversed(places) if len(rounds) % 2 else places:
            found[place] = speed(values[place], folder / f"round-{len(rounds) + 1}" / str(place))
        rounds.append(list(found.values()))
        write_atomically(path, json.dumps({"values": values, "rounds": rounds}) + "\n")
        said = ", ".join(
            f"trial {one.number} {made:,.1f}" for one, made in zip(near, rounds[-1], strict=True)
        )
        note(f"final, round {len(rounds)} of {_ROUNDS}: {said} tokens/s")
    scores = [_score(column) for column in zip(*rounds, strict=True)]
    order = sorted(range(len(near)), key=lambda place: -scores[place])
    return [near[place] for place in order] + ranked[len(near) :]


def _score(speeds: Sequence[float]) -> float:
    return sum(map(math.log, speeds)) if min(speeds) > 0 else -math.inf
