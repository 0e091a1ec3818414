"""What vendor servers are started with: flags, budgets, GPUs, and the user's own word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from paceline.engines import server_gpus
from paceline.engines.server_gpus import Gpu, gpu_groups, visible_gpus
from paceline.engines.server_plan import ServerPlan, merged, write_config
from paceline.engines.server_presets import PRESETS
from paceline.errors import EnvironmentProblem, InputError


def plan(tmp_path: Path, **changes: Any) -> ServerPlan:
    values: dict[str, Any] = {
        "model": tmp_path / "llama",
        "model_name": "llama",
        "executable": "server",
        "port": 8123,
        "tensor_parallel": 1,
        "pipeline_parallel": 1,
        "quantization": "fp8",
        "kv_dtype": "fp8",
        "max_num_seqs": 1024,
        "max_step_tokens": 2048,
        "max_model_len": 2048,
        "memory_fraction": 0.9,
        "num_threads": 2,
        "config_path": tmp_path / "log" / "server-0.yaml",
    }
    return ServerPlan(**(values | changes))


def words(name: str, plan: ServerPlan, extra: str = "") -> str:
    preset = PRESETS[name]
    return " ".join([*preset.head(plan), *merged(preset, preset.flags(plan), extra)[0]])


@pytest.mark.parametrize(
    ("name", "no_reuse"),
    [
        ("vllm", "--no-enable-prefix-caching"),
        ("vllm-rocm", "--no-enable-prefix-caching"),
        ("sglang", "--disable-radix-cache"),
        ("llamacpp", "--no-cache-prompt"),
        ("llama-cpp-python", "--cache false"),
    ],
)
def test_no_preset_reuses_a_prompts_cache(tmp_path: Path, name: str, no_reuse: str) -> None:
    assert no_reuse in words(name, plan(tmp_path))


def test_trtllm_reuses_none_either_and_says_so_in_its_file(tmp_path: Path) -> None:
    planned = plan(tmp_path)
    write_config(PRESETS["trtllm"], planned)
    written = json.loads(planned.config_path.read_text())
    assert written["kv_cache_config"]["enable_block_reuse"] is False
    assert written["kv_cache_config"]["dtype"] == "fp8"
    assert f"--extra_llm_api_options {planned.config_path}" in words("trtllm", planned)


def test_the_users_flag_wins_in_any_spelling_and_is_told(tmp_path: Path) -> None:
    preset, planned = PRESETS["vllm"], plan(tmp_path)
    extra = "--max_num_seqs=512 -tp 2 --enable-prefix-caching --no-async-scheduling --seed 1"
    given, overridden = merged(preset, preset.flags(planned), extra)
    text = " ".join(given)
    assert text.endswith(extra)
    for gone in ("--max-num-seqs", "--tensor-parallel-size", "--no-enable-prefix-caching"):
        assert gone not in text
    assert overridden == {
        "--max-num-seqs 1024": "--max_num_seqs=512",
        "--tensor-parallel-size 1": "-tp 2",
        "--no-enable-prefix-caching": "--enable-prefix-caching",
        "--async-scheduling": "--no-async-scheduling",
    }


def test_a_negative_value_is_no_flag(tmp_path: Path) -> None:
    preset = PRESETS["sglang"]
    given, overridden = merged(preset, preset.flags(plan(tmp_path)), "--chunked-prefill-size -1")
    assert given[-2:] == ["--chunked-prefill-size", "-1"]
    assert list(overridden) == ["--chunked-prefill-size 2048"]


@pytest.mark.parametrize("extra", ["--port 9000", "--host=0.0.0.0"])
def test_the_address_is_not_the_users_to_set(tmp_path: Path, extra: str) -> None:
    with pytest.raises(InputError, match="which paceline chooses itself"):
        merged(PRESETS["vllm"], [], extra)


def test_a_quantised_checkpoint_is_left_as_it_is(tmp_path: Path) -> None:
    assert "--quantization fp8" in words("vllm", plan(tmp_path))
    assert "--quantization" not in words("vllm", plan(tmp_path, quantization="none"))


@pytest.mark.parametrize(
    ("name", "memory_gib", "budget"),
    [
        ("vllm", 79.6, (256, 1024)),  # one H100
        ("vllm", 159.3, (1024, 2048)),  # a pair of them
        ("vllm", 140.4, (1024, 2048)),  # one H200
        ("vllm", 179.1, (2048, 3584)),  # one B200
        ("vllm-rocm", 192.0, (1792, 40960)),  # MI300X
        ("vllm-rocm", 256.0, (2700, 65536)),  # MI325X
        ("vllm-rocm", 288.0, (3392, 65536)),  # MI355X
    ],
)
def test_budgets_follow_the_memory(name: str, memory_gib: float, budget: tuple[int, int]) -> None:
    row = next(row for row in PRESETS[name].budgets if memory_gib >= row[0])
    assert row[1:] == budget


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two NVIDIA GPUs, as far as nvidia-smi tells."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '0, GPU-aa, 81559'\necho '1, GPU-bb, 81559'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("smi")
def test_gpus_are_those_that_are_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [gpu.name for gpu in visible_gpus("nvidia")] == ["0", "1"]
    assert visible_gpus("nvidia")[0].memory_gib == pytest.approx(79.6, abs=0.1)
    for asked in ("1", "GPU-b"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", asked)
        assert [gpu.name for gpu in visible_gpus("nvidia")] == [asked]
    for wrong in ("7", ""):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", wrong)
        with pytest.raises(EnvironmentProblem, match="CUDA_VISIBLE_DEVICES"):
            visible_gpus("nvidia")


def test_no_gpu_is_an_error_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentProblem, match="No NVIDIA GPU was found") as caught:
        visible_gpus("nvidia")
    assert "engine.managed.preset=llamacpp" in str(caught.value)


def test_amd_gpus_are_read_from_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for node, simds in enumerate([0, 1216, 1216]):  # a CPU and two GPUs
        bank = tmp_path / str(node) / "mem_banks" / "0"
        bank.mkdir(parents=True)
        properties = f"simd_count {simds}\nunique_id {17 + node}\n"
        (tmp_path / str(node) / "properties").write_text(properties)
        (bank / "properties").write_text(f"heap_type 1\nsize_in_bytes {192 << 30}\n")
    monkeypatch.setattr(server_gpus, "_KFD_NODES", tmp_path)
    for variable in ("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        monkeypatch.delenv(variable, raising=False)
    assert visible_gpus("amd") == [Gpu("0", 192.0), Gpu("1", 192.0)]
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "1")
    assert visible_gpus("amd") == [Gpu("1", 192.0)]


def test_gpus_are_grouped_and_none_is_left_over() -> None:
    gpus = [Gpu(str(i), 80.0) for i in range(4)]
    assert [[gpu.name for gpu in group] for group in gpu_groups(gpus, 2)] == [
        ["0", "1"],
        ["2", "3"],
    ]
    with pytest.raises(InputError, match="4 GPUs do not make groups of 3"):
        gpu_groups(gpus, 3)
