"""From run directories to a tarball: real short runs, changed as data where a test wants it."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import Paceline

from paceline import config
from paceline.errors import InputError
from paceline.mlperf.tree_rules import ACCURACY_FILES, PERFORMANCE_FILES
from paceline.submission import (
    matching,
    measurements,
    package,
    recipe,
    source_code,
    system,
    tree,
)
from paceline.submission.certificates import contest_time
from paceline.submission.submit import Order, Prepared, prepare

NUM_SAMPLES = 40
RUN = (
    *("run", "--benchmark", "llama2-70b-99.9", "--engine", "fake", "--data", "syn/dataset.parquet"),
    *("--set", "data.tokenizer=syn", "--set", "engine.fake.answers=syn/dataset.parquet"),
    *("--set", f"run.num_samples={NUM_SAMPLES}", "--set", "loadgen.min_duration_ms=0"),
)
GIVEN = {
    "status": "available",
    "system_name": "a laptop",
    "cooling": "air",
    "host_memory_configuration": "2x 8 GB DDR5",
    "host_networking": "1 Gb/s Ethernet",
    "host_network_card_count": "1",
    "host_processor_model_name": "a processor",
    "host_processors_per_node": "1",
    "host_processor_core_count": "2",
    "host_storage_capacity": "1 TB",
    "host_storage_type": "NVMe SSD",
}
SUBMIT = ("--submitter", "Team_A", "--system", "box.json", "--division", "open", "--rehearsal")
Change = Callable[[Any], None]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a dataset, a system description and the runs `three` and `comp`."""
    folder = tmp_path_factory.mktemp("submit")

    def call(*arguments: str) -> None:
        command = [sys.executable, "-m", "paceline", *arguments]
        subprocess.run(command, cwd=folder, capture_output=True, check=True, timeout=300)

    call("data", "synthetic", "syn", "--samples", str(NUM_SAMPLES))
    call(*RUN, "--mode", "submission", "--out", "three")
    call(*RUN, "--mode", "compliance", "--out", "comp")
    given = [word for name, value in GIVEN.items() for word in ("--set", f"{name}={value}")]
    call("system", *given, "--out", "box.json")
    return folder


@pytest.fixture
def here(place: Path, tmp_path: Path) -> Path:
    """A copy of that folder for one test to change."""
    for entry in place.iterdir():
        copy = shutil.copytree if entry.is_dir() else shutil.copy2
        copy(entry, tmp_path / entry.name)
    return tmp_path


def edit(path: Path, change: Change) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def prepared(here: Path, *runs: str, **changes: Any) -> Prepared:
    """The submission of `runs`, in memory."""
    asked = {"submitter": "Team_A", "system_id": "box", "division": "open", "is_rehearsal": True}
    order = Order(**(asked | changes))
    return prepare([here / run for run in runs], order, system.read(here / "box.json"))


def refused(here: Path, *runs: str, **changes: Any) -> str:
    """What is said when `runs` are refused."""
    with pytest.raises(InputError) as caught:
        prepared(here, *runs, **changes)
    return str(caught.value)


def split_run(here: Path) -> tuple[str, str]:
    """The run `three` as two runs, performance and accuracy, as two days' work would leave it."""
    for name, others in (
        ("perf", ("accuracy", "compliance")),
        ("acc", ("performance", "compliance")),
    ):
        shutil.copytree(here / "three", here / name)

        def keep(manifest: Any, others: tuple[str, ...] = others) -> None:
            for other in others:
                del manifest["tests"][other]

        edit(here / name / "manifest.json", keep)
    return "perf", "acc"


def tree_of(here: Path, division: str = "open") -> Path:
    return here / "out/tree" / division / "Team_A"


def test_a_run_becomes_a_tree_that_holds_what_the_rules_ask_for(
    paceline: Paceline, here: Path
) -> None:
    outcome = paceline("submit", "three", *SUBMIT, "--out", "out", "--json")
    top = tree_of(here)
    result = top / "results/box/llama2-70b-99.9/Offline"
    assert {p.name for p in (result / "performance/run_1").iterdir()} == {
        *PERFORMANCE_FILES.required,
        *PERFORMANCE_FILES.optional,
    }
    assert {p.name for p in (result / "accuracy").iterdir()} == set(ACCURACY_FILES.required)
    assert (result / "TEST06/verify_accuracy.txt").read_text().endswith("complete\n")
    assert json.loads((result / "measurements.json").read_text())["retraining"] == "No"
    assert json.loads((top / "systems/box.json").read_text())["submitter"] == "Team_A"
    assert (top / "documentation/calibration.md").exists()
    assert list(top.glob("src/paceline-*/src/paceline/__init__.py"))
    # A run of 40 samples is too short in ways that the check names; nothing else is wrong.
    assert outcome.code == 1
    assert {finding["rule"] for finding in outcome.json["findings"]} == {
        "accuracy-all-samples",
        "accuracy-gen-num",
        "min-duration",
        "performance-sample-count",
        "ran-long-enough",
    }


def test_the_accuracy_log_keeps_its_ends_and_the_hash_of_the_whole(
    paceline: Paceline, here: Path
) -> None:
    paceline("submit", "three", *SUBMIT, "--out", "out")
    whole = (here / "three/accuracy/mlperf_log_accuracy.json").read_bytes()
    folder = tree_of(here) / "results/box/llama2-70b-99.9/Offline/accuracy"
    cut = (folder / "mlperf_log_accuracy.json").read_bytes()
    assert cut == whole[:4096] + b"\n\n...\n\n" + whole[-4096:]
    assert f"\nhash={hashlib.sha256(whole).hexdigest()}\n" in (folder / "accuracy.txt").read_text()
    audited = tree_of(here) / "results/box/llama2-70b-99.9/Offline/TEST06/accuracy"
    raw = (here / "three/compliance/mlperf_log_accuracy.json").read_bytes()
    assert (audited / "mlperf_log_accuracy.json").read_bytes() == raw


def test_a_small_accuracy_log_is_not_cut() -> None:
    assert tree.truncated(b"x" * 10239) == b"x" * 10239
    assert len(tree.truncated(b"x" * 10240)) == 8199


def test_the_same_runs_give_the_same_bytes(paceline: Paceline, here: Path) -> None:
    made = [
        paceline("submit", "three", *SUBMIT, "--out", name, "--json").json["made"]["sha256"]
        for name in ("one", "two")
    ]
    assert made[0] == made[1]
    first, second = ((here / n / "mlperf_rehearsal.tar.gz").read_bytes() for n in ("one", "two"))
    assert first == second
    assert hashlib.sha256(first).hexdigest() == made[0]
    listed = (here / "one/mlperf_rehearsal.tar.gz.sha256").read_text()
    assert listed == f"{made[0]}  mlperf_rehearsal.tar.gz\n"


def test_a_tarball_has_no_owner_no_clock_and_a_sorted_list() -> None:
    packed = package.tarball({"b/x": b"2", "a": b"1"}, mtime_s=1000)
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        entries = tar.getmembers()
    assert [entry.name for entry in entries] == ["a", "b", "b/x"]
    assert {(e.uid, e.gid, e.uname, e.gname, e.mtime) for e in entries} == {(0, 0, "", "", 1000)}
    assert [oct(entry.mode) for entry in entries] == ["0o644", "0o755", "0o644"]
    assert packed[4:8] == b"\0\0\0\0"  # the time in gzip's header
    assert gzip.decompress(packed)


def test_a_rehearsal_says_so_wherever_it_could_be_taken_for_more(
    paceline: Paceline, here: Path
) -> None:
    outcome = paceline("submit", "three", *SUBMIT, "--out", "out")
    assert "REHEARSAL" in outcome.out
    assert not list((here / "out").glob("mlperf_submission*"))
    top = tree_of(here)
    for name in (
        "src/README.md",
        "documentation/README.md",
        "documentation/calibration.md",
        "documentation/bandwidth.md",
        "systems/box.json",
        "results/box/llama2-70b-99.9/Offline/README.md",
        "../../../mlperf_rehearsal.run",
        "../../../mlperf_rehearsal.md",
    ):
        assert "rehearsal" in (top / name).read_text().lower(), name


def test_a_simulated_run_needs_the_word_rehearsal(paceline: Paceline, here: Path) -> None:
    outcome = paceline("submit", "three", *SUBMIT[:-1], "--out", "out")
    assert outcome.code == 2
    assert "the fake engine runs no model" in outcome.err
    assert "40 of 24576 samples" in outcome.err
    assert "--rehearsal" in outcome.err
    assert not (here / "out").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Team A", "Team_A"),
        (".hidden", "hidden"),
        ("", "Team_Name"),
        ("a/../b", "folder in a submission"),
        ("0e7e43cc4195", "container"),
    ],
)
def test_a_name_that_cannot_be_a_folder_is_refused_before_anything_is_written(
    paceline: Paceline, here: Path, name: str, said: str
) -> None:
    outcome = paceline(
        *("submit", "three", "--submitter", name, "--system", "box.json"),
        *("--division", "open", "--rehearsal", "--out", "out"),
    )
    assert outcome.code == 2
    assert said in outcome.err
    assert not (here / "out").exists()


def test_a_division_that_does_not_exist_is_refused(paceline: Paceline, here: Path) -> None:
    words = [word if word != "open" else "opened" for word in SUBMIT]
    outcome = paceline("submit", "three", *words, "--out", "out")
    assert outcome.code == 2
    assert "closed, network, open" in outcome.err


def test_three_runs_are_put_together_by_their_manifests(paceline: Paceline, here: Path) -> None:
    outcome = paceline("submit", *split_run(here), "comp", *SUBMIT, "--out", "out")
    assert outcome.code == 1, outcome
    assert (tree_of(here) / "results/box/llama2-70b-99.9/Offline/TEST06").is_dir()


def set_in(*path: str, value: Any) -> Change:
    def change(manifest: Any) -> None:
        for name in path[:-1]:
            manifest = manifest[name]
        manifest[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (set_in("config", "round", value="v6.0"), "round"),
        (set_in("model", value={"path": "m", "files": {"a.safetensors": "ff"}}), "model."),
        (set_in("dataset", "sha256", value="00"), "dataset"),
        (set_in("config", "engine_config", "output_len", value=7), "engine_config.output_len"),
        (set_in("config", "num_samples", value=41), "num_samples"),
        (set_in("host", "hostname", value="elsewhere"), "host.hostname"),
        (set_in("versions", "mlcommons-loadgen", value="6.0.15"), "versions.mlcommons-loadgen"),
        (set_in("seeds", "qsl", value=1), "seeds.qsl"),
    ],
)
def test_a_pair_that_differs_is_refused_and_the_field_is_named(
    here: Path, change: Change, field: str
) -> None:
    performance, accuracy = split_run(here)
    edit(here / accuracy / "manifest.json", change)
    assert f"differ in {field}" in refused(here, performance, accuracy)


def test_another_version_of_a_scoring_package_is_no_difference(here: Path) -> None:
    performance, accuracy = split_run(here)
    edit(here / accuracy / "manifest.json", set_in("versions", "pandas", value="9.9"))
    assert prepared(here, performance, accuracy).files


def test_two_runs_of_the_same_test_are_refused(here: Path) -> None:
    assert "both compliance tests" in refused(here, "three", "comp")


def test_a_result_without_its_accuracy_test_is_refused(here: Path) -> None:
    assert "has no accuracy test" in refused(here, split_run(here)[0])


def test_a_run_that_did_not_end_is_refused(here: Path) -> None:
    edit(here / "three/manifest.json", set_in("status", value="INCOMPLETE"))
    said = refused(here, "three")
    assert "is INCOMPLETE" in said
    assert "--resume" in said


def test_a_run_that_was_changed_since_is_refused(here: Path) -> None:
    log = here / "three/performance/mlperf_log_detail.txt"
    log.write_text(log.read_text().replace('"INVALID"', '"VALID"') + "\n")
    assert "performance/mlperf_log_detail.txt" in refused(here, "three")


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("result", "LoadGen says FAIL"),
        ("accuracy", "every target"),
        ("compliance", "TEST06 is FAIL"),
    ],
)
def test_closed_takes_only_what_is_valid_accurate_and_audited(
    here: Path, field: str, said: str
) -> None:
    verdict = here / "three/verdict.json"
    edit(verdict, set_in(field, value="FAIL"))
    sha256 = hashlib.sha256(verdict.read_bytes()).hexdigest()
    edit(here / "three/manifest.json", set_in("files", "verdict.json", value=sha256))
    assert said in refused(here, "three", division="closed")
    assert prepared(here, "three").files  # open takes it, and its check says what is wrong


def test_closed_without_test06_says_how_to_run_it(here: Path) -> None:
    assert "--mode compliance" in refused(here, *split_run(here), division="closed")


def test_another_round_than_that_of_the_runs_is_refused(here: Path) -> None:
    assert "round v6.1, not v5.1" in refused(here, "three", round="v5.1")


def test_99_is_refused_where_the_round_has_only_99_9(here: Path) -> None:
    assert "Round v6.1 has no 'llama2-70b-99'" in refused(here, "three", also_99=True)


def test_99_is_written_beside_99_9_where_the_round_lists_both(here: Path) -> None:
    edit(here / "three/manifest.json", set_in("config", "round", value="v6.0"))
    files = prepared(here, "three", also_99=True).files
    names: dict[str, set[str]] = {"llama2-70b-99": set(), "llama2-70b-99.9": set()}
    for name in files:
        if "/results/box/" in name:
            benchmark, _, rest = name.partition("/results/box/")[2].partition("/")
            names[benchmark].add(rest)
    assert names["llama2-70b-99"] == names["llama2-70b-99.9"] != set()


def test_the_old_layout_is_written_for_the_old_round(paceline: Paceline, here: Path) -> None:
    edit(here / "three/manifest.json", set_in("config", "round", value="v5.1"))
    outcome = paceline("submit", "three", *SUBMIT, "--out", "out", "--json")
    top = tree_of(here)
    measured = top / "measurements/box/llama2-70b-99.9/Offline"
    assert {p.name for p in measured.iterdir()} == {"box.json", "user.conf", "README.md"}
    audited = top / "compliance/box/llama2-70b-99.9/Offline/TEST06"
    assert (audited / "accuracy/mlperf_log_accuracy.json").exists()
    assert (top / "code/README.md").exists()
    assert not (top / "src").exists()
    # The logs' seeds are another round's: the check says it, as the official one would.
    assert "round-seeds" in {finding["rule"] for finding in outcome.json["findings"]}


def test_a_gpu_result_on_a_system_without_accelerators_is_refused(here: Path) -> None:
    for test in ("performance", "accuracy", "compliance"):
        change = set_in("tests", test, "engine", "device", value="cuda")
        edit(here / "three/manifest.json", change)
    edit(here / "box.json", set_in("fields", "accelerators_per_node", "value", value=0))
    assert "0 accelerators" in refused(here, "three")


def test_a_description_of_another_host_is_refused(here: Path) -> None:
    def other(description: Any) -> None:
        description["hosts"] = ["login-node"]
        description["fields"]["host_memory_capacity"]["value"] = "1 TiB"

    edit(here / "box.json", other)
    assert "login-node" in refused(here, "three")


def test_the_network_division_asks_for_its_fields(here: Path) -> None:
    assert "--set run.network=true" in refused(here, "three", division="network")
    edit(here / "three/manifest.json", set_in("config", "network", value=True))
    assert "paceline system --network" in refused(here, "three", division="network")


def test_an_unknown_field_stops_the_submission_and_set_fills_it(
    paceline: Paceline, here: Path
) -> None:
    edit(here / "box.json", set_in("fields", "cooling", "value", value=None))
    outcome = paceline("submit", "three", *SUBMIT, "--out", "out")
    assert outcome.code == 2
    assert "--set cooling=VALUE" in outcome.err
    assert not (here / "out").exists()
    assert paceline("submit", "three", *SUBMIT, "--set", "cooling=air", "--out", "out").code == 1


def test_a_folder_that_is_taken_is_left_alone(paceline: Paceline, here: Path) -> None:
    (here / "out").mkdir()
    (here / "out/mine").write_text("mine")
    outcome = paceline("submit", "three", *SUBMIT, "--out", "out")
    assert outcome.code == 2
    assert [p.name for p in (here / "out").iterdir()] == ["mine"]


def test_a_full_disk_leaves_no_half_tree(paceline: Paceline, here: Path) -> None:
    disk = here / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user cannot mount a small disk")
    try:
        outcome = paceline("submit", "three", *SUBMIT, "--out", "disk/out")
        assert outcome.code == 3, outcome
        assert "full" in outcome.err
        assert "--resume" not in outcome.err
        assert not list((disk / "out").iterdir())
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_the_recipe_in_the_tree_decides_the_same_run(paceline: Paceline, here: Path) -> None:
    paceline("submit", "three", *SUBMIT, "--out", "out")
    written = next(tree_of(here).glob("src/recipes/*.toml"))
    flags = {"data.path": str(here / "syn/dataset.parquet"), "run.mode": "submission"}
    overrides = [f"data.tokenizer={here / 'syn'}", "engine.fake.answers=syn/dataset.parquet"]
    again = config.resolve(config.read_settings(written, overrides, flags=flags), None).as_json()
    first = json.loads((here / "three/manifest.json").read_text())["config"]
    for name in ("data_path", "tokenizer_path"):  # the run was copied; its folder was another
        assert Path(again.pop(name)).name == Path(first.pop(name)).name
    assert json.loads(json.dumps(again)) == first


def test_the_script_repeats_the_runs_and_the_submission(paceline: Paceline, here: Path) -> None:
    paceline("submit", "three", *SUBMIT, "--out", "out")
    script = here / "out/mlperf_rehearsal.run"
    assert os.access(script, os.X_OK)
    # What installs is left out: the installed paceline stands on the path instead.
    text = re.sub(
        r"^(python3 -m venv|venv/bin/pip|export PATH).*\n", "", script.read_text(), flags=re.M
    )
    script.write_text(text)
    tool = here / "bin/paceline"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\nexec {sys.executable} -m paceline "$@"\n')
    tool.chmod(0o755)
    finished = subprocess.run(
        ["bash", script],
        env={
            **os.environ,
            "PATH": f"{tool.parent}:{os.environ['PATH']}",
            "DATASET": str(here / "syn/dataset.parquet"),
            "TOKENIZER": str(here / "syn"),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    repeated = here / "out/repeated"
    assert (repeated / "submission/mlperf_rehearsal.tar.gz").exists(), finished.stderr
    log = "accuracy/mlperf_log_accuracy.json"
    first, again = here / "three" / log, repeated / "Offline/accuracy" / log
    assert first.read_bytes() == again.read_bytes()


def test_the_script_asks_for_what_it_needs(paceline: Paceline, here: Path) -> None:
    paceline("submit", "three", *SUBMIT, "--out", "out")
    plain = {name: value for name, value in os.environ.items() if name != "DATASET"}
    finished = subprocess.run(
        ["bash", here / "out/mlperf_rehearsal.run"],
        env=plain,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode
    assert "DATASET" in finished.stderr


def test_no_place_of_this_machine_is_in_the_tree(paceline: Paceline, here: Path) -> None:
    paceline("submit", "three", *SUBMIT, "--out", "out")
    for path in tree_of(here).rglob("*"):
        if path.is_file() and "paceline-" not in path.as_posix().split("/src/")[-1]:
            assert str(here) not in path.read_text(errors="replace"), path
            assert "/pytest-" not in path.read_text(errors="replace"), path


def test_an_attempt_has_its_four_files_in_the_contests_time(paceline: Paceline, here: Path) -> None:
    paceline("submit", "three", *SUBMIT, "--attempt", "3", "--out", "out")
    times = (here / "out/cert-3-mlperf.tstamps").read_text()
    assert times.count("America/Chicago") == 6
    figures = json.loads((here / "out/cert-3-mlperf.rslts").read_text())
    verdict = json.loads((here / "three/verdict.json").read_text())
    assert figures[0]["tokens_per_second"] == verdict["tokens_per_second"]
    assert 'engine.name = "fake"' in (here / "out/cert-3-mlperf.input").read_text()
    assert os.access(here / "out/cert-3-mlperf.run", os.X_OK)


@pytest.mark.parametrize(
    ("utc", "local"),
    [
        ("2025-11-17T23:59:00+00:00", "2025-11-17 17:59:00 CST (America/Chicago)"),
        ("2025-07-01T12:00:00+00:00", "2025-07-01 07:00:00 CDT (America/Chicago)"),
    ],
)
def test_contest_times_follow_the_season(utc: str, local: str) -> None:
    assert contest_time(utc) == local


def a_test(engine: str, engine_config: dict[str, Any], **facts: Any) -> matching.Test:
    manifest = {
        "config": {"engine": engine, "engine_config": engine_config, "model_path": "/m/Llama"},
        "model": {"path": "/m/Llama", "files": {"config.json": "0", "a.safetensors": "1"}},
        "tests": {"performance": {"engine": facts}},
        "cwd": "/",
    }
    return matching.Test(name="performance", run_dir=Path("r"), manifest=manifest, verdict={})


@pytest.mark.parametrize(
    ("test", "expected"),
    [
        (a_test("reference", {"dtype": "float32"}), "fp32"),
        (a_test("reference", {"dtype": "bfloat16"}), "bf16"),
        (a_test("native", {"dtype": "float16", "quantization": "none"}), "fp16"),
        (a_test("native", {"dtype": "auto", "quantization": "none"}, device="cpu"), "fp32"),
        (a_test("native", {"dtype": "auto", "quantization": "none"}, device="cuda"), "bf16"),
        (a_test("native", {"dtype": "bfloat16", "quantization": "fp8-tensor"}), "fp8"),
        (a_test("endpoint", {}, dtype="fp4"), "fp4"),
    ],
)
def test_the_type_of_the_weights_is_that_of_the_run(test: matching.Test, expected: str) -> None:
    assert measurements.weight_type(test) == expected


def test_a_type_that_nobody_says_is_asked_for_and_may_be_given_afterwards() -> None:
    test = a_test("endpoint", {}, dtype="unknown")
    with pytest.raises(InputError, match="type of its weights") as caught:
        measurements.weight_type(test)
    assert "--weights-dtype" in str(caught.value)
    assert measurements.weight_type(replace(test, weights_dtype="fp8")) == "fp8"
    with pytest.raises(InputError, match="--weights-dtype fp7 is no type"):
        measurements.weight_type(replace(test, weights_dtype="fp7"))


def test_a_type_given_afterwards_must_be_that_of_the_run() -> None:
    test = replace(a_test("reference", {"dtype": "float32"}), weights_dtype="fp8")
    with pytest.raises(InputError, match="of type fp32, not fp8"):
        measurements.weight_type(test)


def test_a_closed_result_of_fixed_scales_needs_a_calibration_document(tmp_path: Path) -> None:
    test = a_test("native", {"dtype": "bfloat16", "quantization": "fp8-tensor"})
    with pytest.raises(InputError, match="calibration"):
        measurements.calibration_text(test, None, division="closed")
    given = tmp_path / "calibration.md"
    given.write_text("as follows")
    assert measurements.calibration_text(test, given, division="closed") == "as follows"
    whole = a_test("native", {"dtype": "bfloat16", "quantization": "none"})
    assert "bf16" in measurements.calibration_text(whole, None, division="closed")
    served = a_test("endpoint", {}, dtype="fp4")
    assert "not on record" in measurements.calibration_text(served, None, division="open")


def test_a_setting_that_is_an_input_stands_in_a_variable() -> None:
    test = a_test("fake", {"answers": "data.parquet", "output_len": 3})
    config_values = {
        **test.config,
        "data_path": "/data.parquet",
        "trust_pickle": False,
        "tokenizer_path": "/m/Llama",
    }
    test.manifest["config"].update(config_values)  # type: ignore[attr-defined]
    line = recipe.command(test, "r.toml")
    assert '--model "$MODEL" --data "$DATASET"' in line
    assert 'engine.fake.answers="$DATASET"' in line
    assert "TOKENIZER" not in line


def test_the_source_is_that_of_the_commit_when_it_is_known() -> None:
    installed, note = source_code.source_files({"commit": "0" * 40, "modified": False})
    assert "installed" in note
    assert any(name.endswith("src/paceline/rundir.py") for name in installed)
    assert not any("__pycache__" in name for name in installed)
    assert not any(name.split("/")[-1].startswith(".") for name in installed)
