"""How much of its replicas' speed a cluster gets: paced replicas, a real Ray, some of them killed.

    measure(Bench(...)) -> figures, `efficiency` among them

The replicas are fake engines of a known pace, spread evenly from the slowest to three times that,
each in a process of Ray's (or several to one). Samples are answered by a clock, so what is missing
from the sum of the speeds was lost between the head and the replicas: waiting for samples, the
uneven end of the run, work that died with a replica. The sum counts a replica while it lives.

Processes are killed by SIGKILL at random moments of the run, and start again by themselves.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paceline.engines import Completion, EngineContext, Request
from paceline.engines.fake import FakeConfig
from paceline.engines.replicas import ReplicasEngine
from paceline.engines.replicas_head import Head
from paceline.engines.replicas_settings import ReplicasConfig
from paceline.errors import EngineError, InputError, PacelineError

__all__ = ["Bench", "measure"]

_OUTPUT_LEN = 294
_PROMPT_LEN = 300
_FASTEST = 3.0
# Kills come in the middle of the run, so that the return of the last one is seen too.
_KILL_FROM, _KILL_TO = 0.1, 0.9
_RAY_PROCESSES = ("gcs_server", "raylet")


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """What to measure. `seconds` is how long the run takes at the sum of the speeds."""

    replicas: int
    per_actor: int = 1
    samples: int = 24576
    seconds: float = 180.0
    concurrency: int = 2
    kill_fraction: float = 0.05
    seed: int = 0
    report: Callable[[str, float | None], None] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.kill_fraction < 1:
            raise InputError(f"--kill {self.kill_fraction:g} is not a part of the replicas.")
        if self.samples < self.replicas * self.concurrency:
            raise InputError(
                f"{self.samples} samples are fewer than {self.replicas} replicas run at once.",
                hint="--samples N, at least a hundred times as many as replicas to say anything",
            )

    def speeds(self) -> list[float]:
        """Samples/s of each replica: evenly from 1 to 3, scaled so that the run takes `seconds`."""
        steps = max(1, self.replicas - 1)
        shape = [1.0 + (_FASTEST - 1.0) * place / steps for place in range(self.replicas)]
        random.Random(self.seed).shuffle(shape)  # noqa: S311 - which actor is slow
        scale = self.samples / self.seconds / sum(shape)
        return [scale * part for part in shape]


def measure(bench: Bench) -> dict[str, Any]:
    """Start the cluster, run the samples, end it. Raises EngineError when a sample is lost."""
    speeds = bench.speeds()
    config = ReplicasConfig(
        engine="fake",
        num_replicas=bench.replicas,
        replicas_per_actor=bench.per_actor,
        restarts=100,
        inner=FakeConfig(output_len=_OUTPUT_LEN, concurrency=bench.concurrency),
    )

    def vary(number: int, inner: FakeConfig) -> FakeConfig:
        return dataclasses.replace(inner, tokens_per_second=speeds[number] * _OUTPUT_LEN)

    with tempfile.TemporaryDirectory(prefix="paceline-bench-") as scratch:
        context = EngineContext(
            model=None,
            eos_token_id=2,
            vocabulary_size=32000,
            max_new_tokens=1024,
            log_dir=Path(scratch),
            report=bench.report or _say_nothing,
        )
        engine = ReplicasEngine(config, context, vary=vary)
        began_s = time.monotonic()
        engine.start()
        try:
            start_s = time.monotonic() - began_s
            return _run(bench, engine, speeds) | {"start_s": round(start_s, 1)}
        finally:
            engine.close()


def _run(bench: Bench, engine: ReplicasEngine, speeds: Sequence[float]) -> dict[str, Any]:
    draw = np.random.default_rng(bench.seed)
    requests = [
        Request(number, draw.integers(3, 32000, _PROMPT_LEN, dtype=np.int32), 1024)
        for number in range(bench.samples)
    ]
    head, sink = engine.head_of_seats(), _Count(bench)
    actors_bytes = sum(_memory_bytes(int(seat.facts["pid"])) for seat in head.seats)
    up_s, ray_s, began_s = _up_s(head), _ray_cpu_s(), time.monotonic()
    stop = threading.Event()
    killer = threading.Thread(target=_kill, args=(bench, head, stop), daemon=True)
    killer.start()
    engine.submit(requests, sink)
    engine.drain()
    wall_s = time.monotonic() - began_s
    up_s = [end - begin for begin, end in zip(up_s, _up_s(head), strict=True)]
    ray_s = _ray_cpu_s() - ray_s
    stop.set()
    killer.join()
    facts = engine.describe()
    if sink.error is not None or sink.answered != bench.samples or sink.twice:
        raise EngineError(
            f"{sink.answered} of {bench.samples} samples were answered, {sink.twice} twice"
            f"{f': {sink.error.message}' if sink.error else ''}."
        )
    possible = sum(speed * alive_s for speed, alive_s in zip(speeds, up_s, strict=True))
    return {
        "efficiency": round(bench.samples / possible, 5),
        "replicas": bench.replicas,
        "actors": len(head.seats),
        "samples": bench.samples,
        "seconds": round(wall_s, 3),
        "samples_per_second": round(bench.samples / wall_s, 2),
        "sum_of_speeds": round(sum(speeds), 2),
        "mean_alive_speed": round(possible / wall_s, 2),
        **_costs(facts, bench.samples),
        "ray_us_per_sample": round(ray_s * 1e6 / bench.samples, 1),
        "actors_memory_bytes": actors_bytes,
    }


def _costs(facts: dict[str, Any], num_samples: int) -> dict[str, Any]:
    """What was lost and what the head paid, from the engine's own description."""
    counts, spent = facts["counts"], facts["head"]
    per_sample = 1e6 / num_samples
    return {
        "killed": sum(event["what"] == "lost" for event in facts["events"]),
        "back": sum(event["what"] == "back" for event in facts["events"]),
        **{name: counts.get(name, 0) for name in ("moved", "doubled", "second", "late")},
        "messages": spent["messages"],
        "messages_per_second": spent["messages_per_second"],
        "head_thread_us_per_sample": round(spent["thread_cpu_s"] * per_sample, 1),
        "head_process_us_per_sample": round(spent["process_cpu_s"] * per_sample, 1),
        "head_process_us_per_message": round(1e6 * spent["process_cpu_s"] / spent["messages"], 1),
    }


def _say_nothing(what: str, fraction: float | None) -> None:
    del what, fraction


class _Count:
    """A Sink that counts."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._seen: set[int] = set()
        self._next_report = 0
        self.answered = 0
        self.twice = 0
        self.error: PacelineError | None = None

    def first_token(self, request_id: int, token_id: int) -> None:
        """Not wanted."""

    def done(self, completion: Completion) -> None:
        self.done_all((completion,))

    def done_all(self, completions: Sequence[Completion]) -> None:
        for completion in completions:
            self.twice += completion.request_id in self._seen
            self._seen.add(completion.request_id)
        self.answered = len(self._seen)
        if self.answered >= self._next_report:
            self._next_report = self.answered + self._bench.samples // 100
            if self._bench.report is not None:
                self._bench.report("samples answered", self.answered / self._bench.samples)

    def failed(self, request_id: int, error: PacelineError) -> None:
        del request_id
        self.error = error

    def progress(self, num_tokens: int) -> None:
        """Not wanted."""


def _kill(bench: Bench, head: Head, stop: threading.Event) -> None:
    """Kill so many processes, each at a moment of its own."""
    draw, began_s = random.Random(bench.seed + 1), time.monotonic()  # noqa: S311
    count = math.ceil(bench.kill_fraction * len(head.seats)) if bench.kill_fraction else 0
    moments = sorted(draw.uniform(_KILL_FROM, _KILL_TO) * bench.seconds for _ in range(count))
    for moment_s, seat in zip(moments, draw.sample(list(head.seats), count), strict=True):
        if stop.wait(max(0.0, began_s + moment_s - time.monotonic())):
            return
        if seat.state == "ready":
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(seat.facts["pid"]), signal.SIGKILL)


def _up_s(head: Head) -> list[float]:
    """For how long each replica has been up, in the order of their numbers."""
    now_s = time.monotonic()
    return [row["up_s"] for seat in head.seats for row in seat.describe(now_s)]


def _memory_bytes(pid: int) -> int:
    """A process's memory, its part of shared pages only."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return 1024 * int(line.split()[1])
    return 0


def _ray_cpu_s() -> float:
    """CPU time of Ray's own processes that this one started."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, _, rest = path.read_text().partition("(")[2].rpartition(")")
            fields = rest.split()
            if name in _RAY_PROCESSES and int(fields[1]) == os.getpid():
                ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")
