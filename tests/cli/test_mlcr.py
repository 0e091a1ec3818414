"""The guide's commands become ours, word for word; what they get wrong is put right or refused."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from support import Paceline

from paceline.cli.mlcr_verbs import translate
from paceline.cli.mlcr_words import Translation
from paceline.errors import InputError

RUN = "run-mlperf,inference,_full,_r6.1-dev"
TAIL = "--category=datacenter --scenario=Offline"
GENERATE = (
    "generate,inference,submission,_wg-inference --clean --run-checker --tar=yes "
    "--env.MLC_TAR_OUTFILE=submission.tar.gz --division=open --category=datacenter "
    "--env.CM_DETERMINE_MEMORY_CONFIGURATION=yes --run_style=test --quiet --submitter=Team_A"
)
PUSH = (
    "push,github,mlperf,inference,submission "
    "--repo_url=https://github.com/myfork/mlperf-automations "
    "--repo_branch=mlperf-inference-results-scc25 "
    '--commit_message="Results on system HW" --quiet'
)


def become(command: str, cwd: Path) -> Translation:
    return translate(shlex.split(command), cwd)


def only(command: str, cwd: Path) -> str:
    (step,) = become(command, cwd).steps
    return step.text


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LLAMA2_CHECKPOINT_PATH", "MLC_DATASET_OPENORCA_PREPROCESSED_PATH"):
        monkeypatch.delenv(name, raising=False)


def a_run(cwd: Path, name: str, *, status: str = "COMPLETE") -> Path:
    path = cwd / "mlcr" / name
    path.mkdir(parents=True)
    (path / "manifest.json").write_text(json.dumps({"schema": 1, "status": status}))
    return path


@pytest.mark.parametrize(
    ("command", "wanted"),
    [
        (
            (
                "run-mlperf,inference,_find-performance,_full,_r5.1-dev --model=llama2-70b-99 "
                f"--implementation=reference --framework=pytorch {TAIL} --execution_mode=test "
                "--device=cuda --docker --quiet --rerun"
            ),
            (
                "paceline launch --container docker --image paceline --gpu cuda "
                "--benchmark llama2-70b-99 --scenario Offline --round v5.1 "
                "--mode performance --engine reference --set engine.reference.device=cuda "
                "--set run.num_samples=10 --set loadgen.min_duration_ms=0 "
                "--out mlcr/test_results/reference-llama2-70b-99/Offline-performance"
            ),
        ),
        (
            (
                f"{RUN},_performance-only --model=llama2-70b-99.9 --implementation=nvidia "
                f"--framework=tensorrt {TAIL} --execution_mode=valid --device=cuda --tp_size=2 "
                "--pp_size=1 --precision=fp8 --batch_size=llama2-70b:1024 --quiet"
            ),
            (
                "paceline run --benchmark llama2-70b-99.9 --scenario Offline --round v6.1 "
                "--mode performance --engine native --set engine.native.device=cuda "
                "--set engine.native.tensor_parallel=2 --set engine.native.max_live_sequences=1024 "
                "--set engine.native.quantization=fp8-tensor "
                "--out mlcr/valid_results/nvidia-llama2-70b-99.9/Offline-performance"
            ),
        ),
        (
            (
                f"{RUN},_accuracy-only --model=llama2-70b-99.9 --implementation=network "
                f"--api_server=http://a:8000,http://b:8000 --framework=vllm {TAIL} "
                "--execution_mode=valid --apptainer"
            ),
            (
                "paceline launch --container apptainer --image paceline.sif "
                "--benchmark llama2-70b-99.9 --scenario Offline --round v6.1 "
                "--mode accuracy --engine endpoint "
                "--set engine.endpoint.urls=http://a:8000,http://b:8000 "
                "--out mlcr/valid_results/network-llama2-70b-99.9/Offline-accuracy"
            ),
        ),
        (
            (
                f"{RUN} --model=llama2-70b-99.9 --implementation=amd {TAIL} --execution_mode=valid "
                "--device=rocm --tp_size=4 --compliance=yes"
            ),
            (
                "paceline run --benchmark llama2-70b-99.9 --scenario Offline --round v6.1 "
                "--mode submission --engine managed --set engine.managed.preset=vllm-rocm "
                "--set engine.managed.tensor_parallel=4 "
                "--out mlcr/valid_results/amd-llama2-70b-99.9/Offline-submission"
            ),
        ),
        (
            (
                f"{RUN},_performance-only --model=llama2-70b-99.9 --scenario=Server "
                "--server_target_qps=12.5 --execution_mode=valid --min_duration=700000"
            ),
            (
                "paceline run --benchmark llama2-70b-99.9 --scenario Server --round v6.1 "
                "--mode performance --engine reference --set loadgen.target_qps=12.5 "
                "--set loadgen.min_duration_ms=700000 "
                "--out mlcr/valid_results/reference-llama2-70b-99.9/Server-performance"
            ),
        ),
    ],
)
def test_a_run_of_the_guide_becomes_one_of_ours(command: str, wanted: str, tmp_path: Path) -> None:
    assert only(command, tmp_path) == wanted


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--model=llama2-70b-99.99", "99.99 does not exist"),
        ("--implementation=reference", "--model is not given"),
        ("--model=llama2-70b-99.9 --tp_siez=2", "did you mean --tp_size?"),
        ("--model=llama2-70b-99.9 --implementation=intel", "no --implementation=intel"),
        ("--model=llama2-70b-99.9 --framework=tensorrt", "does not go with --framework=tensorrt"),
        ("--model=llama2-70b-99.9 --category=edge", "a datacenter benchmark"),
        ("--model=llama2-70b-99.9 --precision=fp8", "MLC would run float32"),
        ("--model=llama2-70b-99.9 --precision=fp4", "--precision=fp4"),
        ("--model=llama2-70b-99.9 --implementation=nvidia --pp_size=2", "no pipeline parallel"),
        ("--model=llama2-70b-99.9 --execution_mode=fast", "neither a test nor a valid run"),
        ("--model=llama2-70b-99.9 --execution_mode=valid --test_query_count=5", "does nothing"),
        ("--model=llama2-70b-99.9 --offline_target_qps=x", "no number above 0"),
        ("--model=llama2-70b-99.9 --server_target_qps=5", "does nothing in Offline"),
        ("--model=llama2-70b-99.9 --implementation=network", "no server"),
        ("--model=llama2-70b-99.9 --client_secret=s3cret", "shell's history"),
        ("--model=llama2-70b-99.9 --adr.python.name=x", "paceline has none"),
        ("--model=llama2-70b-99.9 --env.MLC_X=1", "has no meaning here"),
        ("--model=llama2-70b-99.9 --rerun=perhaps", "neither yes nor no"),
        ("--model=llama2-70b-99.9 --tp_size 2", "'2' stands alone"),
        ("--model=llama2-70b-99 --model=llama2-70b-99.9", "given twice"),
        ("--model=llama2-70b-99 --docker --apptainer", "a run has one container"),
        ("--model=llama2-70b-99 --docker_image=x", "does nothing without --docker"),
    ],
)
def test_what_cannot_be_followed_is_refused_with_the_reason(
    flags: str, words: str, tmp_path: Path
) -> None:
    if "no server" in words:
        words = "asks a server, and none is named"
    with pytest.raises(InputError) as caught:
        become(f"{RUN} {flags}", tmp_path)
    assert words in str(caught.value)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("run-mlperf,inference,_r4.0 --model=llama2-70b-99.9", "no rules of round v4.0"),
        ("run-mlperf,inference,_ful --model=llama2-70b-99.9", "no variation _ful"),
        ("run-mlperf,inference,_all-scenarios --model=llama2-70b-99.9", "each scenario by itself"),
        ("run-mlperf,inferense --model=llama2-70b-99.9", "did you mean run-mlperf,inference?"),
        ("detect,os", "there is no command 'detect,os'"),
    ],
)
def test_an_unknown_command_or_variation_is_refused(
    command: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        become(command, tmp_path)
    assert words in str(caught.value)


def test_every_flag_of_the_guide_that_does_nothing_is_said_to(tmp_path: Path) -> None:
    made = become(f"{RUN} --model=llama2-70b-99.9 --quiet --division=open", tmp_path)
    for flag in ("--quiet", "--division"):
        assert [note for note in made.notes if note.startswith(flag)], flag


def test_a_run_that_is_there_is_shown_resumed_or_made_again(tmp_path: Path) -> None:
    place = "test_results/reference-llama2-70b-99.9/Offline-performance"
    command = f"{RUN},_performance-only --model=llama2-70b-99.9"
    run = a_run(tmp_path, place)
    assert only(command, tmp_path) == f"paceline show mlcr/{place}"
    assert f"--out mlcr/{place}-2" in only(f"{command} --rerun", tmp_path)
    a_run(tmp_path, f"{place}-10", status="INTERRUPTED")
    assert only(command, tmp_path) == f"paceline run --resume mlcr/{place}-10"
    assert f"--out mlcr/{place}-11" in only(f"{command} --rerun", tmp_path)
    assert only(f"{command} --apptainer --device=cpu", tmp_path) == (
        "paceline launch --container apptainer --image paceline.sif --gpu none "
        f"--resume mlcr/{place}-10"
    )
    assert run.exists()


@pytest.mark.parametrize(
    ("variations", "source"),
    [
        ("", "https://llama2.mlcommons-storage.org/metadata/llama-2-70b-chat-hf.uri"),
        (",_r2-downloader,_mlc", "https://llama2.mlcommons-storage.org/metadata/"),
        (",_hf,_pytorch", "meta-llama/Llama-2-70b-chat-hf"),
    ],
)
def test_a_model_that_is_not_there_is_fetched_and_remembered(
    variations: str, source: str, tmp_path: Path
) -> None:
    fetch, remember = become(
        f"get,ml-model,llama2-70b{variations} --outdirname=m --use_service_account", tmp_path
    ).steps
    assert fetch.text.startswith(f"paceline model fetch {source}")
    assert fetch.arguments[-1] == "m"
    assert remember.arguments == ("model", f"{tmp_path.resolve()}/m")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("get,ml-model,llama2-70b,_rclone", "_r2-downloader fetches the same files"),
        ("get,ml-model,llama2-70b,_tiny", "there is no variation _tiny"),
        ("get,ml-model,llama2-70b,_hf,_mlc", "several sources"),
        ("get,ml-model,llama2-70b --hf_token=s3cret", "export HF_TOKEN"),
    ],
)
def test_a_model_that_cannot_be_fetched_as_asked_is_refused(
    command: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        become(command, tmp_path)
    assert words in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_the_guides_submission_command_is_put_right(tmp_path: Path) -> None:
    a_run(tmp_path, "valid_results/nvidia-llama2-70b-99.9/Offline-performance")
    a_run(tmp_path, "valid_results/nvidia-llama2-70b-99.9/Offline-performance-2")
    a_run(tmp_path, "valid_results/nvidia-llama2-70b-99.9/Offline-accuracy")
    a_run(tmp_path, "test_results/nvidia-llama2-70b-99.9/Offline-performance")
    (tmp_path / "mlcr/submission").mkdir()
    made = become(f'{GENERATE} --hw_name="My system name"', tmp_path)
    base = "mlcr/valid_results/nvidia-llama2-70b-99.9"
    assert [step.text for step in made.steps] == [
        "mv mlcr/submission mlcr/submission.previous-1",
        (
            f"paceline submit {base}/Offline-accuracy {base}/Offline-performance-2 "
            "--submitter Team_A --system My_system_name --division open --out mlcr/submission "
            "--set 'system_name=My system name'"
        ),
        "cp mlcr/submission/mlperf_submission.tar.gz submission.tar.gz",
    ]
    notes = "\n".join(made.notes)
    assert "CM_ is the old prefix" in notes
    assert "--run_style=test: the guide's slip" in notes


def test_a_submission_of_nothing_or_of_two_things_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run in mlcr/valid_results"):
        become(GENERATE, tmp_path)
    a_run(tmp_path, "valid_results/nvidia-llama2-70b-99.9/Offline-all", status="RUNNING")
    with pytest.raises(InputError, match="is RUNNING"):
        become(GENERATE, tmp_path)
    a_run(tmp_path, "valid_results/amd-llama2-70b-99.9/Offline-all")
    with pytest.raises(InputError, match="several implementations"):
        become(GENERATE, tmp_path)
    with pytest.raises(InputError, match="the official checker refuses"):
        become(f"{GENERATE} --skip_truncation=yes", tmp_path)


def test_the_guides_push_becomes_ours(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no submission in mlcr/submission"):
        become(PUSH, tmp_path)
    (tmp_path / "mlcr/submission").mkdir(parents=True)
    assert only(PUSH, tmp_path) == (
        "paceline push mlcr/submission --repo-url https://github.com/myfork/mlperf-automations "
        "--branch mlperf-inference-results-scc25 --commit-message 'Results on system HW'"
    )
    with pytest.raises(InputError, match="export GITHUB_TOKEN"):
        become(f"{PUSH} --env.MLC_GITHUB_PAT=x", tmp_path)


def test_the_guides_own_page_can_be_followed(real_logs: Path, tmp_path: Path) -> None:
    guide = (real_logs.parent / "guide-scc25.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", guide, re.DOTALL)
    a_run(tmp_path, "valid_results/reference-llama2-70b-99/Offline-all")
    (tmp_path / "mlcr/submission").mkdir()
    assert len(blocks) == 2
    for block in blocks:
        program, *arguments = shlex.split(re.sub(r"<[^>]*>", "X", block).replace("\\\n", " "))
        assert program == "mlcr"
        assert translate(arguments, tmp_path).steps


def test_a_dry_run_prints_and_does_nothing(tmp_path: Path, paceline: Paceline) -> None:
    shown = paceline("mlcr", f"{RUN},_performance-only", "--model=llama2-70b-99.9", "--dry-run")
    assert shown.code == 0, shown
    assert shown.out.startswith("paceline run --benchmark llama2-70b-99.9 ")
    assert shown.out.count("\n") == 1
    assert "note: No checkpoint is known" in shown.err
    assert not (tmp_path / "mlcr").exists()


def test_what_was_got_is_used_by_later_commands(tmp_path: Path, paceline: Paceline) -> None:
    made = paceline("data", "synthetic", "syn", "--samples", "400")
    assert made.code == 0, made
    got = paceline("mlcr", "get,ml-model,llama2-70b,_pytorch", "--checkpoint=syn")
    assert "# model of later commands: " in got.out, got
    assert got.code == 0, got
    verified = paceline("mlcr", "get,dataset,preprocessed,openorca", "--path=syn/dataset.parquet")
    assert "paceline data verify syn/dataset.parquet" in verified.out
    assert verified.code == 1, verified  # 400 samples are not the benchmark's dataset
    text = only(f"{RUN} --model=llama2-70b-99.9", tmp_path)
    assert f"--model {tmp_path.resolve()}/syn" in text
    (tmp_path / "theirs").mkdir()
    with pytest.raises(InputError, match="holds no mlperf_log_accuracy"):
        become("process,mlperf,accuracy --result_dir=theirs", tmp_path)
    (tmp_path / "theirs/mlperf_log_accuracy.json").write_text("[]")
    with pytest.raises(InputError, match="checkpoint and dataset have to be known"):
        become("process,mlperf,accuracy --result_dir=theirs", tmp_path)
    (tmp_path / "mlcr/data.path").write_text("/data.parquet\n")
    text = only("process,mlperf,accuracy --result_dir=theirs", tmp_path)
    assert (
        text == f"paceline score theirs --data /data.parquet --tokenizer {tmp_path.resolve()}/syn"
    )


def test_the_exit_code_is_that_of_the_command_it_became(tmp_path: Path, paceline: Paceline) -> None:
    run = paceline("run", "--engine", "fake", "--mode", "performance", "--out", "mlcr/x")
    assert run.code == 0, run
    shown = paceline("mlcr", "process,mlperf,accuracy", "--result_dir=mlcr/x/performance")
    assert shown.code == 0, shown
    assert "paceline show mlcr/x" in shown.out
    assert "tokens/s" in shown.out
    refused = paceline("mlcr", "process,mlperf,accuracy", "--result_dir=nowhere")
    assert refused.code == 2, refused
