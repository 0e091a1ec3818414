"""What LoadGen makes of a rate is known beforehand, and a pass that no rule asks for is not run."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import Paceline

from paceline import config
from paceline.config import LoadGenSettings
from paceline.harness.query_size import lengthened_qps, query_len, stated_qps

LLAMA2 = LoadGenSettings(
    target_qps=1.0, min_duration_ms=600_000, min_query_count=24_576, performance_samples=24_576
)
ISSUED = """
import json, sys
from pathlib import Path
import numpy as np
from paceline.config import RunConfig
from paceline.harness import loadgen
config, folder = RunConfig.from_json(json.loads(sys.argv[1])), Path(sys.argv[2])
(folder / "user.conf").write_text(loadgen.user_conf(config, "performance"))
class Sut:
    def issue(self, query):
        counts.append(len(query))
        ids = np.array([5, 2], np.int32)
        loadgen.complete([(response_id, ids) for response_id, _ in query])
    def flush(self):
        pass
session, counts = loadgen.Session(config, folder, "performance"), []
for target_qps in json.loads(sys.argv[3]):
    session.size(target_qps)
    session.run(folder, Sut())
print(json.dumps(counts))
"""


def settings_of(num_samples: int, min_duration_ms: int, min_query_count: int) -> LoadGenSettings:
    return replace(
        LLAMA2,
        min_duration_ms=min_duration_ms,
        min_query_count=min_query_count,
        performance_samples=num_samples,
    )


@pytest.mark.parametrize(
    ("settings", "rates"),
    [
        # 1.1 x 600 x 37.237 is 24,576.42, which LoadGen cuts to one pass; 37.24 gives another.
        (LLAMA2, [1.0, 37.23, 37.237, 37.24, 40.96, 74.48]),
        (settings_of(40, 2000, 40), [0.5, 18.18, 18.19, 18.63, 18.64, 36.5, 99.9, 2000.0]),
        (settings_of(7, 1500, 30), [1.0, 16.9, 17.0, 21.2, 21.3, 123.4]),
        (settings_of(16, 0, 17), [1.0, 1e6]),
    ],
)
def test_loadgen_issues_as_many_samples_as_foretold(
    tmp_path: Path, settings: LoadGenSettings, rates: list[float]
) -> None:
    (tmp_path / "d.parquet").touch()
    texts = ["engine.name=fake", "run.benchmark=llama2-70b-99.9"]
    texts += [f"data.path={tmp_path}/d.parquet", f"run.num_samples={settings.performance_samples}"]
    run = replace(config.resolve(config.read_settings(None, texts), "v6.1"), loadgen=settings)
    command = [sys.executable, "-c", ISSUED, json.dumps(run.as_json()), str(tmp_path)]
    told = subprocess.run(
        [*command, json.dumps(rates)], capture_output=True, text=True, check=True, timeout=120
    )
    counts = json.loads(told.stdout.splitlines()[-1])
    assert counts == [query_len(settings, rate) for rate in rates]


@pytest.mark.parametrize(
    ("samples_per_second", "num_samples"),
    [
        (30.0, 24_576),  # lasts 819 s, as LoadGen has it too
        (37.4, 24_576),  # 657 s: LoadGen would issue two
        (39.0, 24_576),  # 630.2 s
        (39.1, 49_152),  # 628.5 s is too near the 600
        (74.4, 49_152),  # 660.6 s
        (78.0, 49_152),  # 630.2 s: LoadGen would issue three
        (2000.0, 1_327_104),  # LoadGen's own tenth: a pass is short beside the run
    ],
)
def test_whole_passes_that_last_long_enough_are_all_that_is_asked_for(
    samples_per_second: float, num_samples: int
) -> None:
    stated = stated_qps(LLAMA2, samples_per_second)
    assert query_len(LLAMA2, stated) == num_samples
    assert num_samples / samples_per_second >= 1.05 * 600
    assert stated <= samples_per_second


@given(
    passes=st.integers(1, 30_000),
    min_duration_ms=st.integers(0, 900_000),
    min_query_count=st.integers(1, 60_000),
    samples_per_second=st.floats(0.01, 1e5),
)
def test_a_stated_rate_makes_no_longer_query_than_the_speed_and_none_too_short(
    passes: int, min_duration_ms: int, min_query_count: int, samples_per_second: float
) -> None:
    settings = settings_of(passes, min_duration_ms, min_query_count)
    stated = stated_qps(settings, samples_per_second)
    found = query_len(settings, stated)
    plain = query_len(settings, float(f"{samples_per_second:.4g}"))
    assert found <= plain
    assert found >= min_query_count
    # A whole number of samples and four digits of a rate.
    assert found + 1 >= 1.049 * samples_per_second * min_duration_ms / 1000
    if stated < float(f"{samples_per_second:.4g}"):
        assert plain > 1.19 * samples_per_second * min_duration_ms / 1000
        fewer = found - settings.performance_samples
        too_few = fewer < min_query_count
        assert too_few or fewer < 1.0501 * samples_per_second * min_duration_ms / 1000 + 1


@given(
    passes=st.integers(1, 30_000),
    least_s=st.floats(1, 900),
    steady=st.floats(1, 1e4),
    part=st.floats(0.01, 0.99),
    unfilled=st.floats(0, 0.2),
)
def test_after_a_run_that_was_too_short_the_next_is_long_enough(
    passes: int, least_s: float, steady: float, part: float, unfilled: float
) -> None:
    """A fifth of what the short run lacked may be start and tail: the long one is faster by it."""
    settings = settings_of(passes, round(least_s * 1000), 1)
    duration_s = part * settings.min_duration_ms / 1000
    short = steady * (1 - unfilled * (1 - part))
    stated = lengthened_qps(settings, short, duration_s)
    assert (query_len(settings, stated) + 1) / steady >= settings.min_duration_ms / 1000
    assert stated <= 1.25 * steady


def test_a_run_that_was_nearly_long_enough_is_made_hardly_longer() -> None:
    settings = settings_of(1, 600_000, 1)
    assert lengthened_qps(settings, 100.0, 594.0) == 100.2
    assert lengthened_qps(settings, 100.0, 6.0) == 124.8
    assert lengthened_qps(settings, 100.0, 600.0) == 100.0


@pytest.mark.timed
def test_a_run_of_one_pass_is_sized_as_one_and_is_valid(paceline: Paceline, tmp_path: Path) -> None:
    """A pass of 1,024 answers of 4 tokens lasts 6.5 s, the minimum is 6 s: LoadGen makes two."""
    assert paceline("data", "synthetic", "syn", "--samples", 1024).code == 0
    texts = ["data.tokenizer=syn", "run.num_samples=1024", "loadgen.min_duration_ms=6000"]
    texts += ["engine.fake.output_len=4", f"engine.fake.tokens_per_second={4 * 1024 / 6.5}"]
    words = ["--benchmark", "llama2-70b-99.9", "--engine", "fake", "--data", "syn/dataset.parquet"]
    words += [word for text in [*texts, "run.probe_s=3"] for word in ("--set", text)]
    words += ["--mode", "performance"]
    told = paceline("forecast", *words, "--seconds", 4, "--json").json
    assert told["tests"]["performance"]["num_samples"] == 1024
    assert told["validity"]["result"] == "VALID"
    outcome = paceline("run", *words, "--out", "run", "--json")
    assert outcome.json["result"] == "VALID", outcome
    assert outcome.json["duration_s"] == pytest.approx(6.5, rel=0.02)
    made = json.loads((tmp_path / "run/manifest.json").read_text())
    assert made["tests"]["performance"]["tokens"] == 4 * 1024
    assert "1,024 samples: " in made["probe"]["said"]
    # At the engine's speed itself it would have been two passes, and twice as long.
    settings = LoadGenSettings(**made["config"]["loadgen"])
    assert query_len(settings, 1024 / 6.5) == 2048
    assert query_len(settings, made["config"]["loadgen"]["target_qps"]) == 1024
