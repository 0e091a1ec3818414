"""The CUDA C++ of `packed_sm90`, whose docstring says what it does.

SCALE_TYPE and OUT_TYPE (0 bfloat16, 1 float16, 2 float32), STAGES, CLUSTER, STAGE_BYTES and PITCH
are set by it.
"""

from __future__ import annotations

__all__ = ["SOURCE"]

SOURCE = r"""
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
struct alignas(64) Map { u64 words[16]; };
constexpr int TILE = 128, X_BYTES = 16384, W_BYTES = 8192;
constexpr int SCALE_BYTES = SCALE_TYPE == 2 ? 512 : 256;
constexpr int CONSUMERS = 256;

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
__device__ __forceinline__ float load_scale(u32 from, int at) {
#if SCALE_TYPE == 2
  float x;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(x) : "r"(from + at * 4));
  return x;
#else
  u16 bits;
  asm volatile("ld.shared.u16 %0, [%1];" : "=h"(bits) : "r"(from + at * 2));
#if SCALE_TYPE == 0
  return __uint_as_float((u32)bits << 16);
#else
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
  return x;
#endif
#endif
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
// 64 outputs x 128 tokens x 32 of K; the first of a block overwrites the sums.
template <int ADDS> __device__ __forceinline__ void mma(float (&d)[64], const u32 *a, u64 b) {
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, %69, 0;"
      "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 {"
      "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
      "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
      "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
      "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63},"
      "{%64,%65,%66,%67}, %68, p, 1, 1;}"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),
        "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]),
        "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]),
        "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]),
        "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]),
        "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]),
        "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]),
        "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]), "+f"(d[49]),
        "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),
        "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]),
        "+f"(d[62]), "+f"(d[63])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(ADDS));
}

// The compiler would widen a block after waiting for the products that it should overlap with,
// to hold fewer registers. A store that hangs on the widened words, and never happens, stops it:
// `never` is a number that they cannot make, which the compiler cannot know.
__device__ __forceinline__ void before_what_follows(const u32 (&a)[16], u32 scratch, u32 never) {
  u32 all = 0;
#pragma unroll
  for (int i = 0; i < 16; ++i) all |= a[i];
  asm volatile("{.reg .pred p; setp.eq.u32 p, %0, %2; @p st.shared.b32 [%1], %0;}"
                 :: "r"(all), "r"(scratch), "r"(never) : "memory");
}

extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(CONSUMERS + 128, 1)
packed_linear(
    const __grid_constant__ Map x_map, const __grid_constant__ Map packed_map,
    const __grid_constant__ Map scale_map, const float *x_scale_ptr, u16 *out_ptr,
    int num_tokens, int num_out, int width, int group_blocks) {
  extern __shared__ char memory[];
  __shared__ u64 full_barriers[STAGES], empty_barriers[STAGES];
  const u32 start = (u32)__cvta_generic_to_shared(memory), base = (start + 1023) & ~1023u;
  const u32 full = (u32)__cvta_generic_to_shared(full_barriers);
  const u32 empty = (u32)__cvta_generic_to_shared(empty_barriers);
  const int thread = threadIdx.x, lane = thread & 31;
  const int num_blocks = width >> 7, tiles_t = (num_tokens + TILE - 1) / TILE;
  // A cluster's programs take neighbouring outputs of the same tokens: a tile of each.
  const int num_units = tiles_t * ((num_out + CLUSTER * TILE - 1) / (CLUSTER * TILE));
  const int first_unit = blockIdx.x / CLUSTER, num_clusters = gridDim.x / CLUSTER;
  const int rank = blockIdx.x % CLUSTER;
  auto n_of = [&](int unit) { return (unit / tiles_t * CLUSTER + rank) * TILE; };
  auto t_of = [&](int unit) { return unit % tiles_t * TILE; };

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
        const int n = n_of(unit), t = t_of(unit) + rank * (TILE / CLUSTER);
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
  const u32 w_from = base + X_BYTES + tile_row * 64 + q * 4, turn = (g >> 1) << 4;
  const u32 scale_from = base + X_BYTES + W_BYTES;
  const u32 empty_there = address_in(empty, lane % CLUSTER);
  float next_scale[2];
  auto widen = [&](u32 (&a)[16], int slot) {
    const u32 stage = slot * STAGE_BYTES;
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        u32 codes;
        asm volatile("ld.shared.u32 %0, [%1];"
                     : "=r"(codes) : "r"(w_from + stage + h * 512 + ((j << 4) ^ turn)));
        const int at = (j >> 1) * 4 + (j & 1) * 2 + h;
        a[at] = (codes >> 3 & 0x01010101) * 0x81 + (codes & 0x07070707);
        a[8 + at] = (codes >> 7 & 0x01010101) * 0x81 + (codes >> 4 & 0x07070707);
      }
    next_scale[0] = load_scale(scale_from + stage, tile_row);
    next_scale[1] = load_scale(scale_from + stage, tile_row + 8);
  };

  int unit = first_unit, block = 0, slot = 0;
  u32 parity = 0;
  float part[64], sum[64] = {};
  u32 even[16], odd[16];
  u16 *staged = (u16 *)(memory + (base - start) + STAGES * STAGE_BYTES) + group * TILE * PITCH;
  auto finish = [&]() {
    const int n0 = n_of(unit) + group * 64, t0 = t_of(unit);
    asm volatile("bar.sync %0, 128;" :: "r"(1 + group) : "memory");
#pragma unroll
    for (int j = 0; j < 16; ++j)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int t = 8 * j + 2 * q + e;
        const float x_scale = x_scale_ptr[min(t0 + t, num_tokens - 1)];
        staged[t * PITCH + my_row] = to_out(sum[4 * j + e] * x_scale);
        staged[t * PITCH + my_row + 8] = to_out(sum[4 * j + 2 + e] * x_scale);
      }
    asm volatile("bar.sync %0, 128;" :: "r"(1 + group) : "memory");
    const int n = n0 + (thread & 7) * 8;
#pragma unroll
    for (int r = 0; r < 8; ++r) {
      const int t = (thread >> 3 & 15) + 16 * r;
      if (t0 + t < num_tokens && n < num_out)
        *(uint4 *)(out_ptr + (u64)(t0 + t) * num_out + n) =
            *(const uint4 *)(staged + t * PITCH + (thread & 7) * 8);
    }
#pragma unroll
    for (int i = 0; i < 64; ++i) sum[i] = 0.0f;
  };
  auto step = [&](u32 (&now)[16], u32 (&next)[16]) {
    const u64 b = (u64)((base + slot * STAGE_BYTES) >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 62;
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
    mma<0>(part, now, b);
    mma<1>(part, now + 4, b + 2);
    mma<1>(part, now + 8, b + 4);
    mma<1>(part, now + 12, b + 6);
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    // Codes are e4m3 numbers of code / 512.
    const float scale[2] = {next_scale[0] * 512.0f, next_scale[1] * 512.0f};
    const int done = slot;
    if (++slot == STAGES) {
      slot = 0;
      parity ^= 1;
    }
    wait(full + 8 * slot, parity);
    widen(next, slot);
    before_what_follows(next, base + STAGES * STAGE_BYTES, ~num_tokens);
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    if (lane < CLUSTER) arrive_there(empty_there + 8 * done);
#pragma unroll
    for (int i = 0; i < 64; ++i) asm volatile("" : "+f"(part[i]));
#pragma unroll
    for (int i = 0; i < 64; ++i) sum[i] += part[i] * scale[i >> 1 & 1];
    if (++block == num_blocks) {
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
