#ifndef VDNN_EMULATED
typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned short bf16;
struct alignas(16) Chunk { u32 x, y, z, w; };
struct Pair { float x, y; };
__device__ __forceinline__ u32 address(const void* p) { return (u32)__cvta_generic_to_shared(p); }
// Copies 16 bytes, or writes zeros.
__device__ __forceinline__ void copy16(u32 to, const void* from, bool in) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(in ? 16 : 0) : "memory");
}
__device__ __forceinline__ void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> __device__ __forceinline__ void copies_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }
__device__ __forceinline__ void put16(u32 to, Chunk c) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(c.x), "r"(c.y), "r"(c.z), "r"(c.w) : "memory");
}
__device__ __forceinline__ void put8(u32 to, u32 a, u32 b) {
  asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(to), "r"(a), "r"(b) : "memory");
}
__device__ __forceinline__ void put4(u32 to, u32 a) { asm volatile("st.shared.b32 [%0], %1;" ::"r"(to), "r"(a) : "memory"); }
__device__ __forceinline__ Chunk get16(u32 at) {
  Chunk c;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(c.x), "=r"(c.y), "=r"(c.z), "=r"(c.w) : "r"(at) : "memory");
  return c;
}
__device__ __forceinline__ Pair get_pair(u32 at) {
  Pair p;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(p.x), "=f"(p.y) : "r"(at) : "memory");
  return p;
}
__device__ __forceinline__ u32 tf32(float x) {
  u32 r;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(x));
  return r;
}
__device__ __forceinline__ u32 bf16x2(float lo, float hi) {
  u32 r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
  return r;
}
__device__ __forceinline__ u32 max_bf16x2(u32 a, u32 b) {
  u32 r;
  asm("max.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}
// What was written to shared memory becomes visible to matrix instructions.
__device__ __forceinline__ void written() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
template <int N> __device__ __forceinline__ void meet(int id) { asm volatile("bar.sync %0, %1;" ::"r"(id), "n"(N) : "memory"); }
__device__ __forceinline__ void products_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void products_wait() { asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory"); }
template <int N> __device__ __forceinline__ void settled(float (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+f"(d[i])::"memory");
}
__device__ __forceinline__ u32 swap(u32 x, int with) { return __shfl_xor_sync(0xffffffffu, x, with); }
template <int N> __device__ __forceinline__ void product(float (&d)[N / 2], u64 a, u64 b, int more);
#endif
__device__ __forceinline__ u32 bits(float x) { return __float_as_uint(x); }
__device__ __forceinline__ float real(u32 x) { return __uint_as_float(x); }
__device__ __forceinline__ Chunk rounded(Chunk c) {
  return Chunk{tf32(real(c.x)), tf32(real(c.y)), tf32(real(c.z)), tf32(real(c.w))};
}
// Four lanes with four words each: lane i gets word i of all four.
__device__ __forceinline__ Chunk transposed(u32 a, u32 b, u32 c, u32 d, int lane) {
  const bool odd = lane & 1, high = lane & 2;
  u32 s = swap(odd ? a : b, 1), t = swap(odd ? c : d, 1);
  if (odd) { a = s; c = t; } else { b = s; d = t; }
  s = swap(high ? a : c, 2), t = swap(high ? b : d, 2);
  if (high) { a = s; b = t; } else { c = s; d = t; }
  return Chunk{a, b, c, d};
}
__device__ __forceinline__ u32 larger_f32(u32 a, u32 b) { return bits(fmaxf(real(a), real(b))); }
__device__ __forceinline__ Chunk larger_f32(Chunk a, Chunk b) {
  return Chunk{larger_f32(a.x, b.x), larger_f32(a.y, b.y), larger_f32(a.z, b.z), larger_f32(a.w, b.w)};
}
__device__ __forceinline__ Chunk larger_bf16(Chunk a, Chunk b) {
  return Chunk{max_bf16x2(a.x, b.x), max_bf16x2(a.y, b.y), max_bf16x2(a.z, b.z), max_bf16x2(a.w, b.w)};
}
