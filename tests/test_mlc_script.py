"""The script for mlperf-automations brings MLCommons' own tool to paceline.

The real thing, run as its users run it; needs what is not in this repository:

    MLCFLOW_BIN           the folder of the programs of a virtual environment with mlcflow
    MLPERF_AUTOMATIONS    a checkout of mlcommons/mlperf-automations
    MLPERF_INFERENCE_GIT  a git repository of mlcommons/inference, branch master
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from paceline.mlperf.logs import read_summary

MLC = Path(__file__).parent.parent / "mlc"
SCRIPT = MLC / "app-mlperf-inference-paceline"
NEEDED = ("MLCFLOW_BIN", "MLPERF_AUTOMATIONS", "MLPERF_INFERENCE_GIT")


def register(checkout: Path) -> str:
    done = subprocess.run(
        [sys.executable, MLC / "register.py", checkout], capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout of mlperf-automations as far as the registration looks at it."""
    scripts = tmp_path / "mlperf-automations/script"
    for name, text in {
        "app-mlperf-inference": (
            "variations:\n  redhat:\n    group: implementation\n"
            "  llama2-70b_:\n    posthook_deps:\n    - skip_if_env:\n"
            "        MLC_MLPERF_IMPLEMENTATION:\n        - nvidia\n"
            "      tags: run,accuracy,mlperf,_open-orca,_int32\n"
        ),
        "run-mlperf-inference-app": (
            "input_description:\n  implementation:\n    choices:\n    - nvidia\n    desc: x\n"
        ),
    }.items():
        (scripts / name).mkdir(parents=True)
        (scripts / name / "meta.yaml").write_text(text)
    return scripts.parent


def test_the_implementation_is_registered_once(checkout: Path) -> None:
    assert register(checkout).count("meta.yaml") == 2
    app = yaml.safe_load((checkout / "script/app-mlperf-inference/meta.yaml").read_text())
    variation = app["variations"]["paceline"]
    assert variation["env"] == {"MLC_MLPERF_IMPLEMENTATION": "paceline"}
    tags = variation["prehook_deps"][0]["tags"].split(",")
    assert set(tags) <= set(yaml.safe_load((SCRIPT / "meta.yaml").read_text())["tags"])
    hook = app["variations"]["llama2-70b_"]["posthook_deps"][0]
    assert hook["skip_if_env"]["MLC_MLPERF_IMPLEMENTATION"] == ["nvidia", "paceline"]
    run = yaml.safe_load((checkout / "script/run-mlperf-inference-app/meta.yaml").read_text())
    assert run["input_description"]["implementation"]["choices"] == ["nvidia", "paceline"]
    assert (checkout / "script/app-mlperf-inference-paceline/customize.py").is_file()
    assert register(checkout) == ""


def test_the_script_has_what_its_repository_asks_of_one() -> None:
    meta = yaml.safe_load((SCRIPT / "meta.yaml").read_text())
    assert meta["alias"] == SCRIPT.name
    assert re.fullmatch(r"[0-9a-f]{16}", meta["uid"])
    assert {"llama2-70b-99", "llama2-70b-99.9", "offline", "server", "cpu", "cuda", "rocm"} <= set(
        meta["variations"]
    )
    assert os.access(SCRIPT / "run.sh", os.X_OK)
    assert "Apache License, Version 2.0" in (SCRIPT / "COPYRIGHT.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["performance", "accuracy"])
def test_the_real_tool_runs_paceline(mode: str, tmp_path: Path) -> None:
    missing = [name for name in NEEDED if name not in os.environ]
    if missing:
        pytest.skip(f"not set: {', '.join(missing)}")
    programs, automations, inference = (Path(os.environ[name]) for name in NEEDED)
    repository = tmp_path / "mlcommons@mlperf-automations"
    shutil.copytree(automations, repository, symlinks=True)
    register(repository)
    home = tmp_path / "home"
    home.mkdir()
    (home / ".gitconfig").write_text(
        f'[url "{inference}"]\n\tinsteadOf = https://github.com/mlcommons/inference\n'
        "[safe]\n\tdirectory = *\n"
    )
    paceline = tmp_path / "paceline"
    paceline.write_text(
        f'#!/bin/sh\nPYTHONPATH="{os.environ.get("PYTHONPATH", "")}" '
        f'exec "{sys.executable}" -m paceline "$@"\n'
    )
    paceline.chmod(0o755)
    subprocess.run(
        [paceline, "data", "synthetic", "syn", "--samples", "400"], cwd=tmp_path, check=True
    )
    environment = {"HOME": str(home), "PATH": f"{programs}:/usr/bin:/bin", "LANG": "C.UTF-8"}

    def tool(*arguments: str) -> str:
        done = subprocess.run(
            arguments, cwd=tmp_path, capture_output=True, text=True, env=environment, check=False
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return done.stdout + done.stderr

    tool("mlc", "add", "repo", str(repository))
    said = tool(
        "mlcr",
        f"run-mlperf,inference,_full,_r6.1-dev,_{mode}-only",
        *("--model=llama2-70b-99.9", "--implementation=paceline", "--framework=pytorch"),
        *("--category=datacenter", "--scenario=Offline", "--execution_mode=test", "--device=cpu"),
        *("--quiet", "--test_query_count=20", f"--env.OUTPUT_BASE_DIR={tmp_path}/results"),
        "--env.MLC_MLPERF_INFERENCE_LOADGEN_INSTALL_FROM_PIP=yes",
        f"--env.MLC_PACELINE_BIN={paceline}",
        "--env.MLC_PACELINE_ENGINE=fake",
        f"--env.MLC_DATASET_OPENORCA_PREPROCESSED_PATH={tmp_path}/syn/dataset.parquet",
        f"--env.MLC_PACELINE_EXTRA_ARGS=--set data.tokenizer={tmp_path}/syn "
        f"--set engine.fake.answers={tmp_path}/syn/dataset.parquet",
    )
    assert "paceline run --benchmark llama2-70b-99.9 --scenario Offline" in said
    folders = [p.parent for p in (tmp_path / "results").rglob("paceline/manifest.json")]
    (folder,) = folders
    summary = read_summary(folder.parent / "mlperf_log_summary.txt")
    if mode == "performance":
        assert summary.result == "VALID"
        assert re.search(r"\| llama2-70b-99\.9 \| Offline +\| +- +\| +[\d.]+ +\|", said)
    else:
        assert "'rouge1'" in (folder.parent / "accuracy.txt").read_text()
