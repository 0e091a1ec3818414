"""The embedded model through LoadGen: both engines on a CPU give the same tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
from support import Paceline

from paceline.config import demo_dataset, embedded_model
from paceline.mlperf.tokenizer import load_tokenizer

SAMPLES = 4
SHORT = ("run", "--mode", "accuracy", "--set", f"run.num_samples={SAMPLES}", "--json")


def answers(run_dir: Path) -> dict[int, str]:
    log = json.loads((run_dir / "accuracy/mlperf_log_accuracy.json").read_text())
    return {entry["qsl_idx"]: entry["data"] for entry in log}


def test_native_and_reference_give_the_same_english(paceline: Paceline, tmp_path: Path) -> None:
    for engine in ("reference", "native"):
        outcome = paceline(*SHORT, "--engine", engine, "--out", engine, timeout_s=500)
        assert outcome.code in (0, 1), outcome
    reference = answers(tmp_path / "reference")
    assert answers(tmp_path / "native") == reference
    assert set(reference) == set(range(SAMPLES))
    ids = [list(memoryview(bytes.fromhex(data)).cast("i")) for data in reference.values()]
    texts = load_tokenizer(embedded_model()).decode_batch(ids)
    words = " ".join(texts).lower().split()
    known = set(" ".join(pd.read_parquet(demo_dataset())["question"]).lower().split())
    # Real English: most of what the model says is words that the prompts use too.
    assert sum(word in known for word in words) > len(words) / 2
    assert all(one.count(2) <= 1 for one in ids)
