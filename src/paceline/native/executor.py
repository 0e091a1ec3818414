"""One rank's device side: its weights, its cache, and the execution of planned steps.

Steps are queued without waiting: the ids a step samples stay on the device, where the next
step reads them, and are copied to the host for whoever asks later (`PendingIds`).

Shape letters (this file): those of `inputs` and `model`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from paceline.native import decode_sm89
from paceline.native.cache import CacheConfig, KVCache
from paceline.native.checkpoint import Source
from paceline.native.compiler import uses_kernel
from paceline.native.errors import NativeError
from paceline.native.inputs import StepArrays, idle_arrays, pack, packed_len, unpack
from paceline.native.model import Llama, StepTensors
from paceline.native.packed import token_counts
from paceline.native.parallel import TensorGroup, check_divides
from paceline.native.weights import LoadOptions, load

__all__ = ["Executor", "ExecutorConfig", "PendingIds", "warm_up_shapes"]

Progress = Callable[[str, float], None]

# Decode-only steps up to this many rows run as graphs: under it the host's launches take
# longer than the device's work.
_MAX_GRAPH_ROWS = 256
_GRAPH_ROWS = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 160, 192, 224, 256)
# Steps whose host buffers may be in use at once: running, queued, being written.
_NUM_BUFFERS = 3
_CPU_CACHE_BYTES = 2 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class ExecutorConfig:
    """EngineConfig with every "auto" resolved. Lengths are in tokens."""

    device: torch.device
    dtype: torch.dtype
    quantization: str
    kv_dtype: torch.dtype
    max_step_tokens: int
    max_live_sequences: int
    page_len: int
    kv_memory_fraction: float
    kv_pages: int | None
    max_context_len: int
    use_cuda_graphs: bool
    eos_token_ids: tuple[int, ...]


class PendingIds:
    """The ids of a queued step: on their way to the host, or there."""

    def __init__(self, ids: Tensor, event: torch.cuda.Event | None) -> None:
        self._ids = ids
        self._event = event

    def wait(self, check: Callable[[], None]) -> list[int]:
        """Block until the ids are here, calling `check` (it may raise) while waiting.

        Raises
            NativeError  a row's logits held a NaN, or the device failed.
        """
        try:
            while self._event is not None and not self._event.query():
                check()
                time.sleep(0.0002)
        except RuntimeError as error:
            raise NativeError(f"the device failed during a step: {error}") from error
        *token_ids, num_bad = self._ids.tolist()
        if num_bad:
            raise NativeError(
                f"{num_bad} of {len(token_ids)} sampled rows had NaN logits; the step is void",
                hint="check the checkpoint's scales, or use a wider dtype",
            )
        return token_ids


@dataclass(slots=True)
class _Graph:
    graph: torch.cuda.CUDAGraph
    packed: Tensor
    lengths: tuple[int, ...]
    out: Tensor


class Executor:
    """Loads a rank's share, sizes its cache, and runs steps."""

    def __init__(self, config: ExecutorConfig, source: Source, *, group: TensorGroup) -> None:
        check_divides(source.config, group.size)
        self.config = config
        self.source = source
        self.group = group
        self.num_graph_steps = 0
        self._graphs: dict[int, _Graph] = {}
        self._host_buffers: list[Tensor] = []
        self._out_buffers: list[Tensor] = []
        self._turn = 0

    def describe(self) -> dict[str, str]:
        """What was chosen for this model on this device, for the record."""
        llama = self.llama
        layer = llama.weights.layers[0].down
        scales = "per token" if layer.takes_fp8 else "none"
        if layer.input_scale is not None:
            scales = "fixed"
        heads = self.source.config.num_heads // self.group.size
        shape = (1, heads, self.source.config.head_size)
        q_DQd = torch.empty(shape, dtype=llama.dtype, device=self.config.device)
        runs_source = decode_sm89.can_run(q_DQd, llama.cache.keys_LPHNd[0])
        kernel = "definition" if not uses_kernel(q_DQd) else "triton"
        return {
            "activation_scales": scales,
            "decode_kernel": "cuda source" if runs_source else kernel,
        }

    @property
    def is_cuda(self) -> bool:
        return self.config.device.type == "cuda"

    @torch.inference_mode()
    def prepare(self, progress: Progress) -> int:
        """Load, warm up and allocate; return the number of pages, the least of any rank.

        Raises
            NativeError  the checkpoint cannot be read, or the device has no room for all of it.
        """
        try:
            return self._prepare(progress)
        except torch.OutOfMemoryError as error:
            raise NativeError(
                f"out of memory on {self.config.device} while warming up",
                hint="lower max_step_tokens or kv_memory_fraction, or raise tensor_parallel",
            ) from error

    def _prepare(self, progress: Progress) -> int:
        config = self.config
        if self.is_cuda:
            torch.cuda.set_device(config.device)
        options = LoadOptions(
            device=config.device, dtype=config.dtype, quantization=config.quantization
        )
        weights = load(
            self.source,
            options,
            group=self.group,
            progress=lambda fraction: progress("weights", fraction),
        )
        cache = KVCache(self._cache_config(), 1, config.device)
        # Recorded steps hold the addresses of the model's tensors: none is replaced after this.
        model = replace(self.source.config, eos_token_ids=config.eos_token_ids)
        self.llama = Llama(model, weights, cache=cache, group=self.group)
        self._make_buffers()
        if self.is_cuda:
            self._warm_up()
        num_pages = self.group.minimum(self._count_pages())
        if num_pages < 1:
            raise NativeError(
                "no memory is left for the KV cache",
                hint="quantise, raise tensor_parallel or lower max_step_tokens",
            )
        self.llama.cache = KVCache(self._cache_config(), num_pages, config.device)
        progress("cache", 1.0)
        if self.is_cuda and config.use_cuda_graphs and self.group.size == 1:
            self._capture_all(progress)
        return num_pages

    @torch.inference_mode()
    def execute(self, arrays: StepArrays) -> PendingIds:
        """Queue a step.

        Raises
            NativeError  the device is out of memory or failed.
        """
        try:
            return self._execute(arrays)
        except torch.OutOfMemoryError as error:
            raise NativeError(
                f"out of memory in a step of {len(arrays.token_T)} tokens",
                hint="lower kv_memory_fraction or max_step_tokens",
            ) from error
        except RuntimeError as error:
            raise NativeError(f"a step failed on {self.config.device}: {error}") from error

    def _execute(self, arrays: StepArrays) -> PendingIds:
        num_rows, num_sampled = len(arrays.slot_D), len(arrays.sample_row_R)
        graph = None
        if self._graphs and len(arrays.token_T) == num_rows <= _MAX_GRAPH_ROWS:
            graph = next(self._graphs[rows] for rows in _GRAPH_ROWS if rows >= num_rows)
            arrays = _padded(arrays, graph.lengths[0], self.config.max_live_sequences)
        packed = self._send(arrays)
        lengths = arrays.lengths()
        tensors, page_index_U, page_U = unpack(packed, lengths)
        if len(page_index_U):
            self.llama.cache.set_pages(page_index_U.long(), page_U)
        if graph is None:
            ids = self.llama.step(tensors)
        else:
            graph.packed.copy_(packed[: graph.packed.shape[0]])
            graph.graph.replay()
            self.num_graph_steps += 1
            ids = graph.out
        return self._receive(ids, num_sampled)

    def _send(self, arrays: StepArrays) -> Tensor:
        if not self.is_cuda:
            packed = torch.empty(packed_len(arrays), dtype=torch.int32)
            pack(arrays, packed)
            return packed
        length = packed_len(arrays)
        host = self._host_buffers[self._turn]
        if host.shape[0] < length:
            host = torch.empty(2 * length, dtype=torch.int32, pin_memory=True)
            self._host_buffers[self._turn] = host
        pack(arrays, host)
        return host[:length].to(self.config.device, non_blocking=True)

    def _receive(self, ids: Tensor, num_sampled: int) -> PendingIds:
        if not self.is_cuda:
            return PendingIds(ids, None)
        out = self._out_buffers[self._turn][: num_sampled + 1]
        self._turn = (self._turn + 1) % _NUM_BUFFERS
        # A graph's rows are padded; the count of bad rows comes after the padding.
        out[:num_sampled].copy_(ids[:num_sampled], non_blocking=True)
        out[num_sampled:].copy_(ids[-1:], non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        return PendingIds(out, event)

    def _make_buffers(self) -> None:
        if not self.is_cuda:
            return
        config = self.config
        num_ints = 8 * config.max_step_tokens + 8 * config.max_live_sequences + 4096
        for _ in range(_NUM_BUFFERS):
            self._host_buffers.append(torch.empty(num_ints, dtype=torch.int32, pin_memory=True))
            num_out = config.max_step_tokens + 1
            self._out_buffers.append(torch.empty(num_out, dtype=torch.int32, pin_memory=True))

    def _cache_config(self) -> CacheConfig:
        config, model = self.config, self.source.config
        return CacheConfig(
            num_layers=model.num_layers,
            num_kv_heads=model.num_kv_heads // self.group.size,
            head_size=model.head_size,
            page_len=config.page_len,
            max_context_len=config.max_context_len,
            max_live_sequences=config.max_live_sequences,
            dtype=config.kv_dtype,
        )

    def _warm_up(self) -> None:
        """Compile every kernel and reach the peak of activations, on padding alone."""
        num_slots = self.config.max_live_sequences
        shapes = warm_up_shapes(self.config)
        if self.llama.weights.layers[0].qkv.packed is not None:
            most = min(self.config.max_step_tokens - 1, num_slots)
            shapes += [(count, []) for count in token_counts() if count <= most]
        for num_decodes, chunk_lens in shapes:
            arrays = idle_arrays(num_decodes, chunk_lens, num_slots=num_slots, context_len=1)
            self._execute(arrays).wait(lambda: None)

    def _count_pages(self) -> int:
        config, page_bytes = self.config, self._cache_config().page_bytes
        if config.kv_pages is not None:
            return config.kv_pages
        if not self.is_cuda:
            per_sequence = -(-config.max_context_len // config.page_len)
            most = config.max_live_sequences * per_sequence
            return max(per_sequence, min(most, _CPU_CACHE_BYTES // page_bytes))
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info()
        return int((free - peak) * config.kv_memory_fraction) // page_bytes

    def _capture_all(self, progress: Progress) -> None:
        pool = torch.cuda.graph_pool_handle()
        rows = [r for r in _GRAPH_ROWS if r <= self.config.max_step_tokens]
        # The largest first: the smaller ones live in the memory it leaves.
        for done, num_rows in enumerate(reversed(rows)):
            arrays = idle_arrays(num_rows, [], num_slots=self.config.max_live_sequences)
            packed = torch.empty(packed_len(arrays), dtype=torch.int32, pin_memory=True)
            pack(arrays, packed)
            static = packed.to(self.config.device)
            lengths = arrays.lengths()
            tensors: StepTensors = unpack(static, lengths)[0]
            self.llama.step(tensors)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                out = self.llama.step(tensors)
            self._graphs[num_rows] = _Graph(graph, static, lengths, out)
            progress("graphs", (done + 1) / len(rows))
        if rows[-1] < min(_MAX_GRAPH_ROWS, self.config.max_step_tokens):
            self._graphs.clear()


def warm_up_shapes(config: ExecutorConfig) -> list[tuple[int, list[int]]]:
    """Decodes and chunk lengths of the steps that compile every kernel and reach the peak.

    No chunk is longer than a context: its page table row ends there.
    """
    budget, longest = config.max_step_tokens, config.max_context_len
    most = min(budget - 1, config.max_live_sequences)

    def chunks(num_tokens: int) -> list[int]:
        whole, rest = divmod(num_tokens, longest)
        return [longest] * whole + ([rest] if rest else [])

    shapes: list[tuple[int, list[int]]] = [(1, []), (most, []), (most, chunks(budget - most))]
    return [*shapes, (0, [1] * min(64, budget)), (1, chunks(budget - 1))]


def _padded(arrays: StepArrays, num_rows: int, num_slots: int) -> StepArrays:
    """A decode-only step with padding rows after its own, up to `num_rows`."""
    import numpy as np

    idle = idle_arrays(num_rows, [], num_slots=num_slots)
    columns = {}
    own = len(arrays.token_T)
    for name in StepArrays.__dataclass_fields__:
        mine, padding = getattr(arrays, name), getattr(idle, name)
        columns[name] = mine if name.startswith("page_") else np.concatenate((mine, padding[own:]))
    return StepArrays(**columns)
