"""Batch files and container commands: what they say, that a shell reads it so, what is refused."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import Paceline

from paceline.cli import app
from paceline.errors import InputError
from paceline.operate.launch_container import Container
from paceline.operate.launch_plan import Errand, Resources, seconds_of
from paceline.operate.launch_render import Job, render

DEMO = Path(__file__).parents[2] / "recipes" / "laptop-demo.toml"
ODD = "a b's $HOME %j"
SHELLCHECK = Path(sys.executable).with_name("shellcheck")
# Stands in for a container program: it keeps the words it got, and runs the command that comes
# after the image, in the environment and the folder that the words ask for.
RECORDER = """#!/bin/sh
printf '%s\\n' "$@" >"$RECORD"
[ "$1 $2" = "image inspect" ] && exit "${INSPECT:-0}"
folder=.
while [ "$1" != "$IMAGE" ]; do
    case $1 in
    --env) case $2 in *=*) export "$2" ;; esac ;;
    --pwd | --workdir) folder=$2 ;;
    esac
    shift
done
shift 2
cd "$folder" && exec "$PYTHON" -m paceline "$@"
"""


def an_errand(tmp_path: Path, *, engine: str = "replicas", name: str = "run 1") -> Errand:
    return Errand(
        words=("--mode", "accuracy", "--set", "engine.native.kv_cache=a b"),
        recipe=DEMO,
        run_dir=tmp_path / name,
        engine=engine,
        model_engine="native",
        benchmark="llama2-70b-99.9",
        files={},
        is_resumed=False,
    )


def a_container(tmp_path: Path, kind: str, **changes: object) -> Container:
    values = {
        "kind": kind,
        "image": "paceline.sif",
        "gpus": "cuda",
        "reads": (tmp_path / "model",),
        "writes": (tmp_path / "run 1",),
        "home": tmp_path / "cache",
        "has_network": False,
    }
    return Container(**(values | changes))  # type: ignore[arg-type]


def shellcheck(script: str) -> str:
    # SC2016 is for who forgot that $ means nothing in single quotes; here it shall not.
    command = [str(SHELLCHECK), "--shell=bash", "--exclude=SC2016", "-"]
    return subprocess.run(command, input=script, capture_output=True, text=True).stdout


@pytest.mark.parametrize("scheduler", ["slurm", "pbs"])
@pytest.mark.parametrize("nodes", [1, 4])
@pytest.mark.parametrize("kind", [None, "apptainer", "docker"])
def test_a_batch_file_is_clean_shell(
    scheduler: str, nodes: int, kind: str | None, tmp_path: Path
) -> None:
    container = a_container(tmp_path, kind, is_spread=nodes > 1) if kind else None
    resources = Resources(nodes=nodes, gpus_per_node="8", setup=("module load cuda",))
    errand = an_errand(tmp_path, name=ODD)
    script = render(
        Job(scheduler=scheduler, errand=errand, resources=resources, container=container)
    )
    assert shellcheck(script) == ""
    assert ("start_ray" in script) == (nodes > 1)
    assert "module load cuda\n" in script


def test_a_shell_reads_back_the_words_that_were_meant(tmp_path: Path) -> None:
    errand = an_errand(tmp_path, engine="native", name=ODD)
    job = Job(scheduler="slurm", errand=errand, resources=Resources(), container=None)
    lines = [line for line in render(job).splitlines() if line.startswith(("FIRST=", "RUN_DIR="))]
    show = 'printf "%s\\0" "${FIRST[@]}" "$RUN_DIR"'
    printed = subprocess.run(
        ["bash", "-c", "\n".join([*lines, show])], capture_output=True, text=True, check=True
    ).stdout.split("\0")[:-1]
    recipe = f"{tmp_path}/{ODD}.job/recipe.toml"
    run_dir = f"{tmp_path}/{ODD}"
    assert printed == ["run", recipe, *errand.words, "--out", run_dir, run_dir]


def test_a_scheduler_is_asked_for_what_the_flags_say(tmp_path: Path) -> None:
    resources = Resources(
        nodes=2,
        gpus_per_node="h100:8",
        cpus_per_node=64,
        memory="500G",
        time="1-12",
        account="scc_25",
        partition="gpu,debug",
        qos="high",
        directives=("--reservation=contest",),
    )
    job = Job(scheduler="slurm", errand=an_errand(tmp_path), resources=resources, container=None)
    asked = [line for line in render(job).splitlines() if line.startswith("#SBATCH")]
    assert asked == [
        f"#SBATCH {line}"
        for line in (
            *("--job-name=paceline", "--nodes=2", "--ntasks-per-node=1"),
            *("--gpus-per-node=h100:8", "--cpus-per-task=64", "--mem=500G", "--exclusive"),
            *("--time=1-12", "--account=scc_25", "--partition=gpu,debug", "--qos=high"),
            *(f'--output="{tmp_path}/run 1.job/slurm-%j.out"', "--open-mode=append"),
            *("--requeue", "--signal=B:USR1@120", "--reservation=contest"),
        )
    ]
    plain = Resources(nodes=2, gpus_per_node="8", cpus_per_node=64, memory="500G", time="90")
    job = Job(scheduler="pbs", errand=an_errand(tmp_path), resources=plain, container=None)
    script = render(job)
    assert "#PBS -l select=2:mpiprocs=1:ncpus=64:ngpus=8:mem=500gb\n" in script
    assert "#PBS -l walltime=01:30:00\n" in script
    assert "#PBS -l place=scatter:excl\n" in script


def test_a_percent_sign_in_a_path_is_no_pattern_of_slurm(tmp_path: Path) -> None:
    errand = an_errand(tmp_path, engine="native", name="100%j")
    job = Job(scheduler="slurm", errand=errand, resources=Resources(), container=None)
    assert f'--output="{tmp_path}/100%%j.job/slurm-%j.out"' in render(job)


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        ("90", 5400),
        ("1:30", 90),
        ("04:00:00", 14400),
        ("1-12", 129600),
        ("2-01:30", 178200),
        ("1-00:00:30", 86430),
    ],
)
def test_a_time_is_read_as_slurm_reads_it(time: str, seconds: int) -> None:
    assert seconds_of(time) == seconds


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["slurm", "--time", "4h"], "--time '4h'"),
        (["slurm", "--time", "0"], "--time '0'"),
        (["slurm", "--account", "a b"], "--account 'a b'"),
        (["slurm", "--partition", "$(id)"], "--partition '$(id)'"),
        (["slurm", "--gpus-per-node", "eight"], "--gpus-per-node 'eight'"),
        (["slurm", "--mem", "lots"], "--mem 'lots'"),
        (["slurm", "--nodes", "2"], "the engine 'native' runs on one"),
        (["slurm", "--nodes", "0"], "--nodes 0 is none"),
        (["slurm", "--setup", "a\nb"], "is not one line"),
        (["slurm", "--ray-port", "80"], "--ray-port 80"),
        (["slurm", "--image", "x.sif"], "--image does nothing without a container"),
        (["slurm", "--container", "apptainer"], "needs an image"),
        (["slurm", "--container", "lxc", "x"], "--container 'lxc'"),
        (["slurm", "--set", "run.nmu_samples=3"], "there is no key 'run.nmu_samples'"),
        (["slurm", "--resume", "nowhere"], "is not a run directory"),
        (["slrum"], "'slrum' is neither a place, nor an image"),
        (["pbs", "--qos", "high"], "--qos is Slurm's"),
        (["pbs", "--gpus-per-node", "h100:8"], "without their kind"),
        (["--container", "docker", "img", "--nodes", "2"], "--nodes belongs to a scheduler"),
        (["--container", "docker", "img", "--submit"], "--submit belongs to a scheduler"),
        (["--container", "apptainer", "docker://x"], "would be fetched when the run starts"),
        (["--container", "docker", "img", "--gpu", "tpu"], "--gpu 'tpu'"),
        (["local"], "is what `paceline run` does"),
        (["follow"], "needs the job's folder"),
        (["follow", "x.job", "--time", "9"], "time does nothing there"),
    ],
)
def test_what_cannot_be_launched_is_refused_with_one_clear_error(
    flags: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    place, rest = ([], flags) if flags[0].startswith("-") else (flags[:1], flags[1:])
    recipe = [] if {"follow", "--resume"} & set(flags) else [str(DEMO)]
    with pytest.raises(InputError) as refused:
        app(["launch", *place, *recipe, *rest], standalone_mode=False)
    assert words in refused.value.message
    assert not list(tmp_path.iterdir()), "nothing is written"


def test_a_quote_in_a_path_is_refused_before_a_scheduler_sees_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot stand in a batch file"):
        Job(
            scheduler="slurm",
            errand=an_errand(tmp_path, engine="native", name='a"b'),
            resources=Resources(),
            container=None,
        )


def test_a_dry_run_prints_the_file_and_the_command_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["launch", "slurm", str(DEMO), "--out", "r", "--submit", "--dry-run"]
    app(words, standalone_mode=False)
    out = capsys.readouterr().out
    assert f"# {tmp_path}/r.job/job.sbatch\n#!/bin/bash\n" in out
    assert out.endswith(f"sbatch --parsable {tmp_path}/r.job/job.sbatch\n")
    assert not list(tmp_path.iterdir())


def test_paths_of_the_recipe_and_of_flags_become_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(DEMO, tmp_path / "r.toml")
    given = ["launch", "slurm", "r.toml", "--engine", "fake", "--dry-run", "--data", "d.parquet"]
    given += ["--set", "data.tokenizer=t", "--set", "run.num_samples=4"]
    app(given, standalone_mode=False)
    got = capsys.readouterr()
    (line,) = [one for one in got.out.splitlines() if one.startswith("FIRST=")]
    words = shlex.split(line.removeprefix("FIRST=(").removesuffix(")"))
    assert words[words.index("--data") + 1] == f"{tmp_path}/d.parquet"
    assert f"data.tokenizer={tmp_path}/t" in words
    assert f"note: {tmp_path}/d.parquet is not on this machine" in got.err


def test_a_batch_file_of_pbs_runs_to_a_verdict(paceline: Paceline, tmp_path: Path) -> None:
    """Its own environment stands in for PBS's: a file of nodes, and a job's name."""
    made = paceline(
        *("launch", "pbs", DEMO, "--engine", "fake", "--mode", "performance", "--out", "my run"),
        *("--set", "run.num_samples=4", "--setup", "test -d ."),
    )
    assert made.code == 0, made
    (tmp_path / "nodes").write_text("here\nhere\n")
    environment = os.environ | {"PBS_JOBID": "7.head", "PBS_NODEFILE": str(tmp_path / "nodes")}
    ran = subprocess.run(
        [tmp_path / "my run.job" / "job.pbs"], env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert json.loads((tmp_path / "my run" / "verdict.json").read_text())["result"] == "VALID"
    again = subprocess.run(
        [tmp_path / "my run.job" / "job.pbs"], env=environment, capture_output=True, text=True
    )
    assert again.returncode == 0
    assert "resuming the run" in again.stdout


@pytest.mark.parametrize("kind", ["apptainer", "podman", "docker"])
def test_a_run_in_a_container_gets_its_files_and_ends_as_it_ends(
    kind: str, paceline: Paceline, tmp_path: Path
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / kind).write_text(RECORDER)
    (programs / kind).chmod(0o755)
    data = tmp_path / "my data"
    data.mkdir()
    parquet = DEMO.parents[1] / "src/paceline/mlperf/data/demo_samples.parquet"
    shutil.copy(parquet, data / "d.parquet")
    image = tmp_path / "paceline.sif"
    image.touch()
    environment = os.environ | {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "RECORD": str(tmp_path / "words"),
        "IMAGE": str(image) if kind == "apptainer" else "paceline",
        "PYTHON": sys.executable,
    }
    got = paceline(
        *("launch", "--container", kind, "paceline.sif" if kind == "apptainer" else "paceline"),
        *(DEMO, "--engine", "fake", "--mode", "performance", "--out", "my run", "--gpu", "cuda"),
        *("--data", "my data/d.parquet", "--cache", "cache", "--set", "run.num_samples=4"),
        env=environment,
    )
    assert got.code == 0, got
    manifest = json.loads((tmp_path / "my run" / "manifest.json").read_text())
    assert manifest["status"] == "COMPLETE"
    assert manifest["config"]["data_path"] == f"{data}/d.parquet"
    words = (tmp_path / "words").read_text().splitlines()
    flag, form = ("--bind", "{0}:{0}:{1}") if kind == "apptainer" else ("--mount", None)
    bound = [words[place + 1] for place, word in enumerate(words) if word == flag]
    for path, mode in ((f"{data}/d.parquet", "ro"), (DEMO, "ro"), (tmp_path / "my run", "rw")):
        line = f"type=bind,source={path},target={path}" + (",readonly" if mode == "ro" else "")
        assert (form.format(path, mode) if form else line) in bound
    assert "HF_HUB_OFFLINE=1" in words
    cards = {"apptainer": "--nv", "podman": "nvidia.com/gpu=all", "docker": "--gpus"}
    assert cards[kind] in words
    if kind != "apptainer":
        assert words[words.index("--network") + 1] == "none"
        assert words[words.index("--pull") + 1] == "never"
    if kind != "podman":
        return
    again = paceline(
        *("launch", "--container", kind, environment["IMAGE"], "--resume", "my run"),
        *("--cache", "cache"),
        env=environment,
    )
    assert again.code == 0, again


def test_a_signal_ends_a_run_in_a_container_in_order(tmp_path: Path) -> None:
    """Killing the container's program would leave the container behind, and the run in it."""
    (tmp_path / "docker").write_text(RECORDER)
    (tmp_path / "docker").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "IMAGE": "i"}
    environment |= {"RECORD": str(tmp_path / "words"), "PYTHON": sys.executable}
    words = ["launch", "--container", "docker", "i", str(DEMO), "--engine", "fake", "--out", "r"]
    words += ["--mode", "accuracy", "--set", "engine.fake.tokens_per_second=20", "--cache", "c"]
    launched = subprocess.Popen(
        [sys.executable, "-m", "paceline", *words],
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    ends_s = time.monotonic() + 120
    while not (tmp_path / "r" / "accuracy" / "journal.jsonl").exists():
        assert time.monotonic() < ends_s
        assert launched.poll() is None, launched.communicate()
        time.sleep(0.1)
    launched.send_signal(signal.SIGTERM)
    _, said = launched.communicate(timeout=60)
    assert launched.returncode == 3, said
    assert f"paceline launch --container docker --image i --resume {tmp_path}/r" in said
    manifest = json.loads((tmp_path / "r" / "manifest.json").read_text())
    assert manifest["status"] == "INTERRUPTED"


def test_an_image_that_is_not_there_is_named_with_how_to_build_it(
    paceline: Paceline, tmp_path: Path
) -> None:
    (tmp_path / "docker").write_text(RECORDER)
    (tmp_path / "docker").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "INSPECT": "1"}
    environment |= {"RECORD": str(tmp_path / "words"), "IMAGE": "i"}
    got = paceline("launch", "--container", "docker", "i", DEMO, "--out", "r", env=environment)
    assert got.code == 3
    assert "docker has no image i" in got.err
    assert "docker build -t i -f containers/Containerfile ." in got.err


def test_amd_cards_and_the_hosts_network_are_handed_in(tmp_path: Path) -> None:
    words = a_container(tmp_path, "docker", gpus="rocm", has_network=True).wrap(["x"])
    assert words[words.index("--network") + 1] == "host"
    assert [words[i + 1] for i, word in enumerate(words) if word == "--device"] == [
        "/dev/kfd",
        "/dev/dri",
    ]
    assert "--rocm" in a_container(tmp_path, "apptainer", gpus="rocm").wrap(["x"])


def test_what_a_link_in_a_hubs_cache_leads_to_is_bound_as_well(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    (blobs / "1f").touch()
    (snapshot / "config.json").symlink_to("../../blobs/1f")
    words = a_container(tmp_path, "apptainer", reads=(snapshot,)).wrap(["x"])
    assert f"{blobs}:{blobs}:ro" in words
    assert f"{snapshot}:{snapshot}:ro" in words


def test_a_path_that_a_container_would_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be bound"):
        a_container(tmp_path, "docker", reads=(tmp_path / "a,b",))
