"""docs/operations.md's two days, line by line in short: a small model, a processor, no meter."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from support import program_in, session_of

from paceline import config

DOCUMENT = (Path(__file__).parents[2] / "docs/operations.md").read_text()

RECIPE = """
[run]
benchmark = "smollm2-135m-99"
mode = "performance"

[loadgen]
min_query_count = 96

[engine]
name = "native"

[engine.native]
device = "cpu"
max_live_sequences = 4
"""

# What a minute and half an hour are in a test, and what needs a meter.
SHORT = (
    ("--budget 30m", "--budget 20s --trials 2 --trial-seconds 1 --pairs 2"),
    (" --power-cap 10kW", ""),
    (r"(paceline forecast .*)", r"\1 --seconds 3"),
)


# Ten processes, each of which loads PyTorch, on two cores beside other tests.
@pytest.mark.timeout(300)
def test_the_two_days_work_in_short(tmp_path: Path) -> None:
    program, lines = program_in(tmp_path / "bin"), session_of(DOCUMENT)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    script = ["set -u"]
    for number, line in enumerate(lines):
        for what, instead in SHORT:
            line = re.sub(what, instead, line)
        # One goes on beside the next.
        script.append(line if line.endswith("&") else f"{line}\necho code $? of {number}")
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ
        | {
            "PATH": f"{program.parent}:{os.environ['PATH']}",
            "RECIPE": "recipe.toml",
            "MODEL": "random:smollm2-135m:layers=1",
            "DATA": str(config.demo_dataset()),
        },
    )
    codes = re.findall(r"^code (\d+) of (\d+)$", done.stdout, re.MULTILINE)
    ended = {lines[int(number)]: int(code) for code, number in codes}
    assert len(ended) == len(lines) - 1
    power = next(line for line in ended if line.startswith("paceline power"))
    assert ended.pop(power) == 0 or "Nothing here tells watts" in done.stderr
    assert set(ended.values()) == {0}, f"{ended}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert (tmp_path / "runs/first/verdict.json").is_file()
    assert (tmp_path / "runs/first/report.html").is_file()
    assert "complete" in done.stdout.lower()
