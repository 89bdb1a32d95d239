// Sums, means and maxima over axes, in f64 and in a fixed order.
#include "common.cuh"

// x is [outer, kept, inner] of V-element groups along `inner`; output k reduces over outer and
// inner, `units` groups in all. A group of G threads has one output and part blockIdx.y of its
// elements. With several parts the result goes to partial[part * kept + k], else to y.
template <u32 G, u32 V, class R, class T, class O>
__device__ __forceinline__ void reduce_rows(const T* x, O* y, double* partial, u32 kept, Divisor inner,
                                            u32 units, double divisor) {
    const u32 lane = threadIdx.x % G;
    const u32 k = blockIdx.x * (THREADS / G) + threadIdx.x / G;
    double acc = R::start();
    if (k < kept) {
        for (u32 u = blockIdx.y * (G * ITEMS) + lane; u < units; u += gridDim.y * (G * ITEMS)) {
            Pack<T, V> v[ITEMS];
#pragma unroll
            for (u32 j = 0; j < ITEMS; j++) {
                u32 row = u + j * G;
                if (row < units) {
                    const u32 at = inner.take(row);
                    v[j] = fetch<V>(x + (((u64)row * kept + k) * inner.value + at) * V);
                }
            }
#pragma unroll
            for (u32 j = 0; j < ITEMS; j++) {
                if (u + j * G < units) {
#pragma unroll
                    for (u32 e = 0; e < V; e++) acc = R::join(acc, (double)v[j][e]);
                }
            }
        }
    }
    acc = group_reduce<G, R>(acc);
    if (lane == 0 && k < kept) {
        if (gridDim.y > 1) {
            partial[(u64)blockIdx.y * kept + k] = acc;
        } else {
            put(y + k, (float)(acc / divisor));
        }
    }
}

#define REDUCE_ROWS(NAME, T, O, G, V, R)                                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS, 4)                                                  \
        NAME(const T* x, O* y, double* partial, u32 kept, Divisor inner, u32 units, double divisor) { \
        reduce_rows<G, V, R>(x, y, partial, kept, inner, units, divisor);                                     \
    }

// x is [outer, rows, columns] with V columns a thread; output (o, column) reduces over rows.
// `lanes` threads lie along the columns, THREADS / lanes along the rows. Block (i, part, o).
template <u32 V, class R, class T, class O>
__device__ __forceinline__ void reduce_columns(const T* x, O* y, double* partial, u32 rows, u32 columns,
                                               u32 lanes, double divisor) {
    __shared__ double parts[THREADS * V];
    const u32 tx = threadIdx.x % lanes, ty = threadIdx.x / lanes, height = THREADS / lanes;
    const u32 column = (blockIdx.x * lanes + tx) * V;
    double acc[V];
#pragma unroll
    for (u32 e = 0; e < V; e++) acc[e] = R::start();
    if (column < columns) {
        const T* from = x + (u64)blockIdx.z * rows * columns + column;
        for (u32 row = blockIdx.y * height * ITEMS + ty; row < rows; row += gridDim.y * height * ITEMS) {
            Pack<T, V> v[ITEMS];
#pragma unroll
            for (u32 j = 0; j < ITEMS; j++) {
                if (row + j * height < rows) v[j] = fetch<V>(from + (u64)(row + j * height) * columns);
            }
#pragma unroll
            for (u32 j = 0; j < ITEMS; j++) {
                if (row + j * height < rows) {
#pragma unroll
                    for (u32 e = 0; e < V; e++) acc[e] = R::join(acc[e], (double)v[j][e]);
                }
            }
        }
    }
#pragma unroll
    for (u32 e = 0; e < V; e++) parts[e * THREADS + threadIdx.x] = acc[e];
    __syncthreads();
    if (ty == 0 && column < columns) {
#pragma unroll
        for (u32 e = 0; e < V; e++) {
            double total = R::start();
            for (u32 h = 0; h < height; h++) total = R::join(total, parts[e * THREADS + h * lanes + tx]);
            const u64 at = (u64)blockIdx.z * columns + column + e;
            if (gridDim.y > 1) {
                partial[(u64)blockIdx.y * gridDim.z * columns + at] = total;
            } else {
                put(y + at, (float)(total / divisor));
            }
        }
    }
}

#define REDUCE_COLUMNS(NAME, T, O, V, R)                                                                     \
    extern "C" __global__ void __launch_bounds__(THREADS, 4)                                                 \
        NAME(const T* x, O* y, double* partial, u32 rows, u32 columns, u32 lanes, double divisor) {  \
        reduce_columns<V, R>(x, y, partial, rows, columns, lanes, divisor);                                  \
    }

// y[k] from partial[c * kept + k] of `chunks` chunks: 16 outputs a block, 16 threads each.
template <class R, class O>
__device__ __forceinline__ void reduce_finish(const double* partial, O* y, u32 kept, u32 chunks, double divisor) {
    __shared__ double parts[THREADS];
    const u32 tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    const u32 k = blockIdx.x * 16 + tx;
    double acc = R::start();
    if (k < kept) {
#pragma unroll 4
        for (u32 c = ty; c < chunks; c += THREADS / 16) acc = R::join(acc, partial[(u64)c * kept + k]);
    }
    parts[threadIdx.x] = acc;
    __syncthreads();
    if (ty == 0 && k < kept) {
#pragma unroll
        for (u32 i = 1; i < THREADS / 16; i++) acc = R::join(acc, parts[i * 16 + tx]);
        put(y + k, (float)(acc / divisor));
    }
}

#define REDUCE_FINISH(NAME, O, R)                                                                     \
    extern "C" __global__ void __launch_bounds__(THREADS)                                             \
        NAME(const double* partial, O* y, u32 kept, u32 chunks, double divisor) {                 \
        reduce_finish<R>(partial, y, kept, chunks, divisor);                                          \
    }

template <class A, class T>
__device__ __forceinline__ A as(T v) {
    return (A)v;
}
template <class A>
__device__ __forceinline__ A as(bf16 v) {
    return (A)get(&v);
}

// Any axes and element types, one output a thread: the first steps of `kept` and `reduced`
// walk x. A is the type of the arithmetic.
template <class T, class O, class A>
__device__ __forceinline__ void reduce_any(const T* x, O* y, u32 outputs, u32 count, const Walk& kept,
                                           const Walk& reduced, A start, A divisor, u32 is_max) {
    const u32 k = blockIdx.x * THREADS + threadIdx.x;
    if (k >= outputs) return;
    i64 base, at, unused;
    offsets(kept, k, base, unused);
    A acc = start;
    for (u32 i = 0; i < count; i++) {
        offsets(reduced, i, at, unused);
        const A v = as<A>(x[base + at]);
        acc = is_max ? (acc > v || acc != acc ? acc : v) : acc + v;
    }
    y[k] = (O)(acc / divisor);
}

#define REDUCE_ANY(NAME, T, O, A)                                                                     \
    extern "C" __global__ void __launch_bounds__(THREADS)                                             \
        NAME(const T* x, O* y, u32 outputs, u32 count, A start, A divisor, u32 is_max,                \
             const __grid_constant__ Walk kept, const __grid_constant__ Walk reduced) {               \
        reduce_any<T, O, A>(x, y, outputs, count, kept, reduced, start, divisor, is_max);                \
    }
