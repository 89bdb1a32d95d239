// Elementwise functions of one and two tensors and their gradients. Each instance is a line
// such as `UNARY(unary_float_relu, float, Relu)` behind this text.
#include "functions.cuh"

// y may be x: every thread reads its elements before it writes them.
template <class T, class F>
__device__ __forceinline__ void map1(const T* x, T* y, u64 n, F f) {
    constexpr u32 V = WIDTH<T>;
    const u64 vectors = n / V, first = first_item();
    Pack<T, V> v[ITEMS];
#pragma unroll
    for (u32 k = 0; k < ITEMS; k++) {
        const u64 i = first + k * THREADS;
        if (i < vectors) v[k] = fetch<V>(x + V * i);
    }
#pragma unroll
    for (u32 k = 0; k < ITEMS; k++) {
        const u64 i = first + k * THREADS;
        if (i < vectors) {
            Vec<V> out;
#pragma unroll
            for (u32 j = 0; j < V; j++) out.v[j] = f(v[k][j]);
            store<V>(y + V * i, out);
        }
    }
    const u64 tail = V * vectors + first;
    if (first < V && tail < n) put(y + tail, f(get(x + tail)));
}

// An operand of step 0 is one element. y may be a or b.
template <class T, class F>
__device__ __forceinline__ void map2(const T* a, const T* b, T* y, u64 n, u32 step_a, u32 step_b, F f) {
    constexpr u32 V = WIDTH<T>;
    const u64 vectors = n / V, first = first_item();
    Pack<T, V> v[ITEMS], w[ITEMS];
    const Pack<T, V> one_a = splat<V>(a), one_b = splat<V>(b);
#pragma unroll
    for (u32 k = 0; k < ITEMS; k++) {
        const u64 i = first + k * THREADS;
        if (i < vectors) {
            v[k] = step_a ? fetch<V>(a + V * i) : one_a;
            w[k] = step_b ? fetch<V>(b + V * i) : one_b;
        }
    }
#pragma unroll
    for (u32 k = 0; k < ITEMS; k++) {
        const u64 i = first + k * THREADS;
        if (i < vectors) {
            Vec<V> out;
#pragma unroll
            for (u32 j = 0; j < V; j++) out.v[j] = f(v[k][j], w[k][j]);
            store<V>(y + V * i, out);
        }
    }
    const u64 tail = V * vectors + first;
    if (first < V && tail < n) put(y + tail, f(get(a + tail * step_a), get(b + tail * step_b)));
}

#define UNARY(NAME, T, F)                                                                        \
    extern "C" __global__ void __launch_bounds__(THREADS) NAME(const T* x, T* y, u64 n, float p, \
                                                               float q) {                        \
        map1(x, y, n, F{p, q});                                                                  \
    }

#define UNARY_GRAD(NAME, T, F)                                                                          \
    extern "C" __global__ void __launch_bounds__(THREADS)                                               \
        NAME(const T* dy, const T* s, T* dx, u64 n, float p, float q) {                                 \
        map2(dy, s, dx, n, 1, 1, Gradient<F>{{p, q}});                                                  \
    }

// Negation and absolute value of other element types; integers wrap.
template <class T>
struct Negate {
    static __device__ __forceinline__ T of(T x) { return -x; }
};
template <class T>
struct Magnitude {
    static __device__ __forceinline__ T of(T x) { return x < 0 || (x == 0) ? 0 - x : x; }
};
template <>
struct Negate<i32> {
    static __device__ __forceinline__ i32 of(i32 x) { return (i32)(0u - (u32)x); }
};
template <>
struct Negate<i64> {
    static __device__ __forceinline__ i64 of(i64 x) { return (i64)(0ull - (u64)x); }
};
template <>
struct Magnitude<i32> {
    static __device__ __forceinline__ i32 of(i32 x) { return x < 0 ? (i32)(0u - (u32)x) : x; }
};
template <>
struct Magnitude<i64> {
    static __device__ __forceinline__ i64 of(i64 x) { return x < 0 ? (i64)(0ull - (u64)x) : x; }
};
template <>
struct Magnitude<double> {
    static __device__ __forceinline__ double of(double x) { return fabs(x); }
};

#define UNARY_TYPED(NAME, F, T)                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS) NAME(const T* x, T* y, u64 n) {        \
        const u64 i = (u64)blockIdx.x * THREADS + threadIdx.x;                                   \
        if (i < n) y[i] = F<T>::of(x[i]);                                                        \
    }

// ---- two operands --------------------------------------------------------------------

// Broadcast operands: groups of V elements along the innermost axis, whose step is given in
// the walk for a whole group; `single` operands have one element per group.
template <u32 V, class T, class F>
__device__ __forceinline__ void map2_strided(const T* a, const T* b, T* y, u32 groups, const Walk& w, u32 single_a,
                                             u32 single_b, F f) {
    const u64 first = first_item();
    Pack<T, V> v[ITEMS], u[ITEMS];
#pragma unroll
    for (u32 k = 0; k < ITEMS; k++) {
        const u64 i = first + k * THREADS;
        if (i < groups) {
            i64 at_a, at_b;
            offsets(w, (u32)i, at_a, at_b);
            v[k] = single_a ? splat<V>(a + at_a) : fetch<V>(a + at_a);
            u[k] = single_b ? splat<V>(b + at_b) : fetch<V>(b + at_b);
        }
    }
#pragma unroll
    for (u32 k = 0; k < ITEMS; k++) {
        const u64 i = first + k * THREADS;
        if (i < groups) {
            Vec<V> out;
#pragma unroll
            for (u32 j = 0; j < V; j++) out.v[j] = f(v[k][j], u[k][j]);
            store<V>(y + V * i, out);
        }
    }
}

#define BINARY(NAME, T, F)                                                                                 \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                  \
        NAME(const T* a, const T* b, T* y, u64 n, u32 step_a, u32 step_b) {                                \
        map2(a, b, y, n, step_a, step_b, F{});                                                             \
    }

#define BINARY_STRIDED(NAME, T, F, V)                                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                  \
        NAME(const T* a, const T* b, T* y, u32 groups, u32 single_a, u32 single_b,                         \
             const __grid_constant__ Walk w) {                                                             \
        map2_strided<V>(a, b, y, groups, w, single_a, single_b, F{});                                      \
    }

// Other element types, one element a thread; M is the type of the arithmetic.
#define BINARY_TYPED(NAME, F, T, M)                                                                        \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                  \
        NAME(const T* a, const T* b, T* y, u32 n, const __grid_constant__ Walk w) {                        \
        const u32 i = blockIdx.x * THREADS + threadIdx.x;                                                  \
        if (i < n) {                                                                                       \
            i64 at_a, at_b;                                                                                \
            offsets(w, i, at_a, at_b);                                                                     \
            y[i] = (T)F{}((M)a[at_a], (M)b[at_b]);                                                         \
        }                                                                                                  \
    }
