// Tensors laid behind each other along an axis, one pass over the result.
#include "batchnorm.cuh"

// Rows of the result are made of a run of each piece; all lengths count units of one access.
constexpr u32 MAX_PIECES = 64;
struct Pieces {
    const void* from[MAX_PIECES];
    u32 end[MAX_PIECES];  // where the run of each ends in a row; the largest number behind the last
    u64 stride, first;    // between rows of the result, and of the first run in them
    Divisor row;
    u32 unused;
};

// Where unit i of the runs comes from: a piece and the unit in it. `at` is the place in the row.
__device__ __forceinline__ const void* source(const Pieces& p, u32 i, u32& at, u64& unit, u64& target) {
    u32 row = i;
    at = p.row.take(row);
    u32 k = 0;
#pragma unroll
    for (u32 step = MAX_PIECES / 2; step > 0; step /= 2) {
        if (p.end[k + step - 1] <= at) k += step;
    }
    const u32 start = k ? p.end[k - 1] : 0;
    unit = (u64)row * (p.end[k] - start) + (at - start);
    target = row * p.stride + p.first + at;
    return p.from[k];
}

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

// Batch norm with running statistics and ReLU of the rows. Units are V elements: of V channels
// where `CHANNELS`, else of the channel that `plane` tells.
template <u32 V, bool CHANNELS, class T>
__device__ __forceinline__ void bn_relu_concat(const Pieces& p, T* y, const float* coefficients, u32 n, u32 channels,
                                               const Divisor& plane) {
    const u64 first = first_item();
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
#pragma unroll
        for (u32 which = 0; which < 3; which++) {
            const float* from = coefficients + which * channels;
            if constexpr (CHANNELS) {
                c[which] = load<V>(from + V * at[k]);
            } else {
                const float one = from[plane.quotient(at[k])];
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

#define BN_RELU_CONCAT(NAME, T, V, CHANNELS)                                                 \
    extern "C" __global__ void __launch_bounds__(THREADS, 4)                                 \
        NAME(T* y, const float* coefficients, u32 n, u32 channels,                           \
             const __grid_constant__ Divisor plane, const __grid_constant__ Pieces p) {      \
        bn_relu_concat<V, CHANNELS>(p, y, coefficients, n, channels, plane);                 \
    }
