"""Command lines of the servers that paceline starts, tuned for MLPerf's Llama-2-70B Offline.

Common to all: no prompt's cache is reused for another (the rules forbid it), sampling defaults
that a checkpoint brings along are left out, weights and KV cache are FP8 on GPUs, and a server that
can tells its queues and its cache's use at /metrics. `budgets` are
sequences and tokens a step by the memory of a server's GPUs: what the submissions and the peer
measurements that docs/servers.md names used.

Sources: vLLM vllm/engine/arg_utils.py, and command lines in use for its later flags; SGLang
docs/advanced_features/server_arguments.md (004813e1); TensorRT-LLM
tensorrt_llm/commands/serve.py (00209af1), whose
`--extra_llm_api_options` file overwrites what flags say; llama.cpp tools/server/README.md
(00dc8057); llama-cpp-python 0.3.36 `python -m llama_cpp.server --help`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from paceline.engines.server_plan import Flag, Preset, ServerPlan

__all__ = ["PRESETS"]

_LOCAL = "127.0.0.1"
_NVIDIA_BUDGETS = ((170.0, 2048, 3584), (130.0, 1024, 2048), (70.0, 256, 1024), (0.0, 64, 1024))
_AMD_BUDGETS = ((280.0, 3392, 65536), (250.0, 2700, 65536), (185.0, 1792, 40960), (0.0, 256, 8192))


def _present(*flags: Flag | None) -> list[Flag]:
    return [flag for flag in flags if flag is not None]


def _vllm_flags(plan: ServerPlan) -> list[Flag]:
    return _present(
        ("--host", _LOCAL),
        ("--port", str(plan.port)),
        ("--served-model-name", plan.model_name),
        ("--tensor-parallel-size", str(plan.tensor_parallel)),
        ("--pipeline-parallel-size", str(plan.pipeline_parallel)),
        ("--quantization", "fp8") if plan.quantization == "fp8" else None,
        ("--kv-cache-dtype", plan.kv_dtype),
        ("--max-model-len", str(plan.max_model_len)),
        ("--max-num-seqs", str(plan.max_num_seqs)),
        ("--max-num-batched-tokens", str(plan.max_step_tokens)),
        ("--gpu-memory-utilization", f"{plan.memory_fraction:g}"),
        ("--no-enable-prefix-caching", None),
        # Left to the server with pipeline stages, where not every version takes it.
        ("--async-scheduling", None) if plan.pipeline_parallel == 1 else None,
        ("--generation-config", "vllm"),
        ("--uvicorn-log-level", "warning"),
    )


def _sglang_flags(plan: ServerPlan) -> list[Flag]:
    return _present(
        ("--model-path", str(plan.model)),
        ("--host", _LOCAL),
        ("--port", str(plan.port)),
        ("--served-model-name", plan.model_name),
        ("--tensor-parallel-size", str(plan.tensor_parallel)),
        ("--pipeline-parallel-size", str(plan.pipeline_parallel)),
        ("--quantization", "fp8") if plan.quantization == "fp8" else None,
        ("--kv-cache-dtype", "fp8_e4m3" if plan.kv_dtype == "fp8" else plan.kv_dtype),
        ("--context-length", str(plan.max_model_len)),
        ("--max-running-requests", str(plan.max_num_seqs)),
        ("--chunked-prefill-size", str(plan.max_step_tokens)),
        ("--mem-fraction-static", f"{plan.memory_fraction:g}"),
        ("--disable-radix-cache", None),
        ("--schedule-policy", "fcfs"),
        ("--sampling-defaults", "openai"),
        ("--enable-metrics", None),
        ("--log-level-http", "warning"),
    )


def _trtllm_flags(plan: ServerPlan) -> list[Flag]:
    return [
        ("--host", _LOCAL),
        ("--port", str(plan.port)),
        ("--backend", "pytorch"),
        ("--tp_size", str(plan.tensor_parallel)),
        ("--pp_size", str(plan.pipeline_parallel)),
        ("--max_batch_size", str(plan.max_num_seqs)),
        ("--max_num_tokens", str(plan.max_step_tokens)),
        ("--max_seq_len", str(plan.max_model_len)),
        ("--extra_llm_api_options", str(plan.config_path)),
    ]


def _trtllm_config(plan: ServerPlan) -> dict[str, Any]:
    return {
        "kv_cache_config": {
            "enable_block_reuse": False,
            "dtype": plan.kv_dtype,
            "free_gpu_memory_fraction": plan.memory_fraction,
        },
        "scheduler_config": {"capacity_scheduler_policy": "MAX_UTILIZATION"},
        "enable_chunked_prefill": True,
    }


def _llamacpp_flags(plan: ServerPlan) -> list[Flag]:
    return [
        ("--model", str(plan.model)),
        ("--alias", plan.model_name),
        ("--host", _LOCAL),
        ("--port", str(plan.port)),
        ("--parallel", str(plan.max_num_seqs)),
        # The context is shared out among the slots.
        ("--ctx-size", str(plan.max_model_len * plan.max_num_seqs)),
        ("--batch-size", str(plan.max_step_tokens)),
        ("--threads", str(plan.num_threads)),
        ("--no-cache-prompt", None),
        ("--metrics", None),
        ("--no-webui", None),
    ]


def _llama_cpp_python_flags(plan: ServerPlan) -> list[Flag]:
    return [
        ("--model", str(plan.model)),
        ("--model_alias", plan.model_name),
        ("--host", _LOCAL),
        ("--port", str(plan.port)),
        ("--n_ctx", str(plan.max_model_len)),
        ("--n_batch", str(plan.max_step_tokens)),
        ("--n_threads", str(plan.num_threads)),
        ("--n_threads_batch", str(plan.num_threads)),
        ("--cache", "false"),
        # It answers one request at a time; a second one must wait and not cut the first short.
        ("--interrupt_requests", "false"),
        ("--verbose", "false"),
    ]


def _paceline_flags(plan: ServerPlan) -> list[Flag]:
    return [
        ("--engine", "native"),
        ("--model", str(plan.model)),
        ("--model-name", plan.model_name),
        ("--host", _LOCAL),
        ("--port", str(plan.port)),
    ]


def _always(*words: str) -> Callable[[ServerPlan], tuple[str, ...]]:
    def head(plan: ServerPlan) -> tuple[str, ...]:
        del plan
        return words

    return head


def _vllm(vendor: str, **more: Any) -> Preset:
    return Preset(
        vendor=vendor,
        kind="vllm",
        executable="vllm",
        head=lambda plan: ("serve", str(plan.model)),
        flags=_vllm_flags,
        no_reuse="--no-enable-prefix-caching",
        context_flags=("--max-model-len",),
        version_words=("--version",),
        aliases={"tp": "tensor-parallel-size", "pp": "pipeline-parallel-size", "q": "quantization"},
        **more,
    )


def _version_of(package: str) -> tuple[str, ...]:
    return ("-c", f"import importlib.metadata as m; print(m.version({package!r}))")


PRESETS: dict[str, Preset] = {
    "vllm": _vllm(
        "nvidia",
        budgets=_NVIDIA_BUDGETS,
        memory_fraction=0.94,
        environment={"VLLM_NO_USAGE_STATS": "1"},
    ),
    "vllm-rocm": _vllm(
        "amd",
        budgets=_AMD_BUDGETS,
        memory_fraction=0.95,
        environment={
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_ROCM_USE_AITER": "1",
            "HIP_FORCE_DEV_KERNARG": "1",
        },
    ),
    "sglang": Preset(
        vendor="nvidia",
        kind="sglang",
        executable=sys.executable,
        head=_always("-m", "sglang.launch_server"),
        flags=_sglang_flags,
        no_reuse="--disable-radix-cache",
        context_flags=("--context-length",),
        version_words=_version_of("sglang"),
        budgets=_NVIDIA_BUDGETS,
        memory_fraction=0.9,
        aliases={
            "tp-size": "tensor-parallel-size",
            "tp": "tensor-parallel-size",
            "pp-size": "pipeline-parallel-size",
            "model": "model-path",
        },
    ),
    "trtllm": Preset(
        vendor="nvidia",
        kind="trtllm",
        executable="trtllm-serve",
        head=lambda plan: (str(plan.model),),
        flags=_trtllm_flags,
        config=_trtllm_config,
        no_reuse="--extra_llm_api_options",
        context_flags=("--max_seq_len", "--extra_llm_api_options"),
        version_pattern=r"TensorRT.LLM version: (\S+)",
        budgets=_NVIDIA_BUDGETS,
        memory_fraction=0.9,
        can_quantize=False,
        aliases={
            "tensor-parallel-size": "tp-size",
            "pipeline-parallel-size": "pp-size",
            "config": "extra-llm-api-options",
        },
    ),
    "llamacpp": Preset(
        vendor=None,
        kind="llamacpp",
        executable="llama-server",
        head=_always(),
        flags=_llamacpp_flags,
        no_reuse="--no-cache-prompt",
        context_flags=("--ctx-size", "--parallel"),
        version_words=("--version",),
        budgets=((0.0, 8, 2048),),
        can_quantize=False,
        aliases={
            "m": "model",
            "a": "alias",
            "np": "parallel",
            "c": "ctx-size",
            "b": "batch-size",
            "t": "threads",
        },
    ),
    "llama-cpp-python": Preset(
        vendor=None,
        kind="llama-cpp-python",
        executable=sys.executable,
        head=_always("-m", "llama_cpp.server"),
        flags=_llama_cpp_python_flags,
        context_flags=("--n_ctx",),
        health_path="/v1/models",
        version_words=_version_of("llama-cpp-python"),
        budgets=((0.0, 1, 512),),
        can_quantize=False,
    ),
    "paceline": Preset(
        vendor=None,
        kind="paceline",
        executable=sys.executable,
        head=_always("-m", "paceline", "serve"),
        flags=_paceline_flags,
        version_words=("-m", "paceline", "--version"),
        budgets=((0.0, 1024, 2048),),
        can_quantize=False,
    ),
}
