"""The folder that a quantised checkpoint is written to: shards, config, tokenizer.

    OUT.partial/   written first, under a lock; what a dead process left there is thrown away
    OUT/           the same folder renamed, when all of it is on disk; never half a checkpoint

Files depend on the inputs alone: no time, no path, no name of a machine is in them.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from paceline.errors import InputError
from paceline.rundir import disk_problem, make_folder, write_atomically

__all__ = ["SHARD_BYTES", "CheckpointWriter"]

SHARD_BYTES = 4 << 30


class CheckpointWriter:
    """A checkpoint in the making; a context that leaves either all of OUT or nothing."""

    def __init__(self, out: Path, *, needed_bytes: int) -> None:
        self.out = out
        self.partial = out.with_name(f"{out.name}.partial")
        self._needed_bytes = needed_bytes
        self._pending: dict[str, Tensor] = {}
        self._pending_bytes = 0
        self._shards: list[list[str]] = []
        self._total_bytes = 0
        self._lock = -1

    def __enter__(self) -> Self:
        """Take the place.

        Raises
            InputError          OUT is there, or another process writes it.
            EnvironmentProblem  the folder cannot be made.
        """
        if self.out.exists() or self.out.is_symlink():
            raise InputError(
                f"{self.out} exists; a checkpoint is never written over another.",
                hint=f"another OUT, or remove {self.out}",
            )
        make_folder(self.out.parent)
        self._lock = os.open(
            self.partial.with_name(f".{self.partial.name}.lock"), os.O_CREAT | os.O_RDWR, 0o644
        )
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            raise InputError(
                f"Another process is writing {self.out}.", hint="wait for it, or give another OUT"
            ) from error
        shutil.rmtree(self.partial, ignore_errors=True)
        make_folder(self.partial)
        free = shutil.disk_usage(self.partial).free
        if free < self._needed_bytes:
            self._leave()
            raise InputError(
                f"{self.out.parent} has {free >> 20} MiB free; the checkpoint needs about "
                f"{self._needed_bytes >> 20} MiB.",
                hint="give an OUT on another disk",
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.partial.rename(self.out)
        except OSError as problem:
            raise disk_problem(self.out, problem) from problem
        finally:
            self._leave()

    def _leave(self) -> None:
        shutil.rmtree(self.partial, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.partial.with_name(f".{self.partial.name}.lock").unlink()
        os.close(self._lock)

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """Take tensors by their full names; a shard is written when it is large enough."""
        for name, tensor in tensors.items():
            self._pending[name] = tensor.detach().cpu().contiguous()
            self._pending_bytes += tensor.numel() * tensor.element_size()
        if self._pending_bytes >= SHARD_BYTES:
            self._write_shard()

    def write_text(self, name: str, text: str) -> None:
        """Write a file of the folder."""
        write_atomically(self.partial / name, text)

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Write a file of the folder, keys in their order."""
        self.write_text(name, json.dumps(value, indent=2) + "\n")

    def copy(self, source: Path) -> None:
        """Copy a file into the folder."""
        try:
            shutil.copyfile(source, self.partial / source.name)
        except OSError as error:
            raise disk_problem(self.partial / source.name, error) from error

    def finish(self) -> None:
        """Write what is left, give the shards their names and write their index."""
        self._write_shard()
        if len(self._shards) == 1:
            (self.partial / _temporary(0)).rename(self.partial / "model.safetensors")
            return
        weight_map: dict[str, str] = {}
        for number, names in enumerate(self._shards):
            final = f"model-{number + 1:05d}-of-{len(self._shards):05d}.safetensors"
            (self.partial / _temporary(number)).rename(self.partial / final)
            weight_map |= dict.fromkeys(names, final)
        index = {
            "metadata": {"total_size": self._total_bytes},
            "weight_map": dict(sorted(weight_map.items())),
        }
        self.write_json("model.safetensors.index.json", index)

    def _write_shard(self) -> None:
        if not self._pending:
            return
        path = self.partial / _temporary(len(self._shards))
        try:
            save_file(dict(sorted(self._pending.items())), path, metadata={"format": "pt"})
        except OSError as error:
            raise disk_problem(path, error) from error
        except SafetensorError as error:
            raise disk_problem(path, OSError(f"{error}")) from error
        path.chmod(0o644)  # safetensors' own are readable by their owner alone
        self._shards.append(sorted(self._pending))
        self._total_bytes += self._pending_bytes
        self._pending, self._pending_bytes = {}, 0


def _temporary(number: int) -> str:
    return f"shard-{number:05d}.safetensors"
