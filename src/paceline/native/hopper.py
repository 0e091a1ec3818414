"""What kernels in CUDA C++ for Hopper share: tensor maps, launches, and the source's first lines.

Compiled at start by NVRTC through torch, for compute capability 9.0 alone: warpgroup products and
copies by tensor maps are of no other.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

__all__ = ["HEADER", "Box", "Kernel", "compile_kernel", "is_hopper", "tensor_map"]

# CUtensorMapDataType's unsigned integers, by bytes; CUtensorMapSwizzle, by bytes that it turns.
_DATA_TYPES = {1: 0, 2: 1, 4: 2}
_SWIZZLES = {0: 0, 32: 1, 64: 2, 128: 3}
# CU_TENSOR_MAP_L2_PROMOTION_L2_128B
_PROMOTE_128 = 2
# CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_MAX_DYNAMIC_SHARED = 8
_MAP_BYTES = 128


@dataclass(frozen=True, slots=True)
class Box:
    """What a copy takes of a matrix: rows, columns, and the bytes that its swizzle turns, or 0."""

    rows: int
    columns: int
    swizzle: int = 0


@dataclass(frozen=True, slots=True)
class Kernel:
    """A compiled kernel on one device; `shared_bytes` of memory for each of its programs."""

    function: Any
    num_processors: int
    threads: int
    shared_bytes: int

    def launch(self, num_programs: int, arguments: Sequence[Any], device: torch.device) -> None:
        """Queue it with ctypes values, in the order of the source's parameters."""
        pointers = [ctypes.addressof(argument) for argument in arguments]
        code = _driver().cuLaunchKernel(
            self.function.func,
            *(num_programs, 1, 1, self.threads, 1, 1, self.shared_bytes),
            ctypes.c_void_p(torch.cuda.current_stream(device).cuda_stream),
            (ctypes.c_void_p * len(pointers))(*pointers),
            None,
        )
        _check(code, "cuLaunchKernel")


def is_hopper(device: torch.device) -> bool:
    """Whether such kernels can be compiled and run there."""
    return (
        device.type == "cuda"
        and hasattr(torch.cuda, "_compile_kernel")
        and torch.cuda.get_device_capability(device) == (9, 0)
    )


@lru_cache(maxsize=1)
def _driver() -> Any:
    return ctypes.CDLL("libcuda.so.1")


def _check(code: int, what: str) -> None:
    if code:
        raise RuntimeError(f"{what} failed with CUDA error {code}")


def compile_kernel(
    source: str, name: str, options: list[str], *, threads: int, shared_bytes: int
) -> Kernel:
    """A kernel of `source` on the current device.

    Raises
        RuntimeError  NVRTC or the driver refuses it.
    """
    compiled: Any = torch.cuda._compile_kernel(
        source, name, compute_capability="90a", nvcc_options=options
    )
    code = _driver().cuFuncSetAttribute(compiled.func, _MAX_DYNAMIC_SHARED, shared_bytes)
    _check(code, "cuFuncSetAttribute")
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return Kernel(compiled, properties.multi_processor_count, threads, shared_bytes)


def tensor_map(matrix: Tensor, box: Box) -> Any:
    """How copies find a contiguous matrix; an argument of `Kernel.launch`."""
    num_rows, num_columns = matrix.shape
    return _map(matrix.data_ptr(), (num_rows, num_columns), matrix.element_size(), box)


@lru_cache(maxsize=8192)
def _map(address: int, shape: tuple[int, int], item_bytes: int, box: Box) -> Any:
    """A pure function of its arguments, so it holds for what lies at the address later too."""
    memory = ctypes.create_string_buffer(2 * _MAP_BYTES)
    aligned = (_MAP_BYTES - ctypes.addressof(memory)) % _MAP_BYTES
    encoded = (ctypes.c_char * _MAP_BYTES).from_buffer(memory, aligned)
    code = _driver().cuTensorMapEncodeTiled(
        ctypes.byref(encoded),
        ctypes.c_int(_DATA_TYPES[item_bytes]),
        ctypes.c_uint32(2),
        ctypes.c_void_p(address),
        (ctypes.c_uint64 * 2)(shape[1], shape[0]),
        (ctypes.c_uint64 * 1)(shape[1] * item_bytes),
        (ctypes.c_uint32 * 2)(box.columns, box.rows),
        (ctypes.c_uint32 * 2)(1, 1),
        *(ctypes.c_int(0), ctypes.c_int(_SWIZZLES[box.swizzle])),
        *(ctypes.c_int(_PROMOTE_128), ctypes.c_int(0)),
    )
    _check(code, "cuTensorMapEncodeTiled")
    return encoded


HEADER = r"""
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
struct alignas(64) Map { u64 words[16]; };
// Outputs of a program's tile, and threads that multiply.
constexpr int TILE = 128, CONSUMERS = 256;

__device__ __forceinline__ void init_barrier(u32 barrier, int count) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" :: "r"(barrier), "r"(count));
}
__device__ __forceinline__ void expect(u32 barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;"
               :: "r"(barrier), "r"(bytes) : "memory");
}
// What lies at `address` here, in another program of the cluster.
__device__ __forceinline__ u32 address_in(u32 address, int rank) {
  u32 there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
  return there;
}
__device__ __forceinline__ void arrive_there(u32 barrier) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" :: "r"(barrier) : "memory");
}
__device__ __forceinline__ void wait_for_cluster() {
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}
__device__ __forceinline__ void wait(u32 barrier, u32 parity) {
  asm volatile(
      "{.reg .pred p;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
      "@!p bra again;}"
      :: "r"(barrier), "r"(parity) : "memory");
}
__device__ __forceinline__ void copy_box(u32 to, const Map *map, int column, int row, u32 barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%2, %3}], [%4];"
      :: "r"(to), "l"(map), "r"(column), "r"(row), "r"(barrier) : "memory");
}
// To the same place in each program of the cluster, and told to its barrier there.
__device__ __forceinline__ void copy_box_to_all(
    u32 to, const Map *map, int column, int row, u32 barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;"
      :: "r"(to), "l"(map), "r"(column), "r"(row), "r"(barrier), "h"((u16)((1 << CLUSTER) - 1))
      : "memory");
}
__device__ __forceinline__ u16 to_out(float x) {
  u16 bits;
#if OUT_TYPE == 0
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
#else
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
#endif
  return bits;
}
"""
