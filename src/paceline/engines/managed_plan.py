"""From the managed engine's settings to command lines on this machine, and how to talk to them.

plan_servers(...)       one ServerCommand for each GPU or group of GPUs
endpoint_config(...)    the endpoint engine's settings for servers that were started
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from paceline.engines import EngineContext
from paceline.engines.endpoint_settings import EndpointConfig
from paceline.engines.managed_settings import ManagedConfig, variables
from paceline.engines.server_gpus import VISIBILITY, Gpu, gpu_groups, visible_gpus
from paceline.engines.server_plan import Preset, ServerPlan, merged, write_config
from paceline.engines.server_presets import PRESETS
from paceline.engines.server_process import ServerCommand, free_ports
from paceline.errors import CheckpointError, EnvironmentProblem, InputError

__all__ = ["endpoint_config", "plan_servers"]

_AUTO = "auto"
_DEFAULT_THREADS = 1
# OpenMP threads that wait by spinning make servers on a CPU fight for its cores.
_WAIT_POLICY = ("OMP_WAIT_POLICY", "PASSIVE")


def plan_servers(
    config: ManagedConfig, context: EngineContext, *, cwd: Path | None = None
) -> tuple[list[ServerPlan], list[ServerCommand], dict[str, str]]:
    """The servers of a config on this machine, and which flags of the preset gave way.

    They run in `cwd`, None for this process's folder.

    Raises InputError or EnvironmentProblem when they cannot be started as asked.
    """
    preset, model = PRESETS[config.preset], context.model
    if model is None:
        raise CheckpointError("The managed engine needs a model.", hint="--model PATH")
    executable = _executable(config, preset, cwd)
    groups = _groups(config, preset)
    cores = os.cpu_count() or _DEFAULT_THREADS
    plans, commands = [], []
    overridden: dict[str, str] = {}
    for index, (group, port) in enumerate(zip(groups, free_ports(len(groups)), strict=True)):
        num_seqs, step_tokens = _budget(config, preset, group)
        plan = ServerPlan(
            model=model,
            model_name=model.stem if model.is_file() else model.name,
            executable=executable,
            port=port,
            tensor_parallel=config.tensor_parallel,
            pipeline_parallel=config.pipeline_parallel,
            quantization=_quantization(config, preset, model),
            kv_dtype="fp8" if preset.vendor or config.kv_dtype == "fp8" else _AUTO,
            max_num_seqs=num_seqs,
            max_step_tokens=step_tokens,
            max_model_len=config.max_model_len,
            memory_fraction=config.memory_fraction or preset.memory_fraction,
            num_threads=max(1, cores // len(groups)),
            config_path=context.log_dir / f"server-{index}.yaml",
        )
        write_config(preset, plan)
        words, overridden = merged(preset, preset.flags(plan), config.extra_args)
        plans.append(plan)
        commands.append(
            ServerCommand(
                name=f"server-{index}",
                argv=(executable, *preset.head(plan), *words),
                port=port,
                health_path=preset.health_path,
                environment=_environment(config, preset, group),
                cwd=cwd,
                version_argv=preset.version_words and (executable, *preset.version_words),
                version_pattern=preset.version_pattern,
            )
        )
    return plans, commands, overridden


def _executable(config: ManagedConfig, preset: Preset, cwd: Path | None) -> str:
    name = config.executable or preset.executable
    if cwd is not None and os.sep in name:
        name = str(cwd / name)
    found = shutil.which(name)
    if found is None:
        raise EnvironmentProblem(
            f"Preset {config.preset} starts '{name}', which is not on PATH.",
            hint=f"install it, or --set engine.managed.executable=PATH to {Path(name).name}",
        )
    return found


def _groups(config: ManagedConfig, preset: Preset) -> list[tuple[Gpu, ...]]:
    """The GPUs of each server; empty for one without."""
    size = config.tensor_parallel * config.pipeline_parallel
    if preset.vendor is None:
        if size > 1:
            raise InputError(
                f"Preset {config.preset} takes no tensor_parallel or pipeline_parallel.",
                hint="say it in engine.managed.extra_args, in the server's own words",
            )
        named = tuple(Gpu(name, 0.0) for name in config.gpus)
        return [named] * (config.servers or 1)
    present = visible_gpus(preset.vendor)
    if config.gpus:
        by_name = {gpu.name: gpu for gpu in present}
        missing = [name for name in config.gpus if name not in by_name]
        if missing:
            raise InputError(
                f"engine.managed.gpus names {', '.join(missing)}; visible are "
                f"{', '.join(by_name)}.",
                hint="--set engine.managed.gpus=... with GPUs of this list",
            )
        present = [by_name[name] for name in config.gpus]
    return gpu_groups(present, size)


def _budget(config: ManagedConfig, preset: Preset, group: Sequence[Gpu]) -> tuple[int, int]:
    """Sequences and tokens of a step: as asked, else by the memory of the group."""
    memory_gib = sum(gpu.memory_gib for gpu in group)
    _, num_seqs, step_tokens = next(row for row in preset.budgets if memory_gib >= row[0])
    return config.max_num_seqs or num_seqs, config.max_step_tokens or step_tokens


def _quantization(config: ManagedConfig, preset: Preset, model: Path) -> str:
    if config.quantization == "none" or preset.vendor is None:
        return "none"
    is_quantized = _is_quantized(model)
    if config.quantization == _AUTO and is_quantized:
        return "none"
    if not preset.can_quantize:
        raise InputError(
            f"{model} is not quantised, and {preset.executable} does not quantise as it loads.",
            hint="an FP8 checkpoint, or --set engine.managed.quantization=none",
        )
    return "fp8"


def _is_quantized(model: Path) -> bool:
    if (model / "hf_quant_config.json").is_file():  # NVIDIA Model Optimizer's
        return True
    try:
        config = json.loads((model / "config.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and bool(config.get("quantization_config"))


def _environment(config: ManagedConfig, preset: Preset, group: Sequence[Gpu]) -> dict[str, str]:
    pinned = {}
    if group:
        variable = VISIBILITY[preset.vendor or "nvidia"]
        pinned[variable] = ",".join(gpu.name for gpu in group)
    quiet = {} if _WAIT_POLICY[0] in os.environ else dict([_WAIT_POLICY])
    return {**quiet, **preset.environment, **variables(config.environment), **pinned}


def endpoint_config(
    config: ManagedConfig, plan: ServerPlan, urls: tuple[str, ...]
) -> EndpointConfig:
    """How to talk to the servers of a plan."""
    preset = PRESETS[config.preset]
    is_fp8 = plan.quantization == "fp8"
    return EndpointConfig(
        urls=urls,
        server=preset.kind,
        concurrency=config.concurrency or plan.max_num_seqs * 5 // 4,
        stream=config.stream,
        dtype="fp8" if is_fp8 else "unknown",
        retries=config.retries,
        # A server that is started again loads its model first; the group says when none is left.
        dead_timeout_s=config.start_timeout_s,
        total_timeout_s=config.total_timeout_s,
        preflight=config.preflight,
    )
