// Products with weights whose zeros are left out (vdnn_ir::sparse has the format).
#include "common.cuh"

constexpr u32 WARPS = THREADS / 32;

// y[n, m] = sum over k of x[n, k] w[m, k] + bias[m]: a warp for each m and IMAGES of the n.
template <u32 IMAGES>
__device__ __forceinline__ void sparse_rows(
    const float* __restrict__ x, const i32* __restrict__ starts, const i32* __restrict__ entries,
    const float* __restrict__ bias, float* __restrict__ y, u32 images, u32 columns, u32 rows) {
    const u32 lane = threadIdx.x % 32, m = blockIdx.x * WARPS + threadIdx.x / 32;
    if (m >= rows) return;
    const u32 first = blockIdx.y * IMAGES;
    float sum[IMAGES] = {};
    const i32 end = starts[m + 1];
#pragma unroll 4
    for (i32 k = starts[m] + (i32)lane; k < end; k += 32) {
        const u32 column = (u32)entries[2 * k];
        const float value = __int_as_float(entries[2 * k + 1]);
#pragma unroll
        for (u32 n = 0; n < IMAGES; ++n) {
            if (first + n < images) sum[n] += value * x[(u64)(first + n) * columns + column];
        }
    }
#pragma unroll
    for (u32 n = 0; n < IMAGES; ++n) {
        float all = sum[n];
#pragma unroll
        for (u32 mask = 16; mask > 0; mask >>= 1) all += __shfl_xor_sync(0xffffffffu, all, mask);
        if (lane == 0 && first + n < images) {
            y[(u64)(first + n) * rows + m] = all + (bias != nullptr ? bias[m] : 0.0f);
        }
    }
}

#define SPARSE_ROWS(NAME, IMAGES)                                                                          \
    extern "C" __global__ void __launch_bounds__(THREADS) NAME(                                            \
        const float* x, const i32* starts, const i32* entries, const float* bias, float* y, u32 images,    \
        u32 columns, u32 rows) {                                                                           \
        sparse_rows<IMAGES>(x, starts, entries, bias, y, images, columns, rows);                           \
    }
