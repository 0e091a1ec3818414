"""A study finds the best of a known surface in a quarter of the grid's trials, and goes on."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from paceline.engines.native_settings import NativeConfig
from paceline.engines.pace import Pace
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
    pace = Pace(step_s=0.03, token_s=1e-4, prompt_token_s=2e-6 + 1e-9 * budget, max_live=None)
    paged = 1 - 0.02 * abs(values["page_len"] - 32) / 16
    return paged * pace.tokens_per_second(fed, prompt_len=290, output_len=294)


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
