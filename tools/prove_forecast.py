"""How far a forecast is from the run it foretells, over and over, on this machine.

    python tools/prove_forecast.py OUT recipes/laptop-demo.toml --seconds 60 --seconds 15

In each round there is a forecast for each `--seconds`, then the run; both as a user types them,
with what stands after `--` at the end. A query that ends in the time is measured whole, a longer
one is modelled: short `--seconds` prove the model. OUT/result.json has the rows, the rest is in
OUT/forecast-N-SECONDS.json and OUT/run-N. The exit code is 1 when a test's time or its tokens/s
was missed by more than `--within`.

Where other programs take more than `--quiet` of a core while the forecast or the run goes, runs
differ among themselves by more than any forecast can hold: such a row is shown and not judged, and
there are up to `--rounds` rounds until `--times` of them were quiet. None that was is a failure.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from paceline.harness.neighbours import Neighbours

PACELINE = (sys.executable, "-m", "paceline")


def told(*words: str) -> dict[str, Any]:
    """The JSON of a command; what it says meanwhile goes to this screen."""
    done = subprocess.run([*PACELINE, *words, "--json"], stdout=subprocess.PIPE, check=False)
    if not done.stdout:
        sys.exit(f"paceline {' '.join(words)} ended with {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measured(run: Path) -> dict[str, tuple[float, float]]:
    """Seconds in LoadGen's timed window and tokens/s in it, by test."""
    tests = json.loads((run / "manifest.json").read_text())["tests"]
    found = {}
    for name, facts in tests.items():
        seconds = facts["window_s"][1] - facts["window_s"][0]
        found[name] = (seconds, facts["tokens"] / seconds)
    return found


def one_round(number: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Forecasts, the run, and a row for each test of each forecast."""
    recipe = (options.recipe, *options.flags)
    load = os.getloadavg()[0]
    forecasts = {}
    for seconds in options.seconds:
        beside = Neighbours()
        found = told("forecast", *recipe, "--seconds", f"{seconds:g}")
        forecasts[seconds] = (found, beside.cores() or 0.0)
        kept = options.out / f"forecast-{number}-{seconds:g}.json"
        kept.write_text(json.dumps(found, indent=1) + "\n")
    run, beside = options.out / f"run-{number}", Neighbours()
    told("run", *recipe, "--out", str(run))
    beside_run = beside.cores() or 0.0
    rows = []
    for name, (took_s, speed) in measured(run).items():
        for seconds, (found, beside_forecast) in forecasts.items():
            test = found["tests"][name]
            rows.append(
                {
                    "round": number,
                    "load": round(load, 2),
                    "other_cores": [round(beside_forecast, 2), round(beside_run, 2)],
                    "is_quiet": max(beside_forecast, beside_run) <= options.quiet,
                    "test": name,
                    "measured_for_s": seconds,
                    "how": test["how"],
                    "forecast_s": round(test["seconds"], 3),
                    "low_s": round(test["low_s"], 3),
                    "high_s": round(test["high_s"], 3),
                    "run_s": round(took_s, 3),
                    "time_off": round(test["seconds"] / took_s - 1, 4),
                    "speed_off": round(test["tokens_per_second"] / speed - 1, 4),
                }
            )
    return rows


def told_of(row: dict[str, Any]) -> str:
    """A row as a line."""
    held = "held" if row["low_s"] <= row["run_s"] <= row["high_s"] else "not held"
    return (
        f"{row['round']}  {row['test']:11}  {row['measured_for_s']:4g} s  "
        f"{row['forecast_s']:8.2f} s ({row['low_s']:.1f} to {row['high_s']:.1f}: {held}), ran "
        f"{row['run_s']:8.2f} s  {row['time_off']:+7.1%}  tokens/s {row['speed_off']:+7.1%}  "
        f"others {row['other_cores'][0]:.2f} and {row['other_cores'][1]:.2f} cores"
        f"{'' if row['is_quiet'] else ' (not judged)'}  {row['how']}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    parser.add_argument("recipe")
    parser.add_argument("--seconds", type=float, action="append", required=True)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--within", type=float, default=0.05)
    parser.add_argument("--quiet", type=float, default=0.1)
    # argparse does not hand on what stands after -- in every Python.
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    options = parser.parse_args(sys.argv[1:end])
    options.flags = sys.argv[end + 1 :]
    options.out.mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    for number in range(1, max(options.rounds, options.times) + 1):
        rows += one_round(number, options)
        (options.out / "result.json").write_text(json.dumps(rows, indent=1) + "\n")
        quiet = [row for row in rows if row["is_quiet"]]
        if len({row["round"] for row in quiet}) == options.times:
            break
    print(*map(told_of, rows), sep="\n")
    if not quiet:
        print(f"no round was quiet: other programs took more than {options.quiet:g} cores in each")
        return 1
    worst = max(max(abs(row["time_off"]), abs(row["speed_off"])) for row in quiet)
    print(
        f"worst of {len(quiet)} quiet rows: {worst:.1%}, within {options.within:.0%}: "
        f"{worst <= options.within}"
    )
    return 0 if worst <= options.within else 1


if __name__ == "__main__":
    sys.exit(main())
