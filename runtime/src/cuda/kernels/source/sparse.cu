// Convolutions and products with weights whose zeros are left out (vdnn_ir::sparse has the format;
// the direct sparse convolution is that of Chen, Escort, arXiv 1802.10280). Every weight is
// multiplied with a run of outputs that a warp keeps in registers; its inputs come from shared memory,
// so what bounds a warp is one access there for each product of its lanes.
#include "common.cuh"

// Extents of a convolution, the same for all its blocks.
struct Extents {
    u32 channels, height, width, filters, out_height, out_width;
    i32 top, left;
    Divisor tiles_across;
};

constexpr u32 WARPS = THREADS / 32;
constexpr u32 TILE_BYTES = 32 << 10;

// What a block has of the input: a tile of so many outputs across, RUN outputs for each lane, of as
// many channels as fit.
template <u32 KY, u32 KX, u32 SY, u32 SX, u32 DY, u32 DX, u32 ACROSS, u32 RUN, bool LAST>
struct Tile {
    static constexpr u32 taps = KY * KX;
    static constexpr u32 down = 32 * RUN / ACROSS;
    static constexpr u32 rows = (down - 1) * SY + (KY - 1) * DY + 1;
    static constexpr u32 columns = (ACROSS - 1) * SX + (KX - 1) * DX + 1;
    // Rows of lanes that lie below each other are in other banks.
    static constexpr u32 odd = (32 + ACROSS - columns * SY % 32) % 32;
    static constexpr bool spread = ACROSS < 32 && SX == 1 && SY == 1;
    static constexpr u32 pitch = spread ? columns + odd : columns;
    // So are the channels of a position, which threads with channels in turn write.
    static constexpr u32 plane = LAST ? (rows * pitch + 30) / 32 * 32 + 1 : rows * pitch;
    static constexpr u32 fit = TILE_BYTES / 4 / plane;
    static constexpr u32 channels = fit >= 32 ? 32 : fit >= 16 ? 16 : fit >= 8 ? 8 : fit >= 4 ? 4 : 1;
    static constexpr u32 vector = LAST && channels % 4 == 0 ? 4 : 1;

    // Where the input of a weight lies, from that of the first.
    static __device__ __forceinline__ u32 offset(u32 column) {
        const u32 channel = column / taps, tap = column % taps;
        return channel * plane + tap / KX * DY * pitch + tap % KX * DX;
    }

    // Channels from `first` on of the tile whose first input is at (top, left), zeros around it.
    static __device__ __forceinline__ void load(
        const float* __restrict__ x, const Extents& e, u32 first, i32 top, i32 left, float* __restrict__ tile) {
        if (LAST) {
            constexpr u32 groups = channels / vector;
            for (u32 i = threadIdx.x; i < rows * columns * groups; i += THREADS) {
                const u32 at = i / groups, channel = i % groups * vector;
                const u32 row = at / columns, column = at % columns;
                const u32 y = (u32)(top + (i32)row), x_at = (u32)(left + (i32)column);
                float4 v = make_float4(0, 0, 0, 0);
                if (y < e.height && x_at < e.width && first + channel < e.channels) {
                    const float* from = x + (u64)(y * e.width + x_at) * e.channels + first + channel;
                    if (vector == 4 && e.channels % 4 == 0) {
                        v = *(const float4*)from;
                    } else {
                        v.x = from[0];
                        if (vector > 1 && first + channel + 1 < e.channels) v.y = from[1];
                        if (vector > 1 && first + channel + 2 < e.channels) v.z = from[2];
                        if (vector > 1 && first + channel + 3 < e.channels) v.w = from[3];
                    }
                }
                float* to = tile + channel * plane + row * pitch + column;
                to[0] = v.x;
                if (vector > 1) {
                    to[plane] = v.y;
                    to[2 * plane] = v.z;
                    to[3 * plane] = v.w;
                }
            }
        } else {
            for (u32 i = threadIdx.x; i < channels * rows * columns; i += THREADS) {
                const u32 channel = i / (rows * columns), at = i % (rows * columns);
                const u32 row = at / columns, column = at % columns;
                const u32 y = (u32)(top + (i32)row), x_at = (u32)(left + (i32)column);
                const bool inside = y < e.height && x_at < e.width && first + channel < e.channels;
                tile[channel * plane + row * pitch + column] =
                    inside ? x[((u64)(first + channel) * e.height + y) * e.width + x_at] : 0.0f;
            }
        }
    }
};

// A block: a tile of the outputs of an image (blockIdx.x, blockIdx.z) in WARPS * EACH filters
// (blockIdx.y), each warp EACH of them.
template <class T, u32 SY, u32 SX, u32 ACROSS, u32 RUN, u32 EACH, bool LAST>
__device__ __forceinline__ void sparse_conv(
    const float* __restrict__ x, const i32* __restrict__ starts, const i32* __restrict__ entries,
    const float* __restrict__ bias, float* __restrict__ y, const Extents& e) {
    __shared__ float tile[T::channels * T::plane];
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u32 down = blockIdx.x;
    const u32 left = e.tiles_across.take(down) * ACROSS, top = down * T::down;
    const u32 filter = (blockIdx.y * WARPS + warp) * EACH;
    x += (u64)blockIdx.z * e.channels * e.height * e.width;
    y += (u64)blockIdx.z * e.filters * e.out_height * e.out_width;
    u32 base[RUN];
    float sum[EACH][RUN];
    i32 at[EACH], end[EACH];
#pragma unroll
    for (u32 i = 0; i < RUN; ++i) {
        const u32 n = lane + 32 * i;
        base[i] = n / ACROSS * SY * T::pitch + n % ACROSS * SX;
    }
#pragma unroll
    for (u32 f = 0; f < EACH; ++f) {
        const bool real = filter + f < e.filters;
        at[f] = real ? starts[filter + f] : 0;
        end[f] = real ? starts[filter + f + 1] : 0;
        const float b = real && bias != nullptr ? bias[filter + f] : 0.0f;
#pragma unroll
        for (u32 i = 0; i < RUN; ++i) sum[f][i] = b;
    }
    for (u32 first = 0; first < e.channels; first += T::channels) {
        __syncthreads();
        T::load(x, e, first, (i32)(top * SY) - e.top, (i32)(left * SX) - e.left, tile);
        __syncthreads();
        const i32 from = (i32)(first * T::taps), limit = from + (i32)(T::channels * T::taps);
#pragma unroll
        for (u32 f = 0; f < EACH; ++f) {
            i32 k = at[f];
            // Columns ascend: if the fourth is of these channels, so are those before it.
            while (k + 4 <= end[f] && entries[2 * k + 6] < limit) {
                float value[4];
                u32 offset[4];
#pragma unroll
                for (u32 j = 0; j < 4; ++j) {
                    offset[j] = T::offset((u32)(entries[2 * (k + (i32)j)] - from));
                    value[j] = __int_as_float(entries[2 * (k + (i32)j) + 1]);
                }
#pragma unroll
                for (u32 j = 0; j < 4; ++j) {
#pragma unroll
                    for (u32 i = 0; i < RUN; ++i) sum[f][i] += value[j] * tile[base[i] + offset[j]];
                }
                k += 4;
            }
            while (k < end[f] && entries[2 * k] < limit) {
                const u32 offset = T::offset((u32)(entries[2 * k] - from));
                const float value = __int_as_float(entries[2 * k + 1]);
#pragma unroll
                for (u32 i = 0; i < RUN; ++i) sum[f][i] += value * tile[base[i] + offset];
                ++k;
            }
            at[f] = k;
        }
    }
#pragma unroll
    for (u32 i = 0; i < RUN; ++i) {
        const u32 n = lane + 32 * i, row = top + n / ACROSS, column = left + n % ACROSS;
        if (row >= e.out_height || column >= e.out_width) continue;
        const u64 pixel = (u64)row * e.out_width + column;
        if (LAST && EACH % 4 == 0 && e.filters % 4 == 0) {
#pragma unroll
            for (u32 f = 0; f + 3 < EACH; f += 4) {
                if (filter + f < e.filters) {
                    *(float4*)(y + pixel * e.filters + filter + f) =
                        make_float4(sum[f][i], sum[f + 1][i], sum[f + 2][i], sum[f + 3][i]);
                }
            }
        } else {
#pragma unroll
            for (u32 f = 0; f < EACH; ++f) {
                if (filter + f >= e.filters) break;
                const u64 plane = (u64)e.out_height * e.out_width;
                y[LAST ? pixel * e.filters + filter + f : (filter + f) * plane + pixel] = sum[f][i];
            }
        }
    }
}

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

#define SPARSE_CONV(NAME, KY, KX, SY, SX, DY, DX, ACROSS, RUN, EACH, LAST)                                 \
    extern "C" __global__ void __launch_bounds__(THREADS) NAME(                                            \
        const float* x, const i32* starts, const i32* entries, const float* bias, float* y, Extents e) {   \
        using T = Tile<KY, KX, SY, SX, DY, DX, ACROSS, RUN, LAST>;                                         \
        sparse_conv<T, SY, SX, ACROSS, RUN, EACH, LAST>(x, starts, entries, bias, y, e);                   \
    }
#define SPARSE_ROWS(NAME, IMAGES)                                                                          \
    extern "C" __global__ void __launch_bounds__(THREADS) NAME(                                            \
        const float* x, const i32* starts, const i32* entries, const float* bias, float* y, u32 images,    \
        u32 columns, u32 rows) {                                                                           \
        sparse_rows<IMAGES>(x, starts, entries, bias, y, images, columns, rows);                           \
    }
