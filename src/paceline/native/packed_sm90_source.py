"""The CUDA C++ of `packed_sm90`, whose docstring says what it does.

OUT_TYPE (0 bfloat16, 1 float16), TILE_T, STAGES, CLUSTER, STAGE_BYTES and PITCH are set by it.
"""

from __future__ import annotations

from paceline.native.hopper import HEADER

__all__ = ["source"]

_PRODUCT = r"""
// 64 outputs x TILE_T tokens x 32 of K; with `adds` 0 it overwrites the sums.
__device__ __forceinline__ void mma(float (&d)[TILE_T / 2], const u32 *a, u64 b, int adds) {
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, %ADDS, 0;"
      "wgmma.mma_async.sync.aligned.m64nTOKENSk32.f32.e4m3.e4m3 {SUMS},"
      "{%A0,%A1,%A2,%A3}, %B, p, 1, 1;}"
      : OUTPUTS
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(adds));
}
"""

_KERNEL = r"""
// Bytes of x and y by selectors, in the lower 16 bits; 8 | i gives the sign of byte i eight times.
__device__ __forceinline__ u32 permute(u32 x, u32 y, u32 selectors) {
  u32 bytes;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(bytes) : "r"(x), "r"(y), "r"(selectors));
  return bytes;
}
// Two e4m3 numbers, the first in the lower byte.
__device__ __forceinline__ u32 pair(float first, float second) {
  u16 bytes;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(bytes) : "f"(second), "f"(first));
  return bytes;
}
constexpr int X_BYTES = TILE_T * 128, W_BYTES = 8192, SCALE_BYTES = 256;
// Tokens of a tile whose results wait to be written at a time.
constexpr int PART = 64;

extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(CONSUMERS + 128, 1)
packed_linear(
    const __grid_constant__ Map x_map, const __grid_constant__ Map packed_map,
    const __grid_constant__ Map scale_map, const float *x_scale_ptr, const float *row_scale_ptr,
    u16 *out_ptr, int num_tokens, int num_out, int width, int group_blocks) {
  extern __shared__ char memory[];
  __shared__ u64 full_barriers[STAGES], empty_barriers[STAGES];
  const u32 start = (u32)__cvta_generic_to_shared(memory), base = (start + 1023) & ~1023u;
  const u32 full = (u32)__cvta_generic_to_shared(full_barriers);
  const u32 empty = (u32)__cvta_generic_to_shared(empty_barriers);
  const int thread = threadIdx.x, lane = thread & 31;
  const int num_blocks = width >> 7, tiles_t = (num_tokens + TILE_T - 1) / TILE_T;
  // A cluster's programs take neighbouring outputs of the same tokens: a tile of each.
  const int num_units = tiles_t * ((num_out + CLUSTER * TILE - 1) / (CLUSTER * TILE));
  const int first_unit = blockIdx.x / CLUSTER, num_clusters = gridDim.x / CLUSTER;
  const int rank = blockIdx.x % CLUSTER;
  auto n_of = [&](int unit) { return (unit / tiles_t * CLUSTER + rank) * TILE; };
  auto t_of = [&](int unit) { return unit % tiles_t * TILE_T; };

  if (thread == 0) {
    for (int i = 0; i < STAGES; ++i) {
      init_barrier(full + 8 * i, 1);
      init_barrier(empty + 8 * i, CLUSTER * CONSUMERS / 32);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  wait_for_cluster();

  // A warpgroup that only copies needs few registers, and leaves them to the others.
  if (thread >= CONSUMERS) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (thread == CONSUMERS) {
      int slot = 0;
      u32 parity = 1;
      auto fetch = [&](int unit, int block) {
        const int n = n_of(unit), t = t_of(unit) + rank * (TILE_T / CLUSTER);
        const u32 to = base + slot * STAGE_BYTES, barrier = full + 8 * slot;
        wait(empty + 8 * slot, parity);
        expect(barrier, X_BYTES + W_BYTES + SCALE_BYTES);
        copy_box_to_all(to + rank * (X_BYTES / CLUSTER), &x_map, block * 128, t, barrier);
        copy_box(to + X_BYTES, &packed_map, block * 64, n, barrier);
        copy_box(to + X_BYTES + W_BYTES, &scale_map, n, block / group_blocks, barrier);
        if (++slot == STAGES) {
          slot = 0;
          parity ^= 1;
        }
      };
      for (int unit = first_unit; unit < num_units; unit += num_clusters)
#pragma unroll 1
        for (int block = 0; block < num_blocks; ++block) fetch(unit, block);
      // A step widens the block after its own; this one follows the last and is not multiplied.
      fetch(first_unit, 0);
    }
    __syncwarp();
    wait_for_cluster();
    return;
  }

  asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
  const int group = thread >> 7, g = lane >> 2, q = lane & 3;
  const int my_row = (thread >> 5 & 3) * 16 + g, tile_row = group * 64 + my_row;
  const u32 w_from = base + X_BYTES + tile_row * 64 + q * 16;
  const u32 scale_from = base + X_BYTES + W_BYTES + tile_row * 2;
  const u32 empty_there = address_in(empty, lane % CLUSTER);
  auto widen = [&](u32 (&a)[16], int slot) {
    const u32 stage = slot * STAGE_BYTES;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      u32 words[4];
      u16 scale;
      asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                   : "r"(w_from + stage + h * 512));
      asm volatile("ld.shared.u16 %0, [%1];" : "=h"(scale) : "r"(scale_from + stage + h * 16));
      // Odd multiples of the scale as e4m3; twice a number is 8 further on, and -8 x 0x80 more.
      const float one = __uint_as_float((u32)scale << 16);
      const u32 odd = pair(one, 3 * one) | pair(5 * one, 7 * one) << 16;
      const u32 from_0 = permute(odd, 0, 0x1004) + 0x00080000;
      const u32 from_4 = permute(odd, 0, 0x3120) + 0x00080010;
      const u32 from_minus_1 = permute(odd, 0, 0x0100) + 0x90808880;
      const u32 from_minus_5 = permute(odd, 0, 0x0312) + 0x98808880;
      auto values = [&](u32 selectors, u32 signs) {
        const u32 is_negative = permute(signs, 0, 0xBA98);
        return permute(from_0, from_4, selectors) & ~is_negative |
               permute(from_minus_1, from_minus_5, selectors) & is_negative;
      };
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const u32 selectors = words[j] & 0x77777777;
        a[4 * j + h] = values(selectors, words[j]);
        a[4 * j + 2 + h] = values(selectors >> 16, words[j] << 4);
      }
    }
  };

  int unit = first_unit, block = 0, slot = 0, before = 0;
  u32 parity = 0;
  float sum[TILE_T / 2];
  u32 even[16], odd[16];
  u16 *staged = (u16 *)(memory + (base - start) + STAGES * STAGE_BYTES) + group * PART * PITCH;
  auto finish = [&]() {
    const int n0 = n_of(unit) + group * 64, t0 = t_of(unit);
    const float scale[2] = {row_scale_ptr[min(n0 + my_row, num_out - 1)],
                            row_scale_ptr[min(n0 + my_row + 8, num_out - 1)]};
#pragma unroll
    for (int part = 0; part < TILE_T; part += PART) {
      asm volatile("bar.sync %0, 128;" :: "r"(1 + group) : "memory");
#pragma unroll
      for (int j = 0; j < PART / 8; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int t = 8 * j + 2 * q + e, at = part / 2 + 4 * j + e;
          const float x_scale = x_scale_ptr[min(t0 + part + t, num_tokens - 1)];
          staged[t * PITCH + my_row] = to_out(sum[at] * scale[0] * x_scale);
          staged[t * PITCH + my_row + 8] = to_out(sum[at + 2] * scale[1] * x_scale);
        }
      asm volatile("bar.sync %0, 128;" :: "r"(1 + group) : "memory");
      const int n = n0 + (thread & 7) * 8;
#pragma unroll
      for (int r = 0; r < PART / 16; ++r) {
        const int row = (thread >> 3 & 15) + 16 * r, t = t0 + part + row;
        if (t < num_tokens && n < num_out)
          *(uint4 *)(out_ptr + (u64)t * num_out + n) =
              *(const uint4 *)(staged + row * PITCH + (thread & 7) * 8);
      }
    }
  };
  // Products of a block are asked for, and while they run the block after it is widened; those of
  // the block before are then done, and its registers free.
  auto step = [&](u32 (&now)[16], u32 (&next)[16]) {
    const u64 b = (u64)((base + slot * STAGE_BYTES) >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 62;
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
    mma(sum, now, b, block);
    mma(sum, now + 4, b + 2, 1);
    mma(sum, now + 8, b + 4, 1);
    mma(sum, now + 12, b + 6, 1);
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
    if (block && lane < CLUSTER) arrive_there(empty_there + 8 * before);
    before = slot;
    if (++slot == STAGES) {
      slot = 0;
      parity ^= 1;
    }
    wait(full + 8 * slot, parity);
    widen(next, slot);
    if (++block == num_blocks) {
      asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
      if (lane < CLUSTER) arrive_there(empty_there + 8 * before);
#pragma unroll
      for (int i = 0; i < TILE_T / 2; ++i) asm volatile("" : "+f"(sum[i]));
      finish();
      block = 0;
      unit += num_clusters;
    }
  };

  wait(full, 0);
  widen(even, 0);
  while (unit < num_units) {
    step(even, odd);
    if (unit >= num_units) break;
    step(odd, even);
  }
  // Others of the cluster write to this program's memory until they are done.
  wait_for_cluster();
}
"""


def source(tile_t: int) -> str:
    """The program for tiles of `tile_t` tokens: the product names each of its registers."""
    num_sums = tile_t // 2
    product = _PRODUCT.replace("TOKENS", str(tile_t))
    product = product.replace("SUMS", ",".join(f"%{i}" for i in range(num_sums)))
    product = product.replace("OUTPUTS", ", ".join(f'"+f"(d[{i}])' for i in range(num_sums)))
    for place, name in enumerate(("%A0", "%A1", "%A2", "%A3", "%B", "%ADDS"), start=num_sums):
        product = product.replace(name, f"%{place}")
    return HEADER + product + _KERNEL
