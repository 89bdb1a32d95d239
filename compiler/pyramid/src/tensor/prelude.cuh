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
#if defined(VDNN_WARP_TF32) || defined(VDNN_WARP_BF16)
__device__ __forceinline__ void products_fence() {}
__device__ __forceinline__ void products_commit() {}
__device__ __forceinline__ void products_wait() {}
__device__ __forceinline__ void read4(u32 (&r)[4], u32 at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}
__device__ __forceinline__ void multiply(float* d, const u32 (&a)[4], u32 x, u32 y) {
#ifdef VDNN_WARP_BF16
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
#else
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
#endif
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(x), "r"(y));
}
#else
__device__ __forceinline__ void products_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void products_wait() { asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory"); }
// A product of 64 rows, N columns and 32 bytes of terms, by the width.
template <int N, int ROWS> struct Product;
template <int N, int ROWS> __device__ __forceinline__ void product(float (&d)[N / 2], u32 a, u32 b, int more) {
  Product<N, ROWS>::of(d, a, b, more);
}
#endif
template <int N> __device__ __forceinline__ void settled(float (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+f"(d[i])::"memory");
}
__device__ __forceinline__ int uniform(int x) { return __shfl_sync(0xffffffffu, x, 0); }
// Keeps what is computed from a number from being computed once for all and held in registers.
__device__ __forceinline__ int again(int x) {
  asm volatile("" : "+r"(x));
  return x;
}
__device__ __forceinline__ u32 swap(u32 x, int with) { return __shfl_xor_sync(0xffffffffu, x, with); }
#endif
#if defined(VDNN_WARP_TF32) || defined(VDNN_WARP_BF16)
// The same product by a warp's instructions. `a` and `b` are the lower halves of the descriptors
// that a warp group's instruction takes: where the matrix begins and how far its second 16 bytes
// of terms are, in 16 bytes; eight rows of `a` are ROWS from the next eight.
template <int N, int ROWS> __device__ __forceinline__ void product(float (&d)[N / 2], u32 a, u32 b, int more) {
  const u32 lane = threadIdx.x % 32, row = threadIdx.x % 128 / 32 * 16 + lane % 16;
  if (!more) {
#pragma unroll
    for (int i = 0; i < N / 2; ++i) d[i] = 0.0f;
  }
  u32 x[4], y[4];
  read4(x, ((a & 0x3fffu) + row / 8 * ROWS + row % 8 + lane / 16 * (a >> 16)) * 16);
#pragma unroll
  for (int j = 0; j < N / 8; j += 2) {
    const u32 column = (j + 1 < N / 8 ? j + lane / 16 : j) * 8 + lane % 8;
    read4(y, ((b & 0x3fffu) + column + lane / 8 % 2 * (b >> 16)) * 16);
    multiply(d + 4 * j, x, y[0], y[1]);
    if (j + 1 < N / 8) multiply(d + 4 * j + 4, x, y[2], y[3]);
  }
}
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
