"""A study finds the best of a known surface in a quarter of the grid's trials, and goes on."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from paceline.engines.native_settings import NativeConfig
from paceline.operate.final import run_final
from paceline.operate.tuner import Study, Tried

KNOBS = NativeConfig(device="cpu").knobs(0)
DEFAULT = {"max_step_tokens": 128, "max_live_sequences": 16, "page_len": 16}


def surface(values: Mapping[str, Any]) -> float:
    """Tokens/s of a step that costs its weights, its tokens and its pages; 0 out of memory."""
    live, budget = values["max_live_sequences"], values["max_step_tokens"]
    if live * values["page_len"] > 32_768:
        return 0.0
    # Prompts wait for room in a step; long steps keep the running answers waiting.
    fed = min(live, budget / 4)
    step_s = 0.03 + fed * (1e-4 + (2e-6 + 1e-9 * budget) * 290 / 294)
    paged = 1 - 0.02 * abs(values["page_len"] - 32) / 16
    return float(paged * fed / step_s)


def search(path: Path, seed: int, num_trials: int) -> list[Tried]:
    study = Study(path, KNOBS, default=DEFAULT, seed=seed)
    while len(study.tried()) < num_trials and (asked := study.ask()) is not None:
        handle, values = asked
        speed = surface(values)
        study.tell(
            handle,
            Tried(
                number=0,
                values=values,
                tokens_per_second=speed,
                how="ok" if speed else "out of memory",
                detail="",
                seconds=1.0,
            ),
        )
    return study.tried()


@pytest.mark.parametrize("seed", range(2))
def test_a_quarter_of_the_grid_finds_95_percent_of_its_best(tmp_path: Path, seed: int) -> None:
    names = [knob.name for knob in KNOBS]
    grid = [
        dict(zip(names, values, strict=True)) for values in product(*(k.choices for k in KNOBS))
    ]
    best = max(surface(values) for values in grid)
    tried = search(tmp_path / "j", seed, len(grid) // 4)
    assert dict(tried[0].values) == DEFAULT
    assert max(one.tokens_per_second for one in tried) >= 0.95 * best > 1.5 * surface(DEFAULT)
    # No setting is tried twice: a trial costs minutes.
    assert len({tuple(one.values.values()) for one in tried}) == len(tried)


def test_a_search_goes_on_from_its_journal(tmp_path: Path) -> None:
    before = search(tmp_path / "j", 0, 6)
    after = search(tmp_path / "j", 0, 12)
    assert after[:6] == before
    assert len({tuple(one.values.values()) for one in after}) == 12


def test_a_search_ends_when_all_was_tried(tmp_path: Path) -> None:
    study = Study(tmp_path / "j", KNOBS[2:], default={"page_len": 16}, seed=0)
    while (asked := study.ask()) is not None:
        tried = Tried(
            number=0, values=asked[1], tokens_per_second=1.0, how="ok", detail="", seconds=1.0
        )
        study.tell(asked[0], tried)
    assert sorted(one.values["page_len"] for one in study.tried()) == [16, 32, 64]


def test_a_trial_that_was_broken_off_counts_as_not_made(tmp_path: Path) -> None:
    Study(tmp_path / "j", KNOBS, default=DEFAULT, seed=0).ask()
    again = Study(tmp_path / "j", KNOBS, default=DEFAULT, seed=0)
    assert again.num_interrupted == 1
    assert again.tried() == []
    asked = again.ask()
    assert asked is not None
    assert asked[1] == DEFAULT


def tried(number: int, speed: float, how: str = "ok") -> Tried:
    return Tried(
        number=number,
        values={"n": number},
        tokens_per_second=speed,
        how=how,
        detail="",
        seconds=1.0,
    )


def test_a_final_ranks_by_what_was_measured_in_turn(tmp_path: Path) -> None:
    """The luckiest trial leads the list and loses the final on a machine that changes its pace."""
    true = {1: 100.0, 2: 95.0, 3: 90.0}
    pace = iter([1.0, 0.95, 0.9, 0.85, 0.8, 0.75])
    asked: list[int] = []

    def speed(values: Mapping[str, Any], folder: Path) -> float:
        asked.append(values["n"])
        return true[values["n"]] * next(pace)

    lucky = [
        tried(3, 120.0),
        tried(2, 118.0),
        tried(1, 110.0),
        tried(4, 109.0),
        tried(5, 0, "hung"),
    ]
    notes: list[str] = []
    told = {"folder": tmp_path / "final", "speed": speed, "note": notes.append}
    ranked = run_final(lucky, **told)
    # Three of them, there and back: each meets the machine early once and late once.
    assert asked == [3, 2, 1, 1, 2, 3]
    assert [one.number for one in ranked] == [1, 2, 3, 4]
    assert len(notes) == 2
    assert run_final(lucky, **told) == ranked
    assert len(asked) == 6, "rounds that were made before are kept"


def test_a_steady_machine_has_the_fastest_win_its_final(tmp_path: Path) -> None:
    lucky = [tried(3, 120.0), tried(2, 118.0), tried(1, 110.0)]
    ranked = run_final(
        lucky,
        folder=tmp_path / "f",
        speed=lambda values, _: {1: 100.0, 2: 0.0, 3: 90.0}[values["n"]],
        note=lambda _: None,
    )
    assert [one.number for one in ranked] == [1, 3, 2], "one that failed is last"


def test_a_winner_by_far_needs_no_final(tmp_path: Path) -> None:
    ranked = run_final(
        [tried(1, 100.0), tried(2, 79.0)],
        folder=tmp_path / "f",
        speed=lambda values, folder: pytest.fail("measured"),
        note=lambda _: None,
    )
    assert [one.number for one in ranked] == [1, 2]
    assert not (tmp_path / "f").exists()
