"""Tensor parallel groups: which share of a weight a rank holds, and the sums between ranks.

Query and KV heads, and the MLP's hidden channels, are split evenly; `out` and `down` sum
over ranks. Embedding, norms and head are whole on every rank, so that all ranks sample the
same ids without a word. Data parallel needs no group: it is several engines, and `deal`
says which gets which request.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from paceline.native.errors import NativeError
from paceline.native.model import ModelConfig

__all__ = ["TensorGroup", "check_divides", "deal", "join"]


@dataclass(frozen=True, slots=True)
class TensorGroup:
    """This process's rank among the `size` ranks of one model."""

    rank: int = 0
    size: int = 1

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of `x` over ranks, in place, the same bits on each.

        Raises
            NativeError  another rank is gone.
        """
        if self.size == 1:
            return x
        try:
            dist.all_reduce(x)
        except RuntimeError as error:
            raise NativeError(f"rank {self.rank}: a tensor parallel rank died ({error})") from error
        return x

    def minimum(self, value: int) -> int:
        """The least `value` of any rank."""
        if self.size == 1:
            return value
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        tensor = torch.tensor(value, dtype=torch.int64, device=device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MIN)
        return int(tensor.item())

    def share(self, length: int) -> slice:
        """This rank's part of a dimension of `length`."""
        part = length // self.size
        return slice(self.rank * part, (self.rank + 1) * part)


def check_divides(config: ModelConfig, size: int) -> None:
    """Raise NativeError unless every split dimension divides by `size`."""
    for name in ("num_heads", "num_kv_heads", "intermediate_size"):
        if getattr(config, name) % size:
            raise NativeError(
                f"tensor_parallel {size} does not divide the model's {name} {getattr(config, name)}"
            )


def join(rank: int, size: int, *, init_method: str, device: torch.device) -> TensorGroup:
    """Enter a group of `size` processes; NCCL on GPUs, gloo on CPUs."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(
            backend,
            init_method=init_method,
            rank=rank,
            world_size=size,
            timeout=timedelta(minutes=10),
        )
    except (RuntimeError, ValueError) as error:
        raise NativeError(f"rank {rank} of {size} could not join its group: {error}") from error
    return TensorGroup(rank, size)


def deal(costs: Sequence[int], num_engines: int) -> list[list[int]]:
    """Which requests each of `num_engines` engines gets: indices, in the order given.

    The dearest request goes to the engine with the least so far (Graham 1969), so the sums
    differ by less than one request's cost.
    """
    loads = [(0, engine) for engine in range(num_engines)]
    dealt: list[list[int]] = [[] for _ in range(num_engines)]
    for index in sorted(range(len(costs)), key=lambda i: -costs[i]):
        load, engine = heapq.heappop(loads)
        dealt[engine].append(index)
        heapq.heappush(loads, (load + costs[index], engine))
    return [sorted(indices) for indices in dealt]
