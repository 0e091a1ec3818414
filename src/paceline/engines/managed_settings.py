"""Settings of the managed engine; read by the command line, so nothing heavy is imported."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field

from paceline.engines.context_limit import ContextLimit, stored_limit
from paceline.engines.knobs import ANSWERS, Knob, divisors, powers
from paceline.engines.server_plan import merged
from paceline.engines.server_presets import PRESETS
from paceline.errors import InputError

__all__ = ["ManagedConfig", "variables"]

_AUTO = "auto"
_CHOICES = {
    "preset": tuple(PRESETS),
    "quantization": (_AUTO, "fp8", "none"),
    "kv_dtype": (_AUTO, "fp8"),
    "stream": (_AUTO, "true", "false"),
    "preflight": ("strict", "warn"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ManagedConfig:
    """Settings of the managed engine. Lengths and budgets are in tokens, times in seconds."""

    preset: str = field(default="vllm", metadata=ANSWERS)
    """vllm, vllm-rocm, sglang, trtllm, llamacpp, llama-cpp-python or paceline."""

    gpus: tuple[str, ...] = ()
    """GPUs to use, by index or UUID; empty: all that are visible (none for a CPU preset)."""

    servers: int = 0
    """Servers of a preset that uses no GPU; 0: one. With GPUs there is one for each group."""

    tensor_parallel: int = 1
    """GPUs that share each layer of one server."""

    pipeline_parallel: int = 1
    """Stages of layers of one server, each on its own GPUs."""

    quantization: str = field(default="auto", metadata=ANSWERS)
    """fp8: the server quantises the weights; none; auto: fp8 unless the checkpoint is quantised."""

    kv_dtype: str = field(default="auto", metadata=ANSWERS)
    """fp8, or auto: fp8 on GPUs."""

    max_num_seqs: int = 0
    """Sequences in one step of a server; 0: the preset's, by the memory of its GPUs."""

    max_step_tokens: int = 0
    """Tokens in one step of a server; 0: the preset's, by the memory of its GPUs."""

    max_model_len: int = field(default=2048, metadata=ANSWERS)
    """Prompt and output of one request together."""

    memory_fraction: float = 0.0
    """Share of a GPU's memory for weights and cache; 0: the preset's."""

    executable: str = field(default="", metadata=ANSWERS)
    """Program to start; empty: the preset's, as vllm, from PATH."""

    extra_args: str = field(default="", metadata=ANSWERS)
    """Flags appended to the preset's, as one text; one that the preset sets too wins."""

    environment: str = field(default="", metadata=ANSWERS)
    """Variables for the servers, as "NAME=value NAME=value"."""

    start_timeout_s: float = 1800.0
    """How long to wait until the servers are ready."""

    restarts: int = 2
    """How often each server that dies while it serves is started again; each time is on record."""

    stop_timeout_s: float = 10.0
    """How long a server may take to end before it is killed."""

    concurrency: int = 0
    """Most requests in flight at each server; 0: a quarter more than it batches."""

    stream: str = "auto"
    """true, false, or auto: stream answers where the scenario wants the first token at once."""

    retries: int = 5
    """How often a request is sent again that met a busy or failing server."""

    total_timeout_s: float = 1800.0
    """Longest time of one try of a request."""

    preflight: str = "strict"
    """strict: a check of the servers that fails stops the run; warn: it is put on record."""

    def context_limit(self, stored_len: int | None) -> ContextLimit | None:
        """max_model_len where the preset's flags say it, and extra_args do not say otherwise."""
        preset = PRESETS[self.preset]
        if not preset.context_flags:
            return stored_limit(stored_len)
        flags = [(flag, None) for flag in preset.context_flags]
        if merged(preset, flags, self.extra_args)[1]:
            return None
        return ContextLimit(
            tokens=self.max_model_len,
            said="engine.managed.max_model_len",
            mend=lambda need: f"--set engine.managed.max_model_len={need}",
        )

    def knobs(self, num_gpus: int) -> tuple[Knob, ...]:
        """What may make it faster: the preset's own flags, and how the GPUs are shared out."""
        found = [
            Knob("max_num_seqs", powers(1, 64) if self._is_on_cpu else powers(64, 4096)),
            Knob("max_step_tokens", powers(128, 65536)),
        ]
        if self._is_on_cpu:
            found.append(Knob("servers", (1, 2, 4)))
        else:
            count = len(self.gpus) or max(1, num_gpus)
            found += [
                Knob("memory_fraction", (0.85, 0.88, 0.9, 0.92, 0.94, 0.96)),
                Knob("tensor_parallel", tuple(divisors(count))),
                Knob("pipeline_parallel", tuple(divisors(count))),
                Knob("quantization", ("auto", "fp8", "none")),
                Knob("kv_dtype", ("auto", "fp8")),
            ]
        return tuple(found)

    @property
    def _is_on_cpu(self) -> bool:
        return PRESETS[self.preset].vendor is None

    def __post_init__(self) -> None:
        # The manifest gives a list back.
        object.__setattr__(self, "gpus", tuple(self.gpus))
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise InputError(
                    f"engine.managed.{name} is '{getattr(self, name)}'.",
                    hint=f"one of {', '.join(choices)}",
                )
        counts = (
            *("servers", "max_num_seqs", "max_step_tokens"),
            *("concurrency", "retries", "restarts"),
        )
        if any(getattr(self, name) < 0 for name in counts):
            raise InputError(f"engine.managed: {', '.join(counts)} are 0 or more.")
        if min(self.tensor_parallel, self.pipeline_parallel) < 1 or self.max_model_len < 16:
            raise InputError(
                "engine.managed: a value is too small.",
                hint="tensor_parallel and pipeline_parallel at least 1, max_model_len 16",
            )
        if not 0.0 <= self.memory_fraction <= 1.0 or self.start_timeout_s <= 0:
            raise InputError("engine.managed: memory_fraction is 0 to 1, start_timeout_s above 0.")
        if self.servers and PRESETS[self.preset].vendor is not None:
            raise InputError(
                f"engine.managed.servers would do nothing: {self.preset} starts one server for "
                "each group of GPUs.",
                hint="--set engine.managed.gpus=0,1 to name the GPUs",
            )
        merged(PRESETS[self.preset], [], self.extra_args)
        variables(self.environment)


def variables(text: str) -> dict[str, str]:
    """The variables of `environment`. Raises InputError."""
    try:
        pairs = [word.partition("=") for word in shlex.split(text)]
    except ValueError as error:
        raise InputError(f"engine.managed.environment cannot be split: {error}.") from error
    for name, equals, _ in pairs:
        if not equals or not name.isidentifier():
            raise InputError(f"engine.managed.environment: '{name}' is not of the form NAME=value.")
    return {name: value for name, _, value in pairs}
