"""Decode attention over FP8 pages in CUDA C++, operands read as they lie in memory.

Triton moves FP8 operands through shared memory byte by byte to transpose them. Here each
lane reads 16-byte pieces that are already the operands of a matrix instruction, once head
columns and tokens are numbered to suit: a sum over columns or tokens has no order. So a tile
of 16 tokens costs 8 copies a lane, its unpacking, and 16 matrix instructions, and the kernel
waits for nothing but memory. A warp works alone, with a ring of tiles on their way to it.

    S^T = K Q^T    16 tokens x 8 heads; lane (g, q) = (lane / 4, lane % 4) reads columns
                   16q.. and 64 + 16q.. of tokens g and g + 8
    O^T = V^T P^T  128 columns x 8 heads; the lane reads columns 16g.. of tokens 2q, 2q + 1,
                   2q + 8, 2q + 9

Shape letters (this file)
    D   decodes of the step
    Q   query heads held here, d head size
    P   pages of the cache, H KV heads held here, N tokens of a page
    S   sequence slots, I pages a slot's table holds

`attention.decode_attention` is the entry, and `decode_attention_ref` the definition.
Compiled at start by NVRTC, for compute capability 8.9 and newer (FP8 conversion in hardware).
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

__all__ = ["SOURCE", "can_run", "launch"]

HEAD_SIZE = 128
MAX_GROUP = 8
WARPS = 2
STAGES = 3
# CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, in percent.
_PREFERRED_CARVEOUT = 9

SOURCE = r"""
typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned long long u64;
constexpr int D = 128, TILE = 16, PAD = 132;

__device__ __forceinline__ u32 pack_half(float lo, float hi) {
  u32 r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
  return r;
}
__device__ __forceinline__ void unpack4(u32 w, u32 &lo, u32 &hi) {
  asm("{.reg .b16 a, b; mov.b32 {a, b}, %2;"
      " cvt.rn.f16x2.e4m3x2 %0, a; cvt.rn.f16x2.e4m3x2 %1, b;}"
      : "=r"(lo), "=r"(hi) : "r"(w));
}
__device__ __forceinline__ void mma(float c[4], const u32 a[4], u32 b0, u32 b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},"
      " {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ float exp2_(float x) {
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
__device__ __forceinline__ u32 transpose8(u32 x) {
  u32 r;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(x));
  return r;
}
__device__ __forceinline__ void copy16(u32 to, const char *from) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" :: "r"(to), "l"(from));
}
__device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;"); }
__device__ __forceinline__ void wait_oldest() {
  asm volatile("cp.async.wait_group %0;" :: "n"(STAGES - 2) : "memory");
}
__device__ __forceinline__ float load_q(const void *q, u64 at, int q_type) {
  u16 bits = ((const u16 *)q)[at];
  float x;
  if (q_type == 0) return __uint_as_float((u32)bits << 16);
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
  return x;
}
__device__ __forceinline__ void store(void *out, u64 at, float x, int out_type) {
  if (out_type == 2) {
    u16 pair;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(0.0f), "f"(x));
    ((unsigned char *)out)[at] = (unsigned char)pair;
  } else {
    u16 bits;
    if (out_type == 0) asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    else asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    ((u16 *)out)[at] = bits;
  }
}

extern "C" __global__ void __launch_bounds__(WARPS * 32, 16 / WARPS) decode(
    const void *q_ptr, const char *k_ptr, const char *v_ptr, const int *table_ptr,
    const int *slot_ptr, const int *len_ptr, void *out_ptr, const float *out_scale_ptr,
    float *partial_ptr, int qk_scale_bits, int v_scale_bits, int pages_per_slot, int page_bits,
    int num_kv_heads, int group, int num_splits, int q_type, int out_type) {
  __shared__ __align__(16) char ring[WARPS][STAGES][TILE * D * 2];
  const int kv_head = blockIdx.x, row = blockIdx.y, split = blockIdx.z;
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3;
  const float qk_scale = __int_as_float(qk_scale_bits), v_scale = __int_as_float(v_scale_bits);
  const int page_mask = (1 << page_bits) - 1;
  const int context_len = len_ptr[row], num_heads = group * num_kv_heads;
  const int span = ((context_len + num_splits - 1) / num_splits + 63) / 64 * 64;
  const int begin = split * span, end = min(begin + span, context_len);
  const int num_tiles = end > begin ? (end - begin + TILE - 1) / TILE : 0;
  const int mine = num_tiles > warp ? (num_tiles - warp + WARPS - 1) / WARPS : 0;
  const int *table = table_ptr + (u64)slot_ptr[row] * pages_per_slot;

  u32 qf[8][2];
  for (int s = 0; s < 8; ++s)
    for (int h = 0; h < 2; ++h) {
      const int i = s * 4 + h * 2, d = (i >> 4) * 64 + q * 16 + (i & 15);
      const u64 at = ((u64)row * num_heads + kv_head * group + g) * D + d;
      qf[s][h] = g < group
          ? pack_half(load_q(q_ptr, at, q_type), load_q(q_ptr, at + 1, q_type)) : 0;
    }

  const u32 ring_at = (u32)__cvta_generic_to_shared(&ring[warp][0][0]);
  int held_pages = 0;
  auto fetch = [&](int i) {
    if (i < mine) {
      // One load brings the pages of the warp's next 32 tiles.
      if ((i & 31) == 0) {
        const int token = begin + (warp + (i + lane) * WARPS) * TILE;
        held_pages = token < end ? table[token >> page_bits] : 0;
      }
      const int first = begin + (warp + i * WARPS) * TILE;
      const u64 page = (u64)__shfl_sync(~0u, held_pages, i & 31);
      const u64 cell = (((page * num_kv_heads + kv_head) << page_bits) + (first & page_mask)) * D;
      const char *k = k_ptr + cell + lane * 16, *v = v_ptr + cell + 2 * q * D + g * 16;
      const u32 slot = ring_at + (i % STAGES) * (TILE * D * 2), to = slot + lane * 16;
      // Keys arrive as whole lines, four tokens a copy; odd tokens have their halves swapped,
      // so that eight lanes read eight different groups of banks.
      const u32 to_k = slot + (lane * 16 ^ ((lane >> 3 & 1) << 6));
      copy16(to_k, k);
      copy16(to_k + 512, k + 512);
      copy16(to_k + 1024, k + 1024);
      copy16(to_k + 1536, k + 1536);
      copy16(to + 2048, v);
      copy16(to + 2560, v + D);
      copy16(to + 3072, v + 8 * D);
      copy16(to + 3584, v + 9 * D);
    }
    commit();
  };
  for (int i = 0; i < STAGES - 1; ++i) fetch(i);

  float acc[8][4] = {}, top[2] = {-1e30f, -1e30f}, total[2] = {0.0f, 0.0f};
  for (int i = 0; i < mine; ++i) {
    wait_oldest();
    __syncwarp();
    const uint4 *tile = (const uint4 *)&ring[warp][i % STAGES][lane * 16];
    const uint4 *keys = (const uint4 *)&ring[warp][i % STAGES][g * D];
    const int near = q ^ ((g & 1) << 2), far = near ^ 4;
    u32 lo[8], hi[8];
    *(uint4 *)&lo[0] = keys[near];
    *(uint4 *)&lo[4] = keys[far];
    *(uint4 *)&hi[0] = keys[64 + near];
    *(uint4 *)&hi[4] = keys[64 + far];
    // Two sums: a chain of eight dependent products would be as long as the tile's own time.
    float s[4] = {0.0f, 0.0f, 0.0f, 0.0f}, s_odd[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      u32 a[4];
      unpack4(lo[k], a[0], a[2]);
      unpack4(hi[k], a[1], a[3]);
      mma(k & 1 ? s_odd : s, a, qf[k][0], qf[k][1]);
    }
    for (int e = 0; e < 4; ++e) s[e] += s_odd[e];
    u32 v0[4], v1[4], v2[4], v3[4];
    *(uint4 *)v0 = tile[128];
    *(uint4 *)v1 = tile[160];
    *(uint4 *)v2 = tile[192];
    *(uint4 *)v3 = tile[224];
    fetch(i + STAGES - 1);

    const int token = begin + (warp + i * WARPS) * TILE + g;
    const bool seen0 = token < end, seen1 = token + 8 < end;
    float p[4], fade[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float a = seen0 ? s[h] * qk_scale : -1e30f;
      const float b = seen1 ? s[2 + h] * qk_scale : -1e30f;
      float m = fmaxf(a, b);
      m = fmaxf(m, __shfl_xor_sync(~0u, m, 4));
      m = fmaxf(m, __shfl_xor_sync(~0u, m, 8));
      m = fmaxf(m, __shfl_xor_sync(~0u, m, 16));
      m = fmaxf(m, top[h]);
      fade[h] = exp2_(top[h] - m);
      top[h] = m;
      p[h] = seen0 ? exp2_(a - m) : 0.0f;
      p[2 + h] = seen1 ? exp2_(b - m) : 0.0f;
      total[h] = total[h] * fade[h] + p[h] + p[2 + h];
    }
    const u32 b0 = transpose8(pack_half(p[0], p[1])), b1 = transpose8(pack_half(p[2], p[3]));
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      acc[j][0] *= fade[0];
      acc[j][1] *= fade[1];
      acc[j][2] *= fade[0];
      acc[j][3] *= fade[1];
    }
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      u32 a[4];
      const u32 x01 = __byte_perm(v0[w], v1[w], 0x5140), x23 = __byte_perm(v2[w], v3[w], 0x5140);
      unpack4(x01, a[0], a[1]);
      unpack4(x23, a[2], a[3]);
      mma(acc[2 * w], a, b0, b1);
      const u32 y01 = __byte_perm(v0[w], v1[w], 0x7362), y23 = __byte_perm(v2[w], v3[w], 0x7362);
      unpack4(y01, a[0], a[1]);
      unpack4(y23, a[2], a[3]);
      mma(acc[2 * w + 1], a, b0, b1);
    }
  }
  asm volatile("cp.async.wait_all;" ::: "memory");

  for (int h = 0; h < 2; ++h)
    for (int x = 4; x < 32; x <<= 1) total[h] += __shfl_xor_sync(~0u, total[h], x);
  __syncthreads();
  float *shared_acc = (float *)ring, *shared_top = shared_acc + WARPS * 8 * PAD;
  float *shared_total = shared_top + WARPS * 8;
  for (int j = 0; j < 8; ++j)
    for (int e = 0; e < 4; ++e) {
      const int d = g * 16 + 2 * j + (e >> 1), head = 2 * q + (e & 1);
      shared_acc[(warp * 8 + head) * PAD + d] = acc[j][e];
    }
  if (g == 0)
    for (int h = 0; h < 2; ++h) {
      shared_top[warp * 8 + 2 * q + h] = top[h];
      shared_total[warp * 8 + 2 * q + h] = total[h];
    }
  __syncthreads();
  const float out_scale = out_type == 2 ? 1.0f / out_scale_ptr[0] : 1.0f;
  for (int item = threadIdx.x; item < group * D; item += WARPS * 32) {
    const int head = item / D, d = item % D;
    float m = -1e30f, sum = 0.0f, x = 0.0f;
    for (int w = 0; w < WARPS; ++w) m = fmaxf(m, shared_top[w * 8 + head]);
    for (int w = 0; w < WARPS; ++w) {
      const float weight = exp2_(shared_top[w * 8 + head] - m);
      sum += weight * shared_total[w * 8 + head];
      x += weight * shared_acc[(w * 8 + head) * PAD + d];
    }
    const u64 cell = (u64)row * num_heads + kv_head * group + head;
    if (num_splits > 1) {
      float *base = partial_ptr + (cell * num_splits + split) * (D + 2);
      base[d] = x * v_scale;
      if (d == 0) {
        base[D] = num_tiles ? m : __int_as_float(0xff800000);
        base[D + 1] = sum;
      }
    } else {
      store(out_ptr, cell * D + d, x * v_scale / fmaxf(sum, 1e-30f) * out_scale, out_type);
    }
  }
}
"""

_TYPES = {torch.bfloat16: 0, torch.float16: 1, torch.float8_e4m3fn: 2}


def can_run(q_DQd: Tensor, keys_PHNd: Tensor) -> bool:
    """True if this kernel is for these queries and pages."""
    _, num_kv_heads, page_len, head_size = keys_PHNd.shape
    return (
        q_DQd.is_cuda
        and hasattr(torch.cuda, "_compile_kernel")
        and q_DQd.dtype in (torch.bfloat16, torch.float16)
        and keys_PHNd.dtype == torch.float8_e4m3fn
        and head_size == HEAD_SIZE
        and q_DQd.shape[1] <= MAX_GROUP * num_kv_heads
        and page_len >= 16
        and page_len & (page_len - 1) == 0
        and torch.cuda.get_device_capability(q_DQd.device) >= (8, 9)
    )


@lru_cache(maxsize=64)
def _kernel(device_index: int) -> Callable[..., None]:
    """The kernel, loaded on a device; one a device, since a module belongs to its context."""
    assert device_index == torch.cuda.current_device(), "the kernel's device is not the current"
    options = [f"-DWARPS={WARPS}", f"-DSTAGES={STAGES}"]
    compiled: Any = torch.cuda._compile_kernel(SOURCE, "decode", nvcc_options=options)
    # Four programs a multiprocessor need its shared memory; left alone, the driver may split
    # it in favour of a first-level cache that this kernel does not use.
    driver = ctypes.CDLL("libcuda.so.1")
    driver.cuFuncSetAttribute(compiled.func, _PREFERRED_CARVEOUT, 100)
    return compiled  # type: ignore[no-any-return]


def _bits(value: float) -> int:
    """A float's bits as a signed integer: launches pass integers alike in every torch."""
    return int(struct.unpack("<i", struct.pack("<f", value))[0])


def launch(
    tensors: tuple[Tensor, ...], *, num_splits: int, qk_scale: float, v_scale: float
) -> None:
    """Queue the kernel.

    tensors: queries, keys, values, page table, slots, context lengths, output, the output's
    scale (any tensor if it has none), partial results (any tensor if there is one split).
    """
    q_DQd, keys_PHNd, _, table_SI, _, _, out_DQd, _, _ = tensors
    num_rows, num_heads, _ = q_DQd.shape
    _, num_kv_heads, page_len, _ = keys_PHNd.shape
    integers = (
        _bits(qk_scale),
        _bits(v_scale),
        table_SI.shape[1],
        page_len.bit_length() - 1,
        num_kv_heads,
        num_heads // num_kv_heads,
        num_splits,
        _TYPES[q_DQd.dtype],
        _TYPES[out_DQd.dtype],
    )
    _kernel(q_DQd.device.index)(
        grid=(num_kv_heads, num_rows, num_splits),
        block=(32 * WARPS, 1, 1),
        args=[*tensors, *integers],
    )
