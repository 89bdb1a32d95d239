// Copies between strided layouts, in elements of 1 to 16 bytes.
#include "common.cuh"

// Element i of the walk from x + its first offset to y + its second.
template <class T>
__device__ __forceinline__ void copy_strided(const T* x, T* y, u32 n, const Walk& w) {
    const u64 first = first_item();
    T v[ITEMS];
    i64 target[ITEMS];
#pragma unroll
    for (u32 k = 0; k < ITEMS; k++) {
        const u64 i = first + k * THREADS;
        if (i < n) {
            i64 source;
            offsets(w, (u32)i, source, target[k]);
            v[k] = x[source];
        }
    }
#pragma unroll
    for (u32 k = 0; k < ITEMS; k++) {
        const u64 i = first + k * THREADS;
        if (i < n) y[target[k]] = v[k];
    }
}

#define COPY_STRIDED(NAME, T)                                                                         \
    extern "C" __global__ void __launch_bounds__(THREADS)                                             \
        NAME(const T* x, T* y, u32 n, const __grid_constant__ Walk w) {                               \
        copy_strided(x, y, n, w);                                                                     \
    }

// y = a + x, in V elements a unit. The walk's first offsets are x's, its second y's and a's, which
// may be y.
template <u32 V, class T>
__device__ __forceinline__ void add_strided(const T* a, const T* x, T* y, u32 n, const Walk& w) {
    const u64 first = first_item();
    Pack<T, V> u[ITEMS], v[ITEMS];
    i64 target[ITEMS];
#pragma unroll
    for (u32 k = 0; k < ITEMS; k++) {
        const u64 i = first + k * THREADS;
        if (i < n) {
            i64 source;
            offsets(w, (u32)i, source, target[k]);
            u[k] = fetch<V>(a + target[k] * V);
            v[k] = fetch<V>(x + source * V);
        }
    }
#pragma unroll
    for (u32 k = 0; k < ITEMS; k++) {
        if (first + k * THREADS >= n) continue;
        Vec<V> sum;
#pragma unroll
        for (u32 e = 0; e < V; e++) sum.v[e] = u[k][e] + v[k][e];
        store<V>(y + target[k] * V, sum);
    }
}

#define ADD_STRIDED(NAME, T, V)                                                                       \
    extern "C" __global__ void __launch_bounds__(THREADS)                                             \
        NAME(const T* a, const T* x, T* y, u32 n, const __grid_constant__ Walk w) {                   \
        add_strided<V>(a, x, y, n, w);                                                                \
    }

// Batched transposition through shared memory: x has step 1 along a dimension of `columns`
// and `x_row` along one of `rows`, y has step 1 along the rows and `y_column` along the
// columns. One block of 32 by 8 threads moves a tile of 32 by 32; `w` walks the batch.
template <class T>
__device__ __forceinline__ void transpose_tile(const T* x, T* y, u32 rows, u32 columns, i64 x_row, i64 y_column,
                                               Divisor row_tiles, Divisor column_tiles, const Walk& w) {
    __shared__ T tile[32][33];
    const u32 tx = threadIdx.x % 32, ty = threadIdx.x / 32;
    u32 block = blockIdx.x;
    const u32 column0 = column_tiles.take(block) * 32, row0 = row_tiles.take(block) * 32;
    i64 from, to;
    offsets(w, block, from, to);
#pragma unroll
    for (u32 k = 0; k < 32; k += 8) {
        const u32 row = row0 + ty + k, column = column0 + tx;
        if (row < rows && column < columns) tile[ty + k][tx] = x[from + row * x_row + column];
    }
    __syncthreads();
#pragma unroll
    for (u32 k = 0; k < 32; k += 8) {
        const u32 row = row0 + tx, column = column0 + ty + k;
        if (row < rows && column < columns) y[to + row + column * y_column] = tile[tx][ty + k];
    }
}

#define TRANSPOSE(NAME, T)                                                                                       \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                        \
        NAME(const T* x, T* y, u32 rows, u32 columns, i64 x_row, i64 y_column, Divisor row_tiles,                \
             Divisor column_tiles, const __grid_constant__ Walk w) {                                             \
        transpose_tile(x, y, rows, columns, x_row, y_column, row_tiles, column_tiles, w);                        \
    }
