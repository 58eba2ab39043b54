// Hopper primitives: mbarriers, bulk and 16-byte copies, proxy fences, matrix stores, conversions.
#pragma once
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define DEV __device__ __forceinline__

DEV u32 smem_addr(const void* p) { return (u32)__cvta_generic_to_shared(p); }
DEV int lane_id() { return threadIdx.x & 31; }

// A copy the compiler cannot see through: what is computed from it stays where it is written.
DEV int opaque(int v) {
  asm volatile("" : "+r"(v));
  return v;
}

// A value that is the same in all lanes, told to the compiler: what is computed from it can live in uniform registers.
DEV int uniform(int v) {
  int r;
  asm volatile("redux.sync.max.s32 %0, %1, 0xffffffff;" : "=r"(r) : "r"(v));
  return r;
}
// One lane of a converged warp. Only then does the compiler know that copies have one issuer: for others it makes a loop over
// lanes, about 20 instructions a copy.
DEV bool elect_one() {
  int elected;
  asm volatile("{.reg .pred P;\nelect.sync _|P, 0xffffffff;\nselp.b32 %0, 1, 0, P;}" : "=r"(elected));
  return elected;
}

// ---- mbarrier
DEV void bar_init(u32 bar, u32 count) { asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count)); }
DEV void bar_arrive(u32 bar) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory"); }
DEV void bar_expect(u32 bar, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}
DEV void bar_wait(u32 bar, u32 parity) {
  asm volatile(
      "{\n.reg .pred P;\nWAIT:\nmbarrier.try_wait.parity.shared::cta.b64 P, [%0], %1;\n@P bra DONE;\nbra WAIT;\nDONE:\n}"
      ::"r"(bar), "r"(parity) : "memory");
}
DEV bool bar_try(u32 bar, u32 parity) {
  int done;
  asm volatile("{.reg .pred P;\nmbarrier.try_wait.parity.shared::cta.b64 P, [%1], %2;\nselp.b32 %0, 1, 0, P;}"
               : "=r"(done) : "r"(bar), "r"(parity) : "memory");
  return done;
}
// For warps that mostly wait: each try takes an instruction from those that compute.
DEV void bar_wait_idle(u32 bar, u32 parity, u32 nanoseconds = 40) {
  while (!bar_try(bar, parity)) __nanosleep(nanoseconds);
}

// ---- copies
DEV void bulk_load(u32 dst, const void* src, u32 bytes, u32 bar) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
               ::"r"(dst), "l"(src), "r"(bytes), "r"(bar) : "memory");
}
DEV void bulk_load(u32 dst, const void* src, u32 bytes, u32 bar, u64 policy) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;"
      ::"r"(dst), "l"(src), "r"(bytes), "r"(bar), "l"(policy) : "memory");
}
// ONCE_READ: what is read leaves the L2 cache first.
template <bool ONCE_READ>
DEV u64 weight_policy() {
  u64 policy;
  if (ONCE_READ) asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  else asm volatile("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
struct alignas(64) TensorMap {               // CUtensorMap
  u64 words[16];
};
// A box of a tensor of four dimensions from its place [expert][row64][chunk][0] on; zeros where it leaves the tensor.
template <bool ONCE_READ>
DEV void tensor_load(u32 dst, const TensorMap& map, int chunk, int row64, int expert, u32 bar) {
  if (ONCE_READ) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
        "[%0], [%1, {%2, %3, %4, %5}], [%6], %7;"
        ::"r"(dst), "l"(&map), "r"(0), "r"(chunk), "r"(row64), "r"(expert), "r"(bar),
          "l"(weight_policy<true>()) : "memory");
  } else {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5}], [%6];"
        ::"r"(dst), "l"(&map), "r"(0), "r"(chunk), "r"(row64), "r"(expert), "r"(bar) : "memory");
  }
}
DEV void prefetch_map(const TensorMap& map) { asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory"); }
// 16 bytes; `bytes` is 16, or 0 to write zeros.
DEV void copy16(u32 dst, const void* src, u32 bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(src), "r"(bytes) : "memory");
}
DEV void copy4(u32 dst, const void* src) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(dst), "l"(src) : "memory");
}

// Arrives once every earlier 16-byte copy of this thread has landed.
DEV void bar_arrive_after_copies(u32 bar) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(bar) : "memory");
}
DEV void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int PENDING>
DEV void copies_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory"); }

// ---- ordering
DEV void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
DEV void named_sync(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
DEV int load_acquire(const int* p) {
  int v;
  asm volatile("ld.acquire.gpu.global.b32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
DEV void add_release(int* p, int v) { asm volatile("red.release.gpu.global.add.s32 [%0], %1;" ::"l"(p), "r"(v) : "memory"); }
DEV void wait_at_least(const int* p, int target) {
  while (load_acquire(p) < target) __nanosleep(32);
}
DEV void wait_for_earlier_kernel() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
DEV void let_next_kernel_start() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

// Past L1, which may hold what another block has since rewritten.
DEV uint4 load_global16(const void* p) {
  uint4 v;
  asm volatile("ld.global.cg.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
  return v;
}

// ---- clusters
DEV u32 cluster_rank() {
  u32 r;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
  return r;
}
DEV u32 cluster_size() {
  u32 n;
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(n));
  return n;
}
DEV u32 in_block(u32 addr, u32 rank) {
  u32 r;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(r) : "r"(addr), "r"(rank));
  return r;
}
DEV void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}
// Says that this block is done reading. No cluster-wide release: that would be a full memory barrier, and nothing was written.
DEV void arrive_in_block(u32 bar, u32 rank) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(in_block(bar, rank)) : "memory");
}
DEV int load_in_block(u32 addr, u32 rank) {
  int v;
  asm volatile("ld.shared::cluster.b32 %0, [%1];" : "=r"(v) : "r"(in_block(addr, rank)) : "memory");
  return v;
}
DEV void send_word(u32 addr, u32 bar, u32 rank, int value) {
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];"
               ::"r"(in_block(addr, rank)), "r"(value), "r"(in_block(bar, rank)) : "memory");
}
// To the same place in each of the cluster's `blocks` first blocks; completes on the barrier of each.
DEV void bulk_load_all(u32 dst, const void* src, u32 bytes, u32 bar, int blocks) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, [%3], %4;"
      ::"r"(dst), "l"(src), "r"(bytes), "r"(bar), "h"((u16)((1 << blocks) - 1)) : "memory");
}

// ---- shared memory
DEV uint4 load_shared16(u32 addr) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(addr));
  return v;
}
DEV u32 load_shared4(u32 addr) {
  u32 v;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(addr));
  return v;
}
DEV float load_shared_float(u32 addr) { return __uint_as_float(load_shared4(addr)); }
DEV uint2 load_shared8(u32 addr) {
  uint2 v;
  asm volatile("ld.shared.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(addr));
  return v;
}
// Four 8x8 16-bit matrices, each from eight 16-byte rows.
DEV uint4 load_matrix4(u32 addr) {
  uint4 v;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(addr));
  return v;
}
DEV void store_shared4(u32 addr, u32 v) { asm volatile("st.shared.u32 [%0], %1;" ::"r"(addr), "r"(v) : "memory"); }
DEV void store_shared16(u32 addr, uint4 v) {
  asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"(addr), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}
// Stores 8x8 16-bit matrices transposed: the fragment's rows become 16-byte runs.
DEV void store_matrix1(u32 addr, u32 a) {
  asm volatile("stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%0], {%1};" ::"r"(addr), "r"(a) : "memory");
}
DEV void store_matrix2(u32 addr, u32 a, u32 b) {
  asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1,%2};" ::"r"(addr), "r"(a), "r"(b) : "memory");
}

// ---- numbers
DEV u32 pack_bf16(float lo, float hi) {
  u32 r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
  return r;
}
DEV float bf16_low(u32 v) { return __uint_as_float(v << 16); }
DEV float bf16_high(u32 v) { return __uint_as_float(v & 0xffff0000u); }
DEV u32 mul_bf16x2(u32 a, u32 b) {
  u32 r;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}
DEV u32 mul_bf16x2_here(u32 a, u32 b) {              // not moved past the waits around it
  u32 r;
  asm volatile("mul.rn.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}
DEV u32 select_bytes(u32 a, u32 b, u32 selector) {
  u32 r;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(selector));
  return r;
}
DEV u16 to_e4m3x2(float lo, float hi) {
  u16 r;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(r) : "f"(hi), "f"(lo));
  return r;
}
DEV u32 e4m3x2_to_f16x2(u16 v) {
  u32 r;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(r) : "h"(v));
  return r;
}
DEV void f16x2_to_float(u32 v, float& lo, float& hi) {
  asm("{.reg .b16 a,b;\nmov.b32 {a,b}, %2;\ncvt.f32.f16 %0, a;\ncvt.f32.f16 %1, b;\n}" : "=f"(lo), "=f"(hi) : "r"(v));
}
DEV float exp2_int(int e) { return __uint_as_float((u32)(e + 127) << 23); }  // -126 <= e <= 127

// ---- one warp's matrix product: 16 weight rows, 8 tokens, 16 values of K
DEV void mma_warp(float* d, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// ---- wgmma bookkeeping
// Pins the making of register values before what follows. The matrix unit reads its A registers until the wait, and
// the compiler serialises everything if one of them is made meanwhile: so what can be prepared during a step is
// pinned before the wait, and the last operation of every A register comes after it.
template <int COUNT>
DEV void settle(u32 (&a)[COUNT]) {
#pragma unroll
  for (int i = 0; i < COUNT; ++i) asm volatile("" : "+r"(a[i])::"memory");
}
DEV void mma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEV void mma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING>
DEV void mma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory"); }
// Token tile in shared memory: K-major rows of 128 bytes, 128-byte swizzle, 8-row groups of 1024 bytes.
DEV u32 descriptor_low(u32 addr) { return ((addr & 0x3ffff) >> 4) | (1u << 16); }
DEV u64 mma_descriptor(u32 low) {
  u64 d;
  asm("mov.b64 %0, {%1, %2};" : "=l"(d) : "r"(low), "n"(0x40000040));
  return d;
}
