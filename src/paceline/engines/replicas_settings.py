"""Settings of the replicas engine; read by the command line, so Ray is not imported."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from paceline.engines import config_class
from paceline.engines.context_limit import ContextLimit
from paceline.engines.knobs import ANSWERS, Knob, powers
from paceline.engines.managed_settings import variables
from paceline.engines.server_presets import PRESETS
from paceline.errors import InputError

__all__ = ["ReplicasConfig", "capacity_of", "devices_of"]

_NOT_COPIED = ("replicas",)
_UNKNOWN_CAPACITY = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplicasConfig:
    """Settings of the replicas engine: copies of another engine over the nodes of a Ray cluster.

    `inner` is the other engine's own config: in a recipe its keys stand where they always do.
    """

    engine: str = dataclasses.field(default="native", metadata=ANSWERS)
    """The engine that is copied; its own settings stand under its own name."""

    num_replicas: int = 0
    """Copies; 0: as many as the cluster's GPUs hold, or one a node where no GPU is used."""

    gpus_per_replica: int = 0
    """GPUs of one copy; 0: what the copied engine's own settings share one copy over."""

    cpus_per_replica: int = 1
    """Cores of one copy, as Ray counts them; also its OMP_NUM_THREADS."""

    replicas_per_actor: int = 1
    """Copies in one process; more than 1 for light ones only."""

    address: str = ""
    """Ray's head as HOST:PORT, or auto; empty: RAY_ADDRESS, else a Ray of this run's own."""

    outstanding: int = 0
    """Samples one copy works on at once; 0: what the copied engine's settings say."""

    reserve: int = 0
    """Samples one copy holds besides, to begin at once; 0: an eighth of `outstanding`."""

    batch_ms: float = 50.0
    """Shortest time between two messages of tokens from one process."""

    report_s: float = 1.0
    """Longest time between two messages from one process."""

    stall_timeout_s: float = 120.0
    """A copy that makes nothing for so long while it has work counts as lost."""

    start_timeout_s: float = 1800.0
    """How long copies may take to be ready."""

    dead_timeout_s: float = 300.0
    """How long to wait for a node when no copy is left, before the run ends."""

    restarts: int = 3
    """How often each copy is started again."""

    backoff_s: float = 1.0
    """Wait before a copy is started again; doubles each time."""

    retries: int = 5
    """How many losses of its copy a sample survives."""

    duplicate_tail: bool = True
    """Offline: let an idle copy run one of the last samples too; the first answer counts."""

    environment: str = dataclasses.field(default="", metadata=ANSWERS)
    """Variables for the copies, as "NAME=value NAME=value"."""

    inner: Any = dataclasses.field(default=None, metadata={"is_key": False})

    def context_limit(self, stored_len: int | None) -> ContextLimit | None:
        """That of the engine that is copied."""
        limit_of = getattr(self.inner, "context_limit", None)
        found: ContextLimit | None = None if limit_of is None else limit_of(stored_len)
        return found

    def knobs(self, num_gpus: int) -> tuple[Knob, ...]:
        """What may make it faster on the head's side; the copied engine is tuned by itself."""
        del num_gpus
        return (
            Knob("outstanding", (0, *powers(16, 2048))),
            Knob("reserve", (0, *powers(1, 256))),
            Knob("batch_ms", (10.0, 20.0, 50.0, 100.0, 200.0)),
        )

    def __post_init__(self) -> None:
        if self.engine in _NOT_COPIED:
            raise InputError(
                f"engine.replicas.engine is '{self.engine}': copies of copies make no sense.",
                hint="--set engine.replicas.engine=native",
            )
        inner = self.inner
        if inner is None or isinstance(inner, Mapping):
            object.__setattr__(self, "inner", config_class(self.engine)(**(inner or {})))
        counts = ("num_replicas", "gpus_per_replica", "outstanding", "reserve", "restarts")
        if any(getattr(self, name) < 0 for name in (*counts, "retries")):
            raise InputError(f"engine.replicas: {', '.join(counts)} and retries are 0 or more.")
        if min(self.cpus_per_replica, self.replicas_per_actor) < 1:
            raise InputError(
                "engine.replicas: cpus_per_replica and replicas_per_actor are at least 1."
            )
        times = ("batch_ms", "report_s", "stall_timeout_s", "start_timeout_s", "backoff_s")
        if any(getattr(self, name) <= 0 for name in times) or self.dead_timeout_s < 0:
            raise InputError(
                f"engine.replicas: {', '.join(times)} are above 0, dead_timeout_s is 0 or more."
            )
        if self.stall_timeout_s < 2 * self.report_s:
            raise InputError(
                f"engine.replicas.stall_timeout_s is {self.stall_timeout_s:g}, and a copy may be "
                f"silent for report_s, {self.report_s:g} s.",
                hint="at least twice engine.replicas.report_s",
            )
        if self.replicas_per_actor > 1 and self.gpus_per_replica:
            raise InputError(
                "engine.replicas: copies on GPUs have a process each.",
                hint="leave out replicas_per_actor, or gpus_per_replica",
            )
        variables(self.environment)


def devices_of(config: ReplicasConfig, *, has_gpus: bool) -> int:
    """GPUs of one copy: as asked, else by the copied engine's settings."""
    if config.gpus_per_replica:
        return config.gpus_per_replica
    inner = config.inner
    if not has_gpus or config.engine in ("endpoint", "fake"):
        return 0
    if getattr(inner, "device", "auto") == "cpu" or _is_cpu_preset(inner):
        return 0
    shared = ("tensor_parallel", "pipeline_parallel", "data_parallel")
    count = 1
    for name in shared:
        count *= int(getattr(inner, name, 1))
    return count


def capacity_of(config: ReplicasConfig) -> int:
    """Samples that one copy can work on at once, as far as its settings say."""
    if config.outstanding:
        return config.outstanding
    inner = config.inner
    values = {field.name: getattr(inner, field.name) for field in dataclasses.fields(inner)}
    servers = len(values.get("urls", ())) or int(values.get("servers", 0)) or 1
    for name in ("max_live_sequences", "concurrency", "batch_size"):
        if values.get(name):
            return int(values[name]) * servers
    return _UNKNOWN_CAPACITY


def _is_cpu_preset(inner: Any) -> bool:
    preset = getattr(inner, "preset", None)
    return preset is not None and PRESETS[preset].vendor is None
