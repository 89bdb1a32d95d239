// Products with weights whose zeros are left out (vdnn_ir::sparse has the format).
#include "common.cuh"

constexpr u32 WARPS = THREADS / 32;

// y[n, m] = sum over k of x[n, k] w[m, k] + bias[m]: SPLIT warps for each m and IMAGES of the n.
template <u32 IMAGES, u32 SPLIT>
__device__ __forceinline__ void sparse_rows(
    const float* __restrict__ x, const i32* __restrict__ starts, const i32* __restrict__ entries,
    const float* __restrict__ bias, float* __restrict__ y, u32 images, u32 columns, u32 rows) {
    __shared__ float parts[SPLIT > 1 ? WARPS * IMAGES : 1];
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 m = blockIdx.x * (WARPS / SPLIT) + warp / SPLIT, first = blockIdx.y * IMAGES;
    const bool real = m < rows;
    float sum[IMAGES] = {};
    const i32 end = real ? starts[m + 1] : 0;
    constexpr u32 ahead = IMAGES > 4 ? 2 : 4;
#pragma unroll ahead
    for (i32 k = (real ? starts[m] : 0) + (i32)(warp % SPLIT * 32 + lane); k < end; k += 32 * SPLIT) {
        const u32 column = (u32)entries[2 * k];
        const float value = __int_as_float(entries[2 * k + 1]);
#pragma unroll
        for (u32 n = 0; n < IMAGES; ++n) {
            if (first + n < images) sum[n] += value * x[(u64)(first + n) * columns + column];
        }
    }
#pragma unroll
    for (u32 n = 0; n < IMAGES; ++n) {
#pragma unroll
        for (u32 mask = 16; mask > 0; mask >>= 1) sum[n] += __shfl_xor_sync(0xffffffffu, sum[n], mask);
        if (SPLIT > 1 && lane == 0) parts[warp * IMAGES + n] = sum[n];
    }
    if (SPLIT > 1) __syncthreads();
    if (!real || lane != 0 || warp % SPLIT != 0) return;
#pragma unroll
    for (u32 n = 0; n < IMAGES; ++n) {
        float all = sum[n];
#pragma unroll
        for (u32 part = 1; part < SPLIT; ++part) all += parts[(warp + part) * IMAGES + n];
        if (first + n < images) y[(u64)(first + n) * rows + m] = all + (bias != nullptr ? bias[m] : 0.0f);
    }
}

#define SPARSE_ROWS(NAME, IMAGES, SPLIT)                                                                   \
    extern "C" __global__ void __launch_bounds__(THREADS) NAME(                                            \
        const float* x, const i32* starts, const i32* entries, const float* bias, float* y, u32 images,    \
        u32 columns, u32 rows) {                                                                           \
        sparse_rows<IMAGES, SPLIT>(x, starts, entries, bias, y, images, columns, rows);                    \
    }
