// Elementwise programs: several functions in one pass over memory. Each instance is a structure
// with the program, printed as one function, and a line such as
// `PROGRAM(program_1, float, Program1, 2, 0x2)` behind this text. Compiled without fusing products
// with sums of other steps, so that results are those of the functions one after the other.
#include "functions.cuh"

constexpr u32 MAX_OPERANDS = 6;

template <class T>
struct Operands {
    const T* at[MAX_OPERANDS];
};

// A walk over the result for all operands: steps in elements.
struct ProgramAxis {
    Divisor extent;
    u32 unused;
    i64 step[MAX_OPERANDS];
};
struct ProgramWalk {
    u32 rank, unused;
    ProgramAxis axes[MAX_RANK];
};

// Accesses of each operand in flight, fewer where there are many operands.
template <u32 N>
constexpr u32 AHEAD = N <= 2 ? ITEMS : N <= 4 ? ITEMS / 2 : 1;

template <u32 N, class T, u32 V, class F>
__device__ __forceinline__ void finish(const Pack<T, V> (&v)[N], T* y, F f) {
    Vec<V> out;
#pragma unroll
    for (u32 e = 0; e < V; e++) {
        float x[N];
#pragma unroll
        for (u32 j = 0; j < N; j++) x[j] = v[j][e];
        out.v[e] = f(x);
    }
    store<V>(y, out);
}

// Operands of SINGLE are one element; the others run along y, which may be one of them.
template <u32 N, u32 SINGLE, class T, class F>
__device__ __forceinline__ void along(const Operands<T>& x, T* y, u64 n, F f) {
    constexpr u32 V = WIDTH<T>, G = AHEAD<N>;
    const u64 vectors = n / V, first = first_item();
#pragma unroll
    for (u32 b = 0; b < ITEMS; b += G) {
        Pack<T, V> v[G][N];
#pragma unroll
        for (u32 k = 0; k < G; k++) {
            const u64 i = first + (b + k) * THREADS;
            if (i < vectors) {
#pragma unroll
                for (u32 j = 0; j < N; j++) v[k][j] = SINGLE >> j & 1 ? splat<V>(x.at[j]) : fetch<V>(x.at[j] + V * i);
            }
        }
#pragma unroll
        for (u32 k = 0; k < G; k++) {
            const u64 i = first + (b + k) * THREADS;
            if (i < vectors) finish<N, T, V>(v[k], y + V * i, f);
        }
    }
    const u64 tail = V * vectors + first;
    if (first < V && tail < n) {
        float a[N];
#pragma unroll
        for (u32 j = 0; j < N; j++) a[j] = get(x.at[j] + (SINGLE >> j & 1 ? 0 : tail));
        put(y + tail, f(a));
    }
}

// Groups of V elements along the innermost axis. Operands of ALONG have y's shape; of the others
// the walk knows where a group begins, and those of SINGLE have one element for all of it.
template <u32 N, u32 ALONG, u32 SINGLE, u32 V, class T, class F>
__device__ __forceinline__ void strided(const Operands<T>& x, T* y, u32 groups, const ProgramWalk& w, F f) {
    constexpr u32 G = AHEAD<N>;
    const u64 first = first_item();
#pragma unroll
    for (u32 b = 0; b < ITEMS; b += G) {
        Pack<T, V> v[G][N];
#pragma unroll
        for (u32 k = 0; k < G; k++) {
            const u64 i = first + (b + k) * THREADS;
            if (i < groups) {
                i64 at[N] = {};
                u32 n = (u32)i;
                for (u32 d = w.rank; d-- > 0;) {
                    const u32 index = d > 0 ? w.axes[d].extent.take(n) : n;
#pragma unroll
                    for (u32 j = 0; j < N; j++) {
                        if (!(ALONG >> j & 1)) at[j] += (i64)index * w.axes[d].step[j];
                    }
                }
#pragma unroll
                for (u32 j = 0; j < N; j++) {
                    if (ALONG >> j & 1) {
                        v[k][j] = fetch<V>(x.at[j] + V * i);
                    } else {
                        v[k][j] = SINGLE >> j & 1 ? splat<V>(x.at[j] + at[j]) : fetch<V>(x.at[j] + at[j]);
                    }
                }
            }
        }
#pragma unroll
        for (u32 k = 0; k < G; k++) {
            const u64 i = first + (b + k) * THREADS;
            if (i < groups) finish<N, T, V>(v[k], y + V * i, f);
        }
    }
}

#define PROGRAM(NAME, T, F, N, SINGLE)                                                                     \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                  \
        NAME(const __grid_constant__ Operands<T> x, T* y, u64 n) {                                         \
        along<N, SINGLE>(x, y, n, F{});                                                                    \
    }

#define PROGRAM_STRIDED(NAME, T, F, N, ALONG, SINGLE, V)                                                   \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                  \
        NAME(const __grid_constant__ Operands<T> x, T* y, u32 groups, const __grid_constant__ ProgramWalk w) { \
        strided<N, ALONG, SINGLE, V>(x, y, groups, w, F{});                                                \
    }

