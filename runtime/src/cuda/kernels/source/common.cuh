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

// bfloat16: the upper half of a float. All arithmetic on it is in float.
struct bf16 {
    u16 bits;
};

// The nearest bf16 of two floats, ties to even, as they lie in memory.
__device__ __forceinline__ u32 narrow(float low, float high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    u32 both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
#else
    u32 bits[2] = {__float_as_uint(low), __float_as_uint(high)};
    for (u32& b : bits) b = (b & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : (b + 0x7fff + (b >> 16 & 1)) >> 16;
    return bits[0] | bits[1] << 16;
#endif
}

// One element.
__device__ __forceinline__ float get(const float* p) { return *p; }
__device__ __forceinline__ float get(const bf16* p) { return __uint_as_float((u32)p->bits << 16); }
__device__ __forceinline__ void put(float* p, float v) { *p = v; }
__device__ __forceinline__ void put(bf16* p, float v) { p->bits = (u16)narrow(v, 0.0f); }

// Elements of a 16-byte access.
template <class T>
constexpr u32 WIDTH = 16 / sizeof(T);

// V consecutive elements as they lie in memory, read as floats.
template <class T, u32 V>
struct Pack;
template <u32 V>
struct Pack<float, V> {
    float v[V];
    __device__ __forceinline__ float operator[](u32 e) const { return v[e]; }
};
template <u32 V>
struct Pack<bf16, V> {
    u32 w[(V + 1) / 2];
    __device__ __forceinline__ float operator[](u32 e) const {
        return __uint_as_float(e % 2 ? w[e / 2] & 0xffff0000u : w[e / 2] << 16);
    }
};

template <u32 V>
__device__ __forceinline__ Pack<float, V> fetch(const float* p) {
    Pack<float, V> r;
    if constexpr (V % 4 == 0) {
#pragma unroll
        for (u32 i = 0; i < V; i += 4) {
            const float4 t = *reinterpret_cast<const float4*>(p + i);
            r.v[i] = t.x;
            r.v[i + 1] = t.y;
            r.v[i + 2] = t.z;
            r.v[i + 3] = t.w;
        }
    } else {
        r.v[0] = *p;
    }
    return r;
}

template <u32 V>
__device__ __forceinline__ Pack<bf16, V> fetch(const bf16* p) {
    Pack<bf16, V> r;
    if constexpr (V == 8) {
        const uint4 t = *reinterpret_cast<const uint4*>(p);
        r.w[0] = t.x;
        r.w[1] = t.y;
        r.w[2] = t.z;
        r.w[3] = t.w;
    } else if constexpr (V == 4) {
        const uint2 t = *reinterpret_cast<const uint2*>(p);
        r.w[0] = t.x;
        r.w[1] = t.y;
    } else {
        r.w[0] = p->bits;
    }
    return r;
}

// One element V times.
template <u32 V, class T>
__device__ __forceinline__ Pack<T, V> splat(const T* p) {
    Pack<T, V> r;
    if constexpr (sizeof(T) == 4) {
#pragma unroll
        for (u32 e = 0; e < V; e++) r.v[e] = *p;
    } else {
#pragma unroll
        for (u32 e = 0; e < (V + 1) / 2; e++) r.w[e] = p->bits * 0x10001u;
    }
    return r;
}

// V floats.
template <u32 V>
struct Vec {
    float v[V];
};

// V consecutive elements.
template <u32 V, class T>
__device__ __forceinline__ Vec<V> load(const T* p) {
    const Pack<T, V> from = fetch<V>(p);
    Vec<V> r;
#pragma unroll
    for (u32 e = 0; e < V; e++) r.v[e] = from[e];
    return r;
}

template <u32 V>
__device__ __forceinline__ void store(float* p, const Vec<V>& r) {
    if constexpr (V % 4 == 0) {
#pragma unroll
        for (u32 i = 0; i < V; i += 4) {
            *reinterpret_cast<float4*>(p + i) = make_float4(r.v[i], r.v[i + 1], r.v[i + 2], r.v[i + 3]);
        }
    } else {
        *p = r.v[0];
    }
}

template <u32 V>
__device__ __forceinline__ void store(bf16* p, const Vec<V>& r) {
    if constexpr (V == 8) {
        *reinterpret_cast<uint4*>(p) = make_uint4(narrow(r.v[0], r.v[1]), narrow(r.v[2], r.v[3]),
                                                  narrow(r.v[4], r.v[5]), narrow(r.v[6], r.v[7]));
    } else if constexpr (V == 4) {
        *reinterpret_cast<uint2*>(p) = make_uint2(narrow(r.v[0], r.v[1]), narrow(r.v[2], r.v[3]));
    } else {
        put(p, r.v[0]);
    }
}
