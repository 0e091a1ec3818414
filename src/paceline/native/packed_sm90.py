"""Products of four-bit weights and FP8 activations in CUDA C++, for Hopper's tensor cores.

A warpgroup multiplies 64 outputs by 128 tokens. Its weights go from shared memory to registers,
become e4m3 there and feed the tensor cores from there; the next block of K is widened while they
work on the last one, which a compiler that orders a loop's parts one after the other does not
do. Two warpgroups share a tile of tokens, and so do the two programs of a cluster. One thread does
nothing but ask for copies, of the next tile before the last one ends.

    block of K         128 codes: a stage holds 128 tokens x 128 bytes and 128 outputs x 64 bytes
    widened operand    lane (g, q) = (lane / 4, lane % 4) holds rows g and g + 8 of its warp's 16
    sums               a block's sum is scaled in float32 and added, so GROUP is a multiple of 128

Shape letters (this file)
    T   tokens in the step
    N   output width
    K   input width
    G   groups of K that share a scale

`packed.packed_linear` is the entry, and `packed_linear_ref` the definition. Compiled at start by
NVRTC, for compute capability 9.0 alone: its instructions are of no other.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from paceline.native.packed_sm90_source import SOURCE

__all__ = ["can_run", "launch", "options_of"]

STAGES = 6
# Programs that share a tile of tokens: each fetches its part, for all of them.
CLUSTER = 2
TILE = 128
BLOCK = 128
# Below this many tokens half of a tile would be idle; `packed`'s own tiles are narrower.
LEAST_TOKENS = 65
# Codes of tokens and of weights, and scales; the tensor cores' swizzle counts from 1,024 bytes.
_STAGE_BYTES = 25 * 1024
# Of the results of a tile that wait to be written: outputs of 64, and 8 against bank conflicts.
_PITCH = 72
_STAGED_BYTES = 2 * 2 * TILE * _PITCH
SHARED_BYTES = 1024 + STAGES * _STAGE_BYTES + _STAGED_BYTES
_THREADS = 384

_TYPES = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}
# CUtensorMapDataType, CUtensorMapSwizzle, CUtensorMapL2promotion, CUfunction_attribute
_UINT8, _UINT16, _UINT32 = 0, 1, 2
_NO_SWIZZLE, _SWIZZLE_64, _SWIZZLE_128 = 0, 2, 3
_PROMOTE_128 = 2
_MAX_DYNAMIC_SHARED = 8
_MAP_BYTES = 128


def can_run(rows_TK: Tensor, scale_GN: Tensor, out_TN: Tensor) -> bool:
    """True if this kernel is for these FP8 codes and scales, in groups of whole blocks of 128."""
    num_tokens, width = rows_TK.shape
    num_groups, num_out = scale_GN.shape
    return (
        rows_TK.is_cuda
        and hasattr(torch.cuda, "_compile_kernel")
        and num_tokens >= LEAST_TOKENS
        and scale_GN.dtype in _TYPES
        and scale_GN.is_contiguous()
        and out_TN.dtype in (torch.bfloat16, torch.float16)
        and num_out % 8 == 0
        and (width // num_groups) % BLOCK == 0
        and torch.cuda.get_device_capability(rows_TK.device) == (9, 0)
    )


def options_of(scale_dtype: torch.dtype, out_dtype: torch.dtype) -> list[str]:
    """What the compiler is told about types, stages and shared memory."""
    types = (f"-DSCALE_TYPE={_TYPES[scale_dtype]}", f"-DOUT_TYPE={_TYPES[out_dtype]}")
    stages = (f"-DSTAGES={STAGES}", f"-DCLUSTER={CLUSTER}", f"-DSTAGE_BYTES={_STAGE_BYTES}")
    return [*stages, f"-DPITCH={_PITCH}", *types]


@lru_cache(maxsize=1)
def _driver() -> Any:
    return ctypes.CDLL("libcuda.so.1")


def _check(code: int, what: str) -> None:
    if code:
        raise RuntimeError(f"{what} failed with CUDA error {code}")


@lru_cache(maxsize=64)
def _kernel(device_index: int, scale_dtype: torch.dtype, out_dtype: torch.dtype) -> tuple[Any, int]:
    """The kernel, loaded on a device, and the device's multiprocessors."""
    assert device_index == torch.cuda.current_device(), "the kernel's device is not the current"
    compiled: Any = torch.cuda._compile_kernel(
        SOURCE,
        "packed_linear",
        compute_capability="90a",
        nvcc_options=options_of(scale_dtype, out_dtype),
    )
    code = _driver().cuFuncSetAttribute(compiled.func, _MAX_DYNAMIC_SHARED, SHARED_BYTES)
    _check(code, "cuFuncSetAttribute")
    return compiled, torch.cuda.get_device_properties(device_index).multi_processor_count


@lru_cache(maxsize=8192)
def _map(
    address: int, shape: tuple[int, int], box: tuple[int, int], kind: int, swizzle: int
) -> Any:
    """A tensor map: a pure function of its arguments, so it holds for what lies there later too.

    shape and box are (rows, columns), of elements of `kind`.
    """
    memory = ctypes.create_string_buffer(2 * _MAP_BYTES)
    aligned = (_MAP_BYTES - ctypes.addressof(memory)) % _MAP_BYTES
    encoded = (ctypes.c_char * _MAP_BYTES).from_buffer(memory, aligned)
    code = _driver().cuTensorMapEncodeTiled(
        ctypes.byref(encoded),
        ctypes.c_int(kind),
        ctypes.c_uint32(2),
        ctypes.c_void_p(address),
        (ctypes.c_uint64 * 2)(shape[1], shape[0]),
        (ctypes.c_uint64 * 1)(shape[1] << kind),
        (ctypes.c_uint32 * 2)(box[1], box[0]),
        (ctypes.c_uint32 * 2)(1, 1),
        *(ctypes.c_int(0), ctypes.c_int(swizzle), ctypes.c_int(_PROMOTE_128), ctypes.c_int(0)),
    )
    _check(code, "cuTensorMapEncodeTiled")
    return encoded


def launch(
    rows_TK: Tensor, x_scale_T: Tensor, packed: Tensor, scale_GN: Tensor, out_TN: Tensor
) -> None:
    """Queue the kernel for arguments that `can_run` takes; all contiguous."""
    num_tokens, width = rows_TK.shape
    num_groups, num_out = scale_GN.shape
    compiled, num_processors = _kernel(rows_TK.device.index, scale_GN.dtype, out_TN.dtype)
    scale_kind = _UINT32 if scale_GN.dtype == torch.float32 else _UINT16
    maps = (
        (rows_TK, (num_tokens, width), (TILE // CLUSTER, BLOCK), _UINT8, _SWIZZLE_128),
        (packed, (num_out, width // 2), (TILE, BLOCK // 2), _UINT8, _SWIZZLE_64),
        (scale_GN, (num_groups, num_out), (1, TILE), scale_kind, _NO_SWIZZLE),
    )
    arguments = [
        *(_map(tensor.data_ptr(), *layout) for tensor, *layout in maps),
        *(ctypes.c_void_p(tensor.data_ptr()) for tensor in (x_scale_T, out_TN)),
        *(ctypes.c_int(n) for n in (num_tokens, num_out, width, width // num_groups // BLOCK)),
    ]
    pointers = [ctypes.addressof(argument) for argument in arguments]
    num_units = -(-num_tokens // TILE) * -(-num_out // (CLUSTER * TILE))
    num_programs = CLUSTER * min(num_units, num_processors // CLUSTER)
    code = _driver().cuLaunchKernel(
        compiled.func,
        *(num_programs, 1, 1, _THREADS, 1, 1, SHARED_BYTES),
        ctypes.c_void_p(torch.cuda.current_stream(rows_TK.device).cuda_stream),
        (ctypes.c_void_p * len(pointers))(*pointers),
        None,
    )
    _check(code, "cuLaunchKernel")
