// Tensors laid behind each other along an axis, one pass over the result.
#include "batchnorm.cuh"
#include "pieces.cuh"

template <class T>
__device__ __forceinline__ void concat(const Pieces& p, T* y, u32 n) {
    const u64 first = first_item();
    T v[ITEMS];
    u64 target[ITEMS];
#pragma unroll
    for (u32 k = 0; k < ITEMS; k++) {
        const u64 i = first + k * THREADS;
        if (i < n) {
            u32 at;
            u64 unit;
            const void* from = source(p, (u32)i, at, unit, target[k]);
            v[k] = static_cast<const T*>(from)[unit];
        }
    }
#pragma unroll
    for (u32 k = 0; k < ITEMS; k++) {
        if (first + k * THREADS < n) y[target[k]] = v[k];
    }
}

#define CONCAT(NAME, T)                                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS)                                    \
        NAME(T* y, u32 n, const __grid_constant__ Pieces p) {                                \
        concat(p, y, n);                                                                     \
    }

// Batch norm and ReLU of the rows; with END from their end, for what sums have just read. Units are
// V elements: of V channels where `CHANNELS`, else of the channel that `plane` tells.
template <u32 V, bool CHANNELS, bool END, class T>
__device__ __forceinline__ void bn_relu_concat(const Pieces& p, T* y, const float* coefficients, u32 n, u32 channels,
                                               const Divisor& plane) {
    const u64 first = END ? first_item_from_end() : first_item();
    Pack<T, V> v[ITEMS];
    u32 at[ITEMS];
    u64 target[ITEMS];
#pragma unroll
    for (u32 k = 0; k < ITEMS; k++) {
        const u64 i = first + k * THREADS;
        if (i < n) {
            u64 unit;
            const void* from = source(p, (u32)i, at[k], unit, target[k]);
            v[k] = fetch<V>(static_cast<const T*>(from) + V * unit);
        }
    }
#pragma unroll
    for (u32 k = 0; k < ITEMS; k++) {
        if (first + k * THREADS >= n) continue;
        Vec<V> c[3];  // mean, factor, bias
        const u32 place = (u32)p.first + at[k];
#pragma unroll
        for (u32 which = 0; which < 3; which++) {
            const float* from = coefficients + which * channels;
            if constexpr (CHANNELS) {
                c[which] = load<V>(from + V * place);
            } else {
                const float one = from[plane.quotient(place)];
#pragma unroll
                for (u32 e = 0; e < V; e++) c[which].v[e] = one;
            }
        }
        Vec<V> out;
#pragma unroll
        for (u32 e = 0; e < V; e++) {
            const float t = fmaf(v[k][e] - c[0].v[e], c[1].v[e], c[2].v[e]);
            out.v[e] = t <= 0.0f ? 0.0f : t;  // keeps NaN
        }
        store<V>(y + V * target[k], out);
    }
}

#define BN_RELU_CONCAT(NAME, T, V, CHANNELS, END)                                            \
    extern "C" __global__ void __launch_bounds__(THREADS, 4)                                 \
        NAME(T* y, const float* coefficients, u32 n, u32 channels,                           \
             const __grid_constant__ Divisor plane, const __grid_constant__ Pieces p) {      \
        bn_relu_concat<V, CHANNELS, END>(p, y, coefficients, n, channels, plane);            \
    }

// The gradient of that in training, of the rows joined: dx = factor * ((g - third) - (x - mean) *
// fourth) with g = dy where the recomputed output is positive. With ADD, the runs of `added`, in
// rows of `added_stride`, are added. dx may be dy.
template <u32 V, bool CHANNELS, bool ADD, class T>
__device__ __forceinline__ void bn_relu_grad_concat(const Pieces& p, const T* dy, const T* added, u64 added_stride,
                                                    const float* bias, T* dx, const float* coefficients, u32 n,
                                                    u32 channels, const Divisor& plane) {
    const u64 first = first_item_from_end();
    Pack<T, V> v[ITEMS], g[ITEMS], more[ITEMS];
    u32 at[ITEMS];
    u64 target[ITEMS];
#pragma unroll
    for (u32 k = 0; k < ITEMS; k++) {
        const u64 i = first + k * THREADS;
        if (i < n) {
            u32 row;
            u64 unit;
            const void* from = source(p, (u32)i, row, at[k], unit);
            target[k] = row * p.stride + p.first + at[k];
            v[k] = fetch<V>(static_cast<const T*>(from) + V * unit);
            g[k] = fetch<V>(dy + V * target[k]);
            if constexpr (ADD) more[k] = fetch<V>(added + V * (row * added_stride + p.first + at[k]));
        }
    }
#pragma unroll
    for (u32 k = 0; k < ITEMS; k++) {
        if (first + k * THREADS >= n) continue;
        Vec<V> c[5];  // mean, factor, third, fourth, bias
        const u32 place = (u32)p.first + at[k];
#pragma unroll
        for (u32 which = 0; which < 5; which++) {
            const float* from = which < 4 ? coefficients + which * channels : bias;
            if constexpr (CHANNELS) {
                c[which] = load<V>(from + V * place);
            } else {
                const float one = from[plane.quotient(place)];
#pragma unroll
                for (u32 e = 0; e < V; e++) c[which].v[e] = one;
            }
        }
        Vec<V> out;
#pragma unroll
        for (u32 e = 0; e < V; e++) {
            const float x = v[k][e], mean = c[0].v[e];
            const float d = gated<2>(g[k][e], x, 0.0f, mean, c[1].v[e], c[4].v[e]);
            out.v[e] = c[1].v[e] * fmaf(mean - x, c[3].v[e], d - c[2].v[e]);
            if constexpr (ADD) out.v[e] += more[k][e];
        }
        store<V>(dx + V * target[k], out);
    }
}

#define BN_RELU_GRAD_CONCAT(NAME, T, V, CHANNELS, ADD)                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS, V > 4 ? 2 : 3)                                         \
        NAME(const T* dy, const T* added, u64 added_stride, const float* bias, T* dx, const float* coefficients, \
             u32 n, u32 channels, const __grid_constant__ Divisor plane, const __grid_constant__ Pieces p) {     \
        bn_relu_grad_concat<V, CHANNELS, ADD>(p, dy, added, added_stride, bias, dx, coefficients, n, channels,   \
                                              plane);                                                            \
    }
