"""Products of four-bit weights and FP8 activations in CUDA C++, for Hopper's tensor cores.

A warpgroup multiplies 64 outputs by a tile of tokens. Its weights go from shared memory to
registers, become the e4m3 numbers of code * scale there, and feed the tensor cores from there.
Sums over all of K stay in the tensor cores' registers: nothing is scaled until the end of a tile.
While a block's products run, the next block is widened, and waits behind them. Two warpgroups share
a tile of tokens, and so do the two programs of a cluster. One thread does nothing but ask for
copies, of the next tile before the last one ends.

    block of K         128 codes: a stage holds 128 bytes of each token, and 64 of 128 outputs
    widened operand    lane (g, q) = (lane / 4, lane % 4) holds rows g and g + 8 of its warp's 16;
                       a scale's 16 multiples are bytes of four registers, and codes select them
    tile of tokens     as wide as makes the whole product's waves of tiles the shortest

A row's bytes lie as lanes read them: for each block and each q lie 16 bytes, four words; word j has
the codes of k = 32 j + 4 q + 0 to 3, and those 16 further on. Of the first four, code i has its
magnitude (of a negative code, one less) in bits 4 i and its sign in bit 8 i + 7; of the others,
the magnitude in bits 16 + 4 i and the sign in bit 8 i + 3. So magnitudes are the selectors of a
permutation of bytes, and signs make masks of bytes.

Shape letters (this file)
    T   tokens in the step
    N   output width
    K   input width
    G   groups of K that share a scale

`packed.packed_linear` is the entry, and `packed_linear_ref` the definition.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache

import torch
from torch import Tensor

from paceline.native.formats import unpack_nibbles
from paceline.native.hopper import Box, Kernel, compile_kernel, is_hopper, tensor_map
from paceline.native.packed_sm90_source import source

__all__ = [
    "TILES_T",
    "can_hold",
    "launch",
    "lay_out",
    "options_of",
    "read_codes",
    "sign_and_rest",
    "tile_for",
]

# Programs that share a tile of tokens: each fetches its part, for all of them.
CLUSTER = 2
TILE = 128
BLOCK = 128
# Tiles of tokens, with the stages that shared memory has room for.
_STAGES = {64: 8, 128: 7, 192: 6, 256: 5}
TILES_T = tuple(_STAGES)
# Of the results of 64 tokens that wait to be written: 64 outputs, and 8 against bank conflicts.
_PITCH = 72
_STAGED_BYTES = 2 * 2 * 64 * _PITCH
_THREADS = 384
_TYPES = {torch.bfloat16: 0, torch.float16: 1}
# What a block of K costs besides its tokens, in the time of one token: fitted to the times of every
# tile on an H200, where it names the fastest for Llama-2-70B's products of 64 to 1,536 tokens.
_BLOCK_COST = 115


def can_hold(num_out: int, group_len: int, device: torch.device) -> bool:
    """Whether a weight of these shapes is to be held for this kernel on a device."""
    return is_hopper(device) and num_out % 16 == 0 and group_len % BLOCK == 0


def sign_and_rest(code: Tensor) -> Tensor:
    """int4 with 8 added to its sign, in bit 3, and the value or its complement below."""
    return torch.where(code >= 8, code ^ 8, code ^ 15)


def lay_out(stored: Tensor) -> Tensor:
    """Codes as stored in the layout above: (N, K / 2) uint8 both, K a multiple of 128."""
    num_rows = stored.shape[0]
    # Block, j, which half of 32, q, i.
    code = sign_and_rest(unpack_nibbles(stored)).view(num_rows, -1, 4, 2, 4, 4)
    rest, sign = code & 7, code >> 3
    # The eight codes of a word, then its four bytes.
    both = torch.cat((rest[:, :, :, 0], rest[:, :, :, 1]), dim=-1)
    signs = (sign[:, :, :, 1] << 3) | (sign[:, :, :, 0] << 7)
    word = both[..., 0::2] | (both[..., 1::2] << 4) | signs
    # (N, block, j, q, byte) to (N, block, q, j, byte)
    return word.transpose(2, 3).reshape(num_rows, -1)


def read_codes(packed: Tensor) -> Tensor:
    """The reverse of `lay_out`, to sign and value or complement: (N, K / 2) to (N, K) uint8."""
    num_rows = packed.shape[0]
    word = packed.view(num_rows, -1, 4, 4, 4).transpose(2, 3)
    rest = torch.stack((word & 7, word >> 4 & 7), dim=-1).flatten(-2).unflatten(-1, (2, 4))
    sign = torch.stack((word >> 7, word >> 3 & 1), dim=-2)
    # (N, block, j, q, half, i) to (N, block, j, half, q, i)
    return (rest | (sign << 3)).transpose(3, 4).reshape(num_rows, -1)


def _stage_bytes(tile_t: int) -> int:
    # Tokens, weights and scales; the tensor cores' swizzle counts from 1,024 bytes.
    return (tile_t // 8 + 8 + 1) * 1024


def _shared_bytes(tile_t: int) -> int:
    """Bytes of shared memory of a program."""
    return 1024 + _STAGES[tile_t] * _stage_bytes(tile_t) + _STAGED_BYTES


def options_of(tile_t: int, out_dtype: torch.dtype) -> list[str]:
    """What the compiler is told about types, stages and shared memory."""
    stages = (f"-DSTAGES={_STAGES[tile_t]}", f"-DSTAGE_BYTES={_stage_bytes(tile_t)}")
    tile = (f"-DTILE_T={tile_t}", f"-DCLUSTER={CLUSTER}", f"-DPITCH={_PITCH}")
    return [*stages, *tile, f"-DOUT_TYPE={_TYPES[out_dtype]}"]


@lru_cache(maxsize=16)
def _kernels(device_index: int, out_dtype: torch.dtype) -> dict[int, Kernel]:
    """Those of all tiles, compiled at the first product: no later step waits for a compiler."""
    assert device_index == torch.cuda.current_device(), "the kernel's device is not the current"
    return {
        tile_t: compile_kernel(
            source(tile_t),
            "packed_linear",
            options_of(tile_t, out_dtype),
            threads=_THREADS,
            shared_bytes=_shared_bytes(tile_t),
        )
        for tile_t in TILES_T
    }


def _units(num_tokens: int, num_out: int, tile_t: int) -> int:
    """Tiles, counted for a cluster."""
    return -(-num_tokens // tile_t) * -(-num_out // (CLUSTER * TILE))


@lru_cache(maxsize=4096)
def tile_for(num_tokens: int, num_out: int, num_processors: int) -> int:
    """The tile of tokens whose waves are the shortest, the narrowest of equals."""

    def cost(tile_t: int) -> int:
        clusters = num_processors // CLUSTER
        return -(-_units(num_tokens, num_out, tile_t) // clusters) * (_BLOCK_COST + tile_t)

    return min(TILES_T, key=cost)


def launch(
    rows_TK: Tensor,
    packed: Tensor,
    scales: tuple[Tensor, Tensor, Tensor],
    out_TN: Tensor,
    *,
    tile_t: int | None = None,
) -> None:
    """Queue the kernel for a weight that `can_hold` takes; all contiguous.

    `scales` are those of tokens (T,), of groups (G, N) bfloat16, and of outputs (N,). `tile_t` is
    of TILES_T; None: the one that `tile_for` finds.
    """
    x_scale_T, scale_GN, row_scale_N = scales
    num_tokens, width = rows_TK.shape
    num_groups, num_out = scale_GN.shape
    device = rows_TK.device
    kernels = _kernels(device.index, out_TN.dtype)
    if tile_t is None:
        tile_t = tile_for(num_tokens, num_out, kernels[TILES_T[0]].num_processors)
    kernel = kernels[tile_t]
    arguments = [
        tensor_map(rows_TK.view(torch.uint8), Box(tile_t // CLUSTER, BLOCK, swizzle=128)),
        tensor_map(packed, Box(TILE, BLOCK // 2)),
        tensor_map(scale_GN, Box(1, TILE)),
        *(ctypes.c_void_p(tensor.data_ptr()) for tensor in (x_scale_T, row_scale_N, out_TN)),
        *(ctypes.c_int(n) for n in (num_tokens, num_out, width, width // num_groups // BLOCK)),
    ]
    num_units = _units(num_tokens, num_out, tile_t)
    num_programs = CLUSTER * min(num_units, kernel.num_processors // CLUSTER)
    kernel.launch(num_programs, arguments, device)
