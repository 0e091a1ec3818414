"""Batch files under a real Slurm: to a verdict, through a requeue, and what a follower sees."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from slurm_cluster import SlurmCluster, skip_without_slurm
from support import Paceline

from paceline.rundir import Journal

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "recipes" / "laptop-demo.toml"
ANSWERS = ROOT / "src" / "paceline" / "mlperf" / "data" / "demo_samples.parquet"
FAKE = ("--engine", "fake", "--set", f"engine.fake.answers={ANSWERS}")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    skip_without_slurm()
    cluster = SlurmCluster(tmp_path_factory.mktemp("slurm"), num_nodes=2)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def manifest_of(run_dir: Path) -> Any:
    return json.loads((run_dir / "manifest.json").read_text())


def lines_of(run_dir: Path) -> list[str]:
    """The journal's lines; each has as many samples as were answered together."""
    path = run_dir / "accuracy" / "journal.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def num_journaled(run_dir: Path) -> int:
    """Samples."""
    path = run_dir / "accuracy" / "journal.jsonl"
    return len(Journal(path).read()) if path.exists() else 0


def test_a_submitted_job_is_followed_to_its_verdict(
    slurm: SlurmCluster, paceline: Paceline, tmp_path: Path
) -> None:
    got = paceline(
        *("launch", "slurm", DEMO, *FAKE, "--out", "my runs/it's one", "--job-name", "demo"),
        *("--time", "10", "--submit", "--every", "0.5"),
        env=slurm.environment,
    )
    assert got.code == 0, got
    assert "verdict      PASS" in got.out
    assert "RUNNING n" in got.err
    run_dir = tmp_path / "my runs" / "it's one"
    assert manifest_of(run_dir)["status"] == "COMPLETE"
    job_dir = run_dir.with_name("it's one.job")
    (facts,) = job_dir.glob("job-*.txt")
    assert "JobName=demo" in facts.read_text()
    again = paceline("launch", "follow", job_dir, env=slurm.environment)
    assert again.code == 0, again
    assert "COMPLETED" in again.err


@pytest.mark.slow
def test_a_requeued_job_resumes_its_accuracy_run_in_the_same_log(
    slurm: SlurmCluster, paceline: Paceline, tmp_path: Path
) -> None:
    words = ["launch", "slurm", DEMO, *FAKE, "--mode", "accuracy", "--out", "run", "--submit"]
    words += ["--set", "engine.fake.tokens_per_second=60", "--set", "run.num_samples=48"]
    follower = subprocess.Popen(
        [sys.executable, "-m", "paceline", *map(str, words), "--every", "0.5"],
        env=slurm.environment,
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # A test run in the background is told to ignore Ctrl-C, and passes that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    run_dir, record = tmp_path / "run", tmp_path / "run.job" / "job.json"
    slurm.wait_for("some samples are on disk", lambda: num_journaled(run_dir) > 4)
    job = json.loads(record.read_text())["job"]

    follower.send_signal(signal.SIGINT)
    _, said = follower.communicate(timeout=60)
    assert follower.returncode == 3, said
    assert f"Stopped following; job {job} goes on." in said
    assert f"scancel {job}" in said
    assert slurm.ask("squeue", "--noheader", f"--jobs={job}", "--format=%T").strip() == "RUNNING"

    slurm.ask("scontrol", "requeue", job)
    slurm.wait_for("the run stops", lambda: manifest_of(run_dir)["status"] == "INTERRUPTED")
    lines, kept = lines_of(run_dir), num_journaled(run_dir)
    assert 4 < kept < 48
    slurm.wait_for(
        "the job waits again",
        lambda: slurm.ask("squeue", "--noheader", f"--jobs={job}", "--format=%T") == "PENDING\n",
    )
    slurm.ask("scontrol", "update", f"JobId={job}", "StartTime=now")
    got = paceline("launch", "follow", "run", "--every", "0.5", env=slurm.environment)
    assert got.code == 0, got
    assert "accuracy     PASS" in got.out
    assert len(manifest_of(run_dir)["resumed"]) == 1
    assert lines_of(run_dir)[: len(lines)] == lines
    assert num_journaled(run_dir) == 48
    assert f"accuracy: {kept} samples were finished before and kept" in got.err


def test_a_job_that_ends_without_a_verdict_says_where_to_look_and_how_to_go_on(
    slurm: SlurmCluster, paceline: Paceline, tmp_path: Path
) -> None:
    got = paceline(
        *("launch", "slurm", DEMO, "--engine", "fake", "--out", "run", "--submit", "--every", "1"),
        *("--set", "engine.fake.fail_after=2", "--set", "run.num_samples=8"),
        env=slurm.environment,
    )
    assert got.code == 3, got
    assert "ended without a verdict: FAILED exit 3:0" in got.err
    assert f"sbatch --parsable {tmp_path}/run.job/job.sbatch" in got.err


def test_a_job_that_slurm_refuses_shows_slurms_own_words(
    slurm: SlurmCluster, paceline: Paceline
) -> None:
    got = paceline(
        *("launch", "slurm", DEMO, "--engine", "fake", "--partition", "nowhere", "--submit"),
        env=slurm.environment,
    )
    assert got.code == 3
    assert "sbatch refused the job" in got.err
    assert "invalid partition specified: nowhere" in got.err


@pytest.mark.slow
def test_a_job_on_two_nodes_starts_ray_and_leaves_none_of_it_behind(
    slurm: SlurmCluster, paceline: Paceline, tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install 'paceline[ray]' -c constraints.txt")
    got = paceline(
        *("launch", "slurm", "--nodes", "2", "--engine", "replicas", "--out", "run", "--submit"),
        *("--set", "engine.replicas.engine=fake", "--set", f"engine.fake.answers={ANSWERS}"),
        env=slurm.environment,
        timeout_s=580,
    )
    assert got.code == 0, got
    assert "verdict      PASS" in got.out
    assert "Ray is up on 2 nodes" in got.err
    job_dir = tmp_path / "run.job"
    job = json.loads((job_dir / "job.json").read_text())["job"]
    assert (job_dir / "ray-head-n1.log").stat().st_size
    assert (job_dir / "ray-worker-n2.log").stat().st_size
    assert (job_dir / "ray-token").stat().st_mode & 0o777 == 0o600
    assert list(job_dir.glob("ray-session-*-n1.tar.gz"))
    left = [
        path.parent.name
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if f"paceline-ray-{job}/".encode() in _read(path)
    ]
    assert not left
    assert not Path(f"/tmp/paceline-ray-{job}").exists()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has ended in between
        return b""
