// Runs CUDA kernels on the CPU: every thread of a block is a coroutine, which gives way at
// barriers and shuffles. Finds wrong indices and missing barriers, says nothing about speed.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <map>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#define VDNN_EMULATED
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
// One block runs at a time, so what its threads share may be static.
#define __shared__ static
#define emulated_asm(...)

struct float4 { float x, y, z, w; } __attribute__((aligned(16)));
struct uint4 { unsigned x, y, z, w; } __attribute__((aligned(16)));
struct uint2 { unsigned x, y; } __attribute__((aligned(8)));
struct uchar4 { unsigned char x, y, z, w; } __attribute__((aligned(4)));
struct float2 { float x, y; } __attribute__((aligned(8)));
struct uchar2 { unsigned char x, y; } __attribute__((aligned(2)));
struct double2 { double x, y; } __attribute__((aligned(16)));
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uchar4 make_uchar4(unsigned x, unsigned y, unsigned z, unsigned w) {
    return {(unsigned char)x, (unsigned char)y, (unsigned char)z, (unsigned char)w};
}
inline uchar2 make_uchar2(unsigned x, unsigned y) { return {(unsigned char)x, (unsigned char)y}; }
inline double2 make_double2(double x, double y) { return {x, y}; }

struct Index { unsigned x, y, z; };
extern Index threadIdx, blockIdx, blockDim, gridDim;
void __syncthreads();
void __syncwarp();
void exchange(const void* value, void* result, size_t size, unsigned mask);

template <class T>
T __shfl_xor_sync(unsigned, T value, unsigned mask) {
    T result;
    exchange(&value, &result, sizeof(T), mask);
    return result;
}
inline unsigned __ballot_sync(unsigned, bool vote) {
    unsigned votes = (unsigned)vote << threadIdx.x % 32;
    for (unsigned mask = 16; mask > 0; mask >>= 1) votes |= __shfl_xor_sync(~0u, votes, mask);
    return votes;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)(((uint64_t)a * b) >> 32); }
inline double __longlong_as_double(long long bits) { double d; memcpy(&d, &bits, 8); return d; }
inline float __int_as_float(int bits) { float f; memcpy(&f, &bits, 4); return f; }
inline float __uint_as_float(unsigned bits) { float f; memcpy(&f, &bits, 4); return f; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline unsigned __float_as_uint(float f) { unsigned bits; memcpy(&bits, &f, 4); return bits; }
template <class T>
T __ldg(const T* p) { return *p; }
inline unsigned __popc(unsigned bits) { return __builtin_popcount(bits); }
#define __align__(n) __attribute__((aligned(n)))
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }

// Copies that are asynchronous happen when they are waited for, and what warps multiply.
extern unsigned char dynamic_shared[227 << 10];
inline unsigned address(const void* p) { return (unsigned)((const unsigned char*)p - dynamic_shared); }
void copy16(unsigned to, const void* from, bool in);
void copy4(float* to, const float* from, bool in);
void copies_commit();
void copies_wait_for_all_but(size_t left);
template <int N>
void copies_wait() { copies_wait_for_all_but(N); }
void read_matrices(unsigned (&r)[4], unsigned at);
void multiply_tf32(float (&d)[4], const uint4& a, unsigned x, unsigned y);
void multiply_bf16(float (&d)[4], const uint4& a, unsigned x, unsigned y);
void multiply_two_four(float (&d)[4], const uint4& a, const unsigned (&b)[4], unsigned kept);
inline unsigned tf32(unsigned x) { return (x & 0x7f800000) == 0x7f800000 ? x : (x + 0x1000) & ~0x1fffu; }

using Call = void (*)(void** arguments);
std::map<std::string, Call>& kernels();

template <auto F>
struct Bind;
template <class... A, void (*F)(A...)>
struct Bind<F> {
    template <size_t... I>
    static void with(void** p, std::index_sequence<I...>) {
        F(*reinterpret_cast<std::remove_cv_t<A>*>(p[I])...);
    }
    static void call(void** p) { with(p, std::index_sequence_for<A...>{}); }
    explicit Bind(const char* name) { kernels()[name] = call; }
};
