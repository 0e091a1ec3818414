"""Whole submissions: real v5.1 logs as a closed one, and a full-length rehearsal.

The official checker runs beside ours where a checkout of mlcommons/inference is named by the
environment variable MLPERF_INFERENCE.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support import Paceline

from official import official
from paceline.mlperf import rules
from paceline.mlperf.logs import read_detail

SYSTEM = "8xMI300X_2xEPYC_9575F"
FULL = (
    *("run", "--benchmark", "llama2-70b-99.9", "--engine", "fake", "--data", "syn/dataset.parquet"),
    *("--set", "data.tokenizer=syn", "--set", "engine.fake.answers=syn/dataset.parquet"),
    # 7,426,626 tokens in 657 s: one pass over the dataset, which is all that LoadGen issues.
    *("--set", "engine.fake.tokens_per_second=11300"),
)
GIVEN = ("status=available", "system_name=a machine", "cooling=air")
GIVEN += ("host_memory_configuration=known", "host_networking=known", "host_network_card_count=1")


def run_of(result: Path, out: Path, scenario: str) -> None:
    """A run directory around a result that somebody else submitted."""
    shutil.copytree(result / "performance/run_1", out / "performance")
    shutil.copy2(result / "user.conf", out / "performance/user.conf")
    shutil.copytree(result / "accuracy", out / "accuracy")
    shutil.copytree(result / "TEST06/accuracy", out / "compliance")
    shutil.copy2(result / "TEST06/verify_accuracy.txt", out / "compliance")
    for path in out.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    # The whole log, whose hash this is, was never published.
    scored = out / "accuracy/accuracy.txt"
    scored.write_text(scored.read_text().partition("\nhash=")[0])
    log = read_detail(out / "performance/mlperf_log_detail.txt")
    seeds = rules.ROUNDS["v5.1"].seeds
    engine = {"device": "rocm", "dtype": "bfloat16"}
    test = {
        "status": "COMPLETE",
        "started": "2025-07-31T00:00:00+00:00",
        "ended": "2025-07-31T01:00:00+00:00",
        "engine": engine,
    }
    config: dict[str, Any] = {
        "benchmark": "llama2-70b-99.9",
        "scenario": scenario,
        "round": "v5.1",
        "mode": "all",
        "num_samples": 24576,
        "stall_timeout_s": 1800.0,
        "trust_pickle": False,
        "data_path": "/d.parquet",
        "tokenizer_path": "/m/Llama-2",
        "model_path": "/m/Llama-2",
        "loadgen": {"target_qps": 1.0, "min_duration_ms": 600000, "min_query_count": 24576},
        "engine": "reference",
        "engine_config": {"dtype": "bfloat16"},
        "shortfalls": [],
    }
    manifest = {
        "schema": 1,
        "status": "COMPLETE",
        "cwd": "/",
        "config": config,
        "origins": {},
        "seeds": {"qsl": seeds.qsl, "sample_index": seeds.sample_index},
        "versions": {"paceline": "0.1.0", "mlcommons-loadgen": "5.1.0"},
        "code": {"commit": None, "modified": None},
        "host": {
            "hostname": "node",
            "cpu": "AMD EPYC 9575F",
            "num_cores": 128,
            "memory_bytes": 1,
            "os": "Linux",
            "python": "3.11",
        },
        "tests": dict.fromkeys(("performance", "accuracy", "compliance"), test),
        "dataset": {"path": "/d.parquet", "sha256": "0"},
        "model": {"path": "/m/Llama-2", "files": {"a.safetensors": "1"}},
        "files": {},
    }
    rate = "result_tokens_per_second" if scenario == "Offline" else None
    verdict = {
        "verdict": "PASS",
        "result": log.result_validity,
        "accuracy": "PASS",
        "compliance": "PASS",
        "tokens_per_second": log.get(rate or "result_completed_tokens_per_second"),
        "samples_per_second": log.get("result_samples_per_second", 0.0),
        "duration_s": 1.0,
        "rouge1": 44.4,
        "rouge2": 22.0,
        "rougeL": 28.6,
        "tokens_per_sample": 301.0,
    }
    (out / "manifest.json").write_text(json.dumps(manifest))
    (out / "verdict.json").write_text(json.dumps(verdict))


@pytest.fixture
def closed(paceline: Paceline, real_logs: Path, tmp_path: Path) -> Path:
    """OUT of a closed v5.1 submission of three scenarios, from real logs."""
    top = real_logs / "amd-v5.1/closed/AMD"
    scenarios = ("Offline", "Server", "Interactive")
    for scenario in scenarios:
        result = top / "results" / SYSTEM / "llama2-70b-99.9" / scenario
        run_of(result, tmp_path / scenario, scenario)
    shutil.copy2(top / "systems" / f"{SYSTEM}.json", tmp_path)
    outcome = paceline(
        *("submit", *scenarios, "--submitter", "Team_A", "--system", f"{SYSTEM}.json"),
        *("--division", "closed", "--also-99", "--out", "out"),
    )
    assert outcome.code == 0, outcome
    return tmp_path / "out"


def test_real_logs_of_three_scenarios_become_a_closed_submission(closed: Path) -> None:
    assert (closed / "mlperf_submission.tar.gz").exists()
    assert (closed / "mlperf_submission.run").exists()
    for path in (closed / "tree").rglob("*.md"):
        assert "REHEARSAL" not in path.read_text()
    highlights = (closed / "mlperf_submission.md").read_text()
    assert "27803.9 tokens/s" in highlights
    assert f"{27803.9 / 8:.2f} tokens/s an accelerator, of 8" in highlights


def test_the_official_checker_takes_the_closed_submission(closed: Path) -> None:
    assert official(closed / "tree", "v5.1").endswith("submission looks OK")


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_full_length_rehearsal_becomes_a_tree_that_both_checkers_take(
    paceline: Paceline, tmp_path: Path
) -> None:
    paceline("data", "synthetic", "syn", timeout_s=600)
    assert paceline(*FULL, "--mode", "submission", "--out", "full", timeout_s=2400).code == 0
    given = [word for value in GIVEN for word in ("--set", value)]
    words = ("--submitter", "Team_A", "--system", "a-machine", "--rehearsal", *given)
    outcome = paceline("submit", "full", *words, "--division", "open", "--out", "open")
    assert outcome.code == 0, outcome
    outcome = paceline("submit", "full", *words, "--division", "closed", "--out", "shut", "--json")
    # The second scenario is all that closed lacks.
    assert [f["rule"] for f in outcome.json["findings"]] == ["required-scenarios"]
    assert official(tmp_path / "open/tree", "v6.1").endswith("submission looks OK")
    missing = official(tmp_path / "shut/tree", "v6.1").splitlines()
    assert "missing ['(one of) Interactive or Server']" in missing[0]
    assert len([line for line in missing if "checks Checks failed" in line]) == 1
