"""The folder that a quantised checkpoint is written to: shards, config, tokenizer.

    OUT.partial/   written first, under a lock; the same command goes on with what a dead process
                   left there (see `progress`)
    OUT/           the same folder renamed, when all of it is on disk; never half a checkpoint

Files depend on the inputs alone: no time, no path, no name of a machine is in them.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from paceline.errors import InputError
from paceline.quantize.progress import Progress, Standing, shard_name
from paceline.rundir import disk_problem, file_sha256, make_folder, write_atomically

__all__ = ["SHARD_BYTES", "CheckpointWriter"]

SHARD_BYTES = 2 << 30


class CheckpointWriter:
    """A checkpoint in the making; a context that leaves all of OUT, or what the next goes on with.

    `inputs` is a digest of what decides the bytes; `tell` gets sentences for the user.
    `standing` says, in the context, where an earlier run of the same inputs stood.
    """

    def __init__(
        self, out: Path, *, needed_bytes: int, inputs: str, tell: Callable[[str], None]
    ) -> None:
        self.out = out
        self.partial = out.with_name(f"{out.name}.partial")
        self.standing = Standing()
        self._needed_bytes = needed_bytes
        self._progress = Progress(self.partial, inputs)
        self._tell = tell
        self._pending: dict[str, Tensor] = {}
        self._pending_bytes = 0
        self._lock = -1

    def __enter__(self) -> Self:
        """Take the place, with what an earlier run of the same inputs left.

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
        self._lock = os.open(self._lock_path, os.O_CREAT | os.O_RDWR, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            raise InputError(
                f"Another process is writing {self.out}.", hint="wait for it, or give another OUT"
            ) from error
        self._take_over()
        make_folder(self.partial)
        free = shutil.disk_usage(self.partial).free
        needed = self._needed_bytes - self.standing.total_bytes
        if free < needed:
            self._leave()
            raise InputError(
                f"{self.out.parent} has {free >> 20} MiB free; the checkpoint needs about "
                f"{needed >> 20} MiB.",
                hint="give an OUT on another disk",
            )
        return self

    def _take_over(self) -> None:
        found = self._progress.read()
        if isinstance(found, Standing):
            self.standing = found
            self._tell(f"{self.partial}: goes on at block {found.next_block + 1}.")
            return
        if found is not None:
            self._tell(f"{self.partial} is thrown away and begun anew: {found}.")
        elif self.partial.exists():
            self._tell(f"{self.partial} is thrown away: no shard of it was finished.")
        shutil.rmtree(self.partial, ignore_errors=True)
        self._progress.clear()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.partial.rename(self.out)
                self._progress.clear()
        except OSError as problem:
            raise disk_problem(self.out, problem) from problem
        finally:
            self._leave()

    @property
    def _lock_path(self) -> Path:
        return self.partial.with_name(f".{self.partial.name}.lock")

    def _leave(self) -> None:
        if self._progress.exists():
            self._tell(f"{self.partial} keeps what is finished; the same command goes on with it.")
        else:
            shutil.rmtree(self.partial, ignore_errors=True)
        with contextlib.suppress(OSError):
            self._lock_path.unlink()
        os.close(self._lock)

    def add(self, tensors: Mapping[str, Tensor]) -> bool:
        """Take tensors by their full names; True when they made a shard full and it was written."""
        for name, tensor in tensors.items():
            self._pending[name] = tensor.detach().cpu().contiguous()
            self._pending_bytes += tensor.numel() * tensor.element_size()
        if self._pending_bytes < SHARD_BYTES:
            return False
        self._write_shard()
        return True

    def note(self, next_block: int, record: Any, states: Sequence[Tensor] | None) -> None:
        """Note that shards hold all before a block, for a run that takes this one's place."""
        self.standing.next_block, self.standing.record = next_block, record
        self.standing.states = None if states is None else list(states)
        self._progress.note(self.standing)
        self.standing.states = None

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

    def flush(self) -> None:
        """Write what is left as the last shard."""
        self._write_shard()

    def finish(self) -> None:
        """Give the shards their names and write their index."""
        shards = self.standing.shards
        if len(shards) == 1:
            (self.partial / shard_name(0)).rename(self.partial / "model.safetensors")
            return
        weight_map: dict[str, str] = {}
        for number, (names, _) in enumerate(shards):
            final = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
            (self.partial / shard_name(number)).rename(self.partial / final)
            weight_map |= dict.fromkeys(names, final)
        index = {
            "metadata": {"total_size": self.standing.total_bytes},
            "weight_map": dict(sorted(weight_map.items())),
        }
        self.write_json("model.safetensors.index.json", index)

    def _write_shard(self) -> None:
        if not self._pending:
            return
        path = self.partial / shard_name(len(self.standing.shards))
        try:
            save_file(dict(sorted(self._pending.items())), path, metadata={"format": "pt"})
        except OSError as error:
            raise disk_problem(path, error) from error
        except SafetensorError as error:
            raise disk_problem(path, OSError(f"{error}")) from error
        path.chmod(0o644)  # safetensors' own are readable by their owner alone
        self.standing.shards.append((sorted(self._pending), file_sha256(path)))
        self.standing.total_bytes += self._pending_bytes
        self._pending, self._pending_bytes = {}, 0
