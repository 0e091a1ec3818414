"""`paceline compare`: two runs of one model in two precisions."""

from __future__ import annotations

import json
import shutil
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support import Outcome, Paceline
from toys import save_llama

from paceline.compare import compare_answers, open_side
from paceline.compare.answers import first_difference
from paceline.compare.lens import compare_logits
from paceline.config import demo_dataset, embedded_model
from paceline.errors import DataError, InputError, RunDirError
from paceline.quantize import QuantizeOptions, quantize


@pytest.mark.parametrize(
    ("x", "y", "place"),
    [([1, 2, 3], [1, 2, 3], None), ([1, 2, 3], [1, 9, 3], 1), ([1, 2], [1, 2, 3], 2), ([5], [], 0)],
)
def test_answers_part_at_the_first_token_that_differs(
    x: list[int], y: list[int], place: int | None
) -> None:
    assert first_difference(x, y) == place


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A toy in float32 and in four bits, six samples each."""
    import subprocess
    import sys

    folder = tmp_path_factory.mktemp("runs")
    whole = save_llama(folder / "whole", vocab_size=49152)
    options = QuantizeOptions(format="w4a16")
    quantize(whole, folder / "w4a16", options, samples=None, progress=lambda what, part: None)
    found = {}
    for name in ("whole", "w4a16"):
        found[name] = folder / f"run-{name}"
        command = [sys.executable, "-m", "paceline", "run", "--mode", "accuracy", "--engine"]
        command += ["native", "--model", folder / name, "--out", found[name]]
        command += ["--set", f"data.tokenizer={embedded_model()}"]
        command += ["--set", "run.num_samples=6"]
        done = subprocess.run(
            [str(word) for word in command], capture_output=True, text=True, check=False
        )
        assert done.returncode == 1, done.stderr  # it ran; a toy's nonsense fails the gate
    return found


def test_a_run_is_identical_to_itself(runs: dict[str, Path]) -> None:
    side = open_side(runs["whole"])
    compared = compare_answers(side, side)
    assert compared["identical"] == compared["samples"] == 6
    assert compared["against_each_other"]["rouge1"] == 100.0
    assert compared["difference"]["rouge2"] == {"mean": 0.0, "standard_error": 0.0}
    logits = compare_logits(side, side, num_samples=2)
    assert logits["mean_kl"] == pytest.approx(0.0, abs=1e-6)
    assert logits["top1"] == 1.0
    assert all(layer["relative_error"] == 0.0 for layer in logits["layers"])


def test_the_scores_are_those_of_the_runs_own_verdict(runs: dict[str, Path]) -> None:
    compared = compare_answers(open_side(runs["whole"]), open_side(runs["w4a16"]))
    for side, name in (("a", "whole"), ("b", "w4a16")):
        verdict = json.loads((runs[name] / "verdict.json").read_text())
        for metric in ("rouge1", "rouge2", "rougeL"):
            assert compared[side][metric] == pytest.approx(verdict[metric], abs=2e-4)
        assert compared[side]["tokens_per_sample"] == verdict["tokens_per_sample"]
        assert compared["gate"][side] is (verdict["accuracy"] == "PASS") is False
        for finding in verdict["findings"]:
            metric = finding["rule"].removeprefix("accuracy.")
            if side == "b" and metric in compared["gate"]["differences"]:
                held = compared["gate"]["differences"][metric]
                assert held["passed"] is finding["passed"]
                too_low = held["mean"] < held["least"]
                too_high = held["most"] is not None and held["mean"] > held["most"]
                assert held["passed"] is not (too_low or too_high)
    assert compared["identical"] < 6
    assert "w4a16" in compared["b"]["precision"]
    assert compared["a"]["precision"].startswith("float32")


def test_kl_is_that_of_the_two_models_on_the_same_tokens(runs: dict[str, Path]) -> None:
    """Against the formula, computed here for one sample."""
    from paceline.engines.reference import load_model

    a, b = open_side(runs["whole"]), open_side(runs["w4a16"])
    logits = compare_logits(a, b, num_samples=1)
    ids = torch.tensor([[*a.prompts[0].tolist(), *a.answers[0].tolist()]])
    begin = len(a.prompts[0]) - 1
    with torch.inference_mode():
        p, q = (
            load_model(side.config.model_path, "float32", "cpu", torch)[0](ids)
            .logits[0, begin:-1]
            .double()
            .softmax(dim=-1)
            for side in (a, b)
        )
    assert logits["tokens"] == len(p)
    assert logits["mean_kl"] == pytest.approx(float((p * (p / q).log()).sum() / len(p)), rel=1e-3)
    same = (p.argmax(dim=-1) == q.argmax(dim=-1)).double().mean()
    assert logits["top1"] == pytest.approx(float(same))
    # A model that ended after its last block is the model.
    assert logits["layers"][-1]["top1"] == pytest.approx(logits["top1"])
    assert len(logits["layers"]) == 2


def test_runs_of_other_samples_are_not_compared(runs: dict[str, Path], tmp_path: Path) -> None:
    side = open_side(runs["whole"])
    with pytest.raises(InputError, match="same samples"):
        compare_answers(side, replace(side, answers=side.answers[:3]))
    with pytest.raises(RunDirError, match="not a run directory"):
        open_side(tmp_path)


@pytest.mark.slow
def test_the_demos_dataset_is_found_where_another_install_had_it(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(runs["whole"], copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["config"]["data_path"] = "/another/venv/demo_samples.parquet"
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert open_side(copy).references == open_side(runs["whole"]).references
    manifest["dataset"]["sha256"] = "0" * 64
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"another/venv/demo_samples\.parquet, the dataset that"):
        open_side(copy)


def test_the_verb_prints_a_table_and_writes_a_picture(
    paceline: Paceline, runs: dict[str, Path], tmp_path: Path
) -> None:
    outcome: Outcome = paceline("compare", runs["whole"], runs["w4a16"], "--plot", "both.svg")
    assert outcome.code == 1, outcome  # a toy's nonsense misses the gate
    assert "accuracy gate of smollm2-135m-99: a FAIL, b FAIL: rouge1 " in outcome.out
    for words in ("identical answers: ", "first differing token", "mean KL", "relative error"):
        assert words in outcome.out
    root = ElementTree.parse(tmp_path / "both.svg").getroot()
    assert len(root.findall(".//{http://www.w3.org/2000/svg}polyline")) == 3
    gone = tmp_path / "gone"
    shutil.copytree(runs["w4a16"], gone)
    manifest = json.loads((gone / "manifest.json").read_text())
    manifest["config"]["model_path"] = str(tmp_path / "nowhere")
    (gone / "manifest.json").write_text(json.dumps(manifest))
    outcome = paceline("compare", runs["whole"], gone)
    assert outcome.code == 1, outcome
    assert "logits were not compared" in outcome.out


def test_b_is_held_to_the_gate_of_its_benchmark(paceline: Paceline, tmp_path: Path) -> None:
    """One half answer in 96 is within 1 %, and not within 0.1 %."""
    table = pq.read_table(demo_dataset(), use_threads=False)
    answers = table["tok_output"].to_pylist()
    half = [*answers[0][: len(answers[0]) // 2], answers[0][-1]]
    for name, first in (("right", answers[0]), ("hardly", half)):
        columns = {"tok_input": table["tok_input"], "tok_output": [first, *answers[1:]]}
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
    for out, name, benchmark in (
        ("a", "right", "smollm2-135m-99"),
        ("b", "hardly", "smollm2-135m-99"),
        ("c", "hardly", "smollm2-135m-99.9"),
    ):
        words = ("run", "--mode", "accuracy", "--engine", "fake", "--benchmark", benchmark)
        flag = f"engine.fake.answers={name}.parquet"
        ended = paceline(*words, "--set", flag, "--out", out)
        assert ended.code == (1 if out == "c" else 0), ended
    passed = paceline("compare", "a", "b", "--logits", 0)
    assert passed.code == 0, passed
    assert "accuracy gate of smollm2-135m-99: a PASS, b PASS" in passed.out
    failed = paceline("compare", "a", "c", "--logits", 0, "--json")
    assert failed.code == 1, failed
    gate = failed.json["gate"]
    assert (gate["a"], gate["b"]) == (True, False)
    held = gate["differences"]["rouge1"]
    assert held["mean"] < held["least"] == -0.1
    assert gate["missed"][0].startswith("rouge1 9")
