"""The other ranks of a tensor parallel engine: processes that run the plans they are sent.

Rank 0 is the engine's own process. It plans; every rank executes the same arrays on its
share of the model, and all sample the same ids.
"""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from paceline.native.checkpoint import open_source
from paceline.native.errors import NativeError
from paceline.native.executor import Executor
from paceline.native.inputs import StepArrays
from paceline.native.parallel import TensorGroup, join

if TYPE_CHECKING:
    from paceline.native.runner import EngineConfig

__all__ = ["Ranks"]


class Ranks:
    """Starts ranks 1 to size - 1, sends them steps, and notices when one is gone."""

    def __init__(self, config: EngineConfig, size: int) -> None:
        self.size = size
        self._directory = tempfile.TemporaryDirectory(prefix="paceline-ranks-")
        self._init_method = f"file://{Path(self._directory.name) / 'store'}"
        context = mp.get_context("spawn")
        self._connections: list[Connection] = []
        self._processes = []
        for rank in range(1, size):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_run_rank, args=(config, rank, self._init_method, theirs), daemon=True
            )
            process.start()
            # The parent's copy must go, or a dead rank's pipe never ends.
            theirs.close()
            self._connections.append(ours)
            self._processes.append(process)

    def join(self, device: torch.device) -> TensorGroup:
        """Enter the group as rank 0, once all ranks are there."""
        return join(0, self.size, init_method=self._init_method, device=device)

    def send(self, arrays: StepArrays) -> None:
        """Hand a step to every rank.

        Raises
            NativeError  one is gone.
        """
        self.check()
        for rank, connection in enumerate(self._connections, start=1):
            try:
                connection.send(arrays)
            except OSError as error:
                raise NativeError(f"rank {rank} died: {error}") from error

    def check(self) -> None:
        """Raise NativeError if a rank has failed or ended."""
        for rank, process in enumerate(self._processes, start=1):
            connection = self._connections[rank - 1]
            with contextlib.suppress(EOFError, OSError):
                if connection.poll():
                    raise NativeError(f"rank {rank} failed: {connection.recv()}")
            if not process.is_alive():
                raise NativeError(f"rank {rank} died with exit code {process.exitcode}")

    def close(self) -> None:
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.send(None)
        for process in self._processes:
            process.join(timeout=10)
            if process.is_alive():
                process.kill()
        if dist.is_initialized():
            dist.destroy_process_group()
        self._directory.cleanup()


def _run_rank(config: EngineConfig, rank: int, init_method: str, connection: Connection) -> None:
    """A rank's process: load, then execute what comes until None does."""
    try:
        if config.device == "cpu":
            torch.set_num_threads(1)
        else:
            config = replace(config, device=f"cuda:{rank}")
        source = open_source(config.weights, quantization=config.quantization)
        resolved = config.resolve(source)
        group = join(rank, config.tensor_parallel, init_method=init_method, device=resolved.device)
        executor = Executor(resolved, source, group=group)
        executor.prepare(lambda stage, fraction: None)
        while (arrays := connection.recv()) is not None:
            executor.execute(arrays)
    except (NativeError, RuntimeError, EOFError) as error:
        with contextlib.suppress(OSError):
            connection.send(str(error))
        raise SystemExit(1) from error
    dist.destroy_process_group()
