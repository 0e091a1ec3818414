"""Whether `paceline tune` finds the best of a grid in a quarter of its trials, on this machine.

    python tools/prove_tune.py OUT recipes/laptop-demo.toml --trial-seconds 5 \
        --search max_live_sequences=1,2,4,8,16,32 --search max_step_tokens=32,128,512,1024,2048

First every setting of the space is measured, then a search of its own gets a quarter as many
trials and its final; both are `paceline tune`. Their two winners are then measured pair by pair,
one after the other in alternating order, as the grid's best figure alone is the luckiest of many.
OUT/result.json has all of it. The exit code is 1 when the search's winner is below `--within` of
the grid's.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from paceline import config as configs
from paceline.harness import loadgen
from paceline.harness.neighbours import Neighbours
from paceline.harness.trial import Job, run_trial
from paceline.operate.confirm import judge_pairs

LIMIT_S = 600.0


def tune(options: argparse.Namespace, name: str, trials: int | None) -> dict[str, Any]:
    """A search of so many trials, None for every setting; one that was made before is read."""
    out = options.out / name
    if not (out / "result.json").exists():
        words = ["tune", options.recipe, "--out", str(out)]
        words += [] if trials is None else ["--trials", str(trials)]
        words += ["--budget", "24h", "--trial-seconds", f"{options.trial_seconds:g}"]
        words += ["--pairs", "2", "--seed", str(options.seed)]
        words += [word for text in options.search for word in ("--search", text)]
        words += [word for text in options.set for word in ("--set", text)]
        subprocess.run(
            [sys.executable, "-m", "paceline", *words], stdout=subprocess.DEVNULL, check=False
        )
    found: dict[str, Any] = json.loads((out / "result.json").read_text())
    return found


def speed(options: argparse.Namespace, engine: str, values: dict[str, Any], name: str) -> float:
    """Tokens/s of one setting, as a trial measures it."""
    sets = [f"engine.{engine}.{key}={value}" for key, value in values.items()]
    settings = configs.read_settings(Path(options.recipe), [*options.set, *sets], flags={})
    config = configs.resolve(settings, loadgen.wheel().round)
    sized = dataclasses.replace(config.loadgen, target_qps=1.0, probe_s=0.0)
    config = dataclasses.replace(config, loadgen=sized, find_qps=None)
    job = Job(config=config, kind="speed", seconds=options.trial_seconds, limit_s=LIMIT_S)
    facts = run_trial(job, options.out / name, observer=lambda _: None).require()
    return float(facts["speed"]["tokens_per_second"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    parser.add_argument("recipe")
    parser.add_argument("--search", action="append", required=True)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--trial-seconds", type=float, default=5.0)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--within", type=float, default=0.95)
    options = parser.parse_args()
    load, start_s, beside = os.getloadavg()[0], time.monotonic(), Neighbours()
    grid = tune(options, "grid", None)
    size = grid["space_size"]  # the recipe's own values are among the choices
    if grid["num_trials"] != size:
        sys.exit(f"{grid['num_trials']} of {size} settings were measured: not a grid")
    found = tune(options, "search", size // 4)
    best, won = grid["best"]["values"], found["best"]["values"]
    pairs = []
    for number in range(options.pairs if best != won else 0):
        order = (best, won) if number % 2 else (won, best)
        speeds = [
            speed(options, grid["engine"], values, f"pair-{number}-{place}")
            for place, values in enumerate(order)
        ]
        pairs.append((speeds[0], speeds[1]) if number % 2 else (speeds[1], speeds[0]))
    judged = judge_pairs(pairs)
    part = 1.0 if best == won else 1 + judged["gain"]
    result = {
        "grid_trials": size,
        "search_trials": found["num_trials"],
        "grid_best": grid["best"],
        "search_best": found["best"],
        "default": grid["default"],
        "part_of_best": round(part, 4),
        "pairs": judged,
        "load": round(load, 2),
        "other_cores": round(beside.cores() or 0.0, 2),
        "minutes": round((time.monotonic() - start_s) / 60, 1),
    }
    (options.out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return 0 if part >= options.within else 1


if __name__ == "__main__":
    sys.exit(main())
