// What all kernels share: integer names, division by launch constants, walks over strided
// axes, sums of a warp or a block in a fixed order.
#pragma once

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i32 = int;
using i64 = long long;

// Threads of most blocks, and independent accesses of each thread.
constexpr u32 THREADS = 256;
constexpr u32 ITEMS = 4;

// Division by a number known at launch (Granlund and Montgomery, "Division by invariant
// integers using multiplication", PLDI 1994): exact for dividends below 2^31.
struct Divisor {
    u32 value, multiplier, shift;
    __device__ __forceinline__ u32 quotient(u32 n) const { return (__umulhi(n, multiplier) + n) >> shift; }
    // Quotient in n, remainder returned.
    __device__ __forceinline__ u32 take(u32& n) const {
        const u32 q = quotient(n), r = n - q * value;
        n = q;
        return r;
    }
};

// One dimension of a walk over two strided layouts: steps in elements.
struct Axis {
    Divisor extent;
    u32 unused;
    i64 step[2];
};

// Dimensions from the outermost to the innermost.
constexpr u32 MAX_RANK = 8;
struct Walk {
    u32 rank, unused;
    Axis axes[MAX_RANK];
};

// Offsets of position n in both layouts.
__device__ __forceinline__ void offsets(const Walk& w, u32 n, i64& a, i64& b) {
    a = 0;
    b = 0;
    for (u32 d = w.rank; d-- > 1;) {
        const u32 at = w.axes[d].extent.take(n);
        a += (i64)at * w.axes[d].step[0];
        b += (i64)at * w.axes[d].step[1];
    }
    if (w.rank > 0) {
        a += (i64)n * w.axes[0].step[0];
        b += (i64)n * w.axes[0].step[1];
    }
}

// The index of the first of this thread's ITEMS items; they are THREADS apart.
__device__ __forceinline__ u64 first_item() {
    return (u64)blockIdx.x * (THREADS * ITEMS) + threadIdx.x;
}

// Sum over the 32 lanes, in every lane.
__device__ __forceinline__ double warp_sum(double v) {
#pragma unroll
    for (u32 mask = 16; mask > 0; mask >>= 1) v += __shfl_xor_sync(0xffffffffu, v, mask);
    return v;
}

__device__ __forceinline__ float larger(float a, float b) { return a > b || a != a ? a : b; }
__device__ __forceinline__ double larger(double a, double b) { return a > b || a != a ? a : b; }

// How a reduction combines values; every value is exact in f64.
struct Sum {
    static __device__ __forceinline__ double start() { return 0.0; }
    static __device__ __forceinline__ double join(double a, double b) { return a + b; }
};
// NaN wins.
struct Max {
    static __device__ __forceinline__ double start() { return -__longlong_as_double(0x7ff0000000000000LL); }
    static __device__ __forceinline__ double join(double a, double b) { return larger(a, b); }
};

template <class R>
__device__ __forceinline__ double warp_reduce(double v) {
#pragma unroll
    for (u32 mask = 16; mask > 0; mask >>= 1) v = R::join(v, __shfl_xor_sync(0xffffffffu, v, mask));
    return v;
}

// Reduction over a block of THREADS threads, in every thread. Calls may follow each other.
template <class R>
__device__ __forceinline__ double block_reduce(double v) {
    __shared__ double parts[THREADS / 32];
    v = warp_reduce<R>(v);
    __syncthreads();
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = v;
    __syncthreads();
    double total = parts[0];
#pragma unroll
    for (u32 i = 1; i < THREADS / 32; i++) total = R::join(total, parts[i]);
    return total;
}

// Reduction over a group of G threads: a warp or a block.
template <u32 G, class R>
__device__ __forceinline__ double group_reduce(double v) {
    if constexpr (G == 32) {
        return warp_reduce<R>(v);
    } else {
        return block_reduce<R>(v);
    }
}

// V consecutive floats.
template <u32 V>
struct Vec {
    float v[V];
};

template <u32 V>
__device__ __forceinline__ Vec<V> load(const float* p) {
    Vec<V> r;
    if constexpr (V == 4) {
        const float4 t = *reinterpret_cast<const float4*>(p);
        r.v[0] = t.x;
        r.v[1] = t.y;
        r.v[2] = t.z;
        r.v[3] = t.w;
    } else {
        r.v[0] = *p;
    }
    return r;
}

template <u32 V>
__device__ __forceinline__ void store(float* p, const Vec<V>& r) {
    if constexpr (V == 4) {
        *reinterpret_cast<float4*>(p) = make_float4(r.v[0], r.v[1], r.v[2], r.v[3]);
    } else {
        *p = r.v[0];
    }
}
