"""What a run that is killed leaves for the one that takes its place.

    OUT.partial/            finished shards
    OUT.partial.progress/   progress.json: which shards, their hashes, the block to go on with,
                            and the scales found; states-NNNNN.safetensors: the calibration set's
                            hidden states before that block

It is written each time a shard is, after the shard, and read when the same command runs again.
What was made from other inputs, or does not have the bytes that were noted, is thrown away, and
the run says so.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from paceline.rundir import disk_problem, file_sha256, make_folder, write_atomically

__all__ = ["Progress", "Standing", "shard_name"]

_STATES = "states"


@dataclass(kw_only=True, slots=True)
class Standing:
    """How far a run is: `next_block` is the first block that no shard holds.

    A shard is (names of its tensors, SHA-256). `states` has one tensor for each calibration
    sample, or is None where nothing is calibrated or no block is done.
    """

    next_block: int = 0
    shards: list[tuple[list[str], str]] = field(default_factory=list)
    total_bytes: int = 0
    record: dict[str, Any] = field(default_factory=dict)
    states: list[Tensor] | None = None


class Progress:
    """The progress of one OUT. `inputs` is a digest of everything that decides the bytes."""

    def __init__(self, partial: Path, inputs: str) -> None:
        self._partial = partial
        self._folder = partial.with_name(f"{partial.name}.progress")
        self._inputs = inputs

    def read(self) -> Standing | str | None:
        """Where a run of the same inputs stood; why that cannot be used; None if there was none."""
        path = self._folder / "progress.json"
        if not path.is_file():
            return None
        try:
            noted = json.loads(path.read_text())
            if noted["inputs"] != self._inputs:
                return "it was made from another model, calibration set or options"
            for number, shard in enumerate(noted["shards"]):
                if not self._is_whole(number, shard["sha256"]):
                    return f"shard {number + 1} has not the bytes that were noted"
            return Standing(
                next_block=noted["next_block"],
                shards=[(shard["names"], shard["sha256"]) for shard in noted["shards"]],
                total_bytes=noted["total_bytes"],
                record=noted["record"],
                states=self._read_states(noted["states"]),
            )
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            return f"{path.name} cannot be read ({type(error).__name__}: {error})"

    def note(self, standing: Standing) -> None:
        """Write where the run stands; its shards are on disk.

        Raises
            EnvironmentProblem  the disk will not take it.
        """
        make_folder(self._folder)
        states = None
        if standing.states is not None:
            states = self._write_states(standing.states, standing.next_block)
        noted = {
            "inputs": self._inputs,
            "next_block": standing.next_block,
            "shards": [{"names": names, "sha256": sha256} for names, sha256 in standing.shards],
            "total_bytes": standing.total_bytes,
            "record": standing.record,
            "states": states,
        }
        write_atomically(self._folder / "progress.json", json.dumps(noted) + "\n")
        kept = None if states is None else states["file"]
        for old in self._folder.glob(f"{_STATES}-*.safetensors"):
            if old.name != kept:
                old.unlink()

    def exists(self) -> bool:
        """Whether there is something to go on from."""
        return (self._folder / "progress.json").is_file()

    def clear(self) -> None:
        """Forget it."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _is_whole(self, number: int, sha256: str) -> bool:
        """Look for a shard, and give it its first name again if it has its last one already."""
        own = self._partial / shard_name(number)
        finals = [
            *self._partial.glob(f"model-{number + 1:05d}-of-*.safetensors"),
            *(self._partial.glob("model.safetensors") if number == 0 else ()),
        ]
        for path in (own, *finals):
            if path.is_file() and file_sha256(path) == sha256:
                path.rename(own)
                return True
        return False

    def _write_states(self, states: Sequence[Tensor], block: int) -> dict[str, str]:
        path = self._folder / f"{_STATES}-{block:05d}.safetensors"
        try:
            save_file({f"{i:05d}": state.contiguous() for i, state in enumerate(states)}, path)
        except OSError as error:
            raise disk_problem(path, error) from error
        except SafetensorError as error:
            raise disk_problem(path, OSError(f"{error}")) from error
        return {"file": path.name, "sha256": file_sha256(path)}

    def _read_states(self, noted: dict[str, str] | None) -> list[Tensor] | None:
        if noted is None:
            return None
        path = self._folder / noted["file"]
        if file_sha256(path) != noted["sha256"]:
            raise ValueError(f"{path.name} has not the bytes that were noted")
        return [state for _, state in sorted(load_file(path).items())]


def shard_name(number: int) -> str:
    """A shard's name until the number of all is known."""
    return f"shard-{number:05d}.safetensors"
