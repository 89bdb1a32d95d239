// What kernels share that multiply packed weights by matrix instructions of warps. A block of threads
// has a tile of outputs and of filters. What the tile reads of some channels comes to shared memory once
// for all taps and filters, while what came before is multiplied.
#pragma once
#include "planes.cuh"

struct Extents : Convolution {
    // Of filters.
    u32 groups;
    Divisor tiles_across;
};

#ifndef VDNN_EMULATED
// Four matrices of eight rows of 16 bytes; lane i has the address of row i.
__device__ __forceinline__ void read_matrices(u32 (&r)[4], u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}
#endif

// What a block has: TILES tiles of outputs for each of some warps, of ROWS * EACH groups of 16 filters,
// and of the input so many CHANNELS at a time, with room for SLOTS of those. A tile is eight outputs, HIGH below each other; LINE of
// them are next to each other, which divides TILES or is a multiple.
template <class T, u32 KY, u32 KX, u32 SY, u32 SX, u32 DY, u32 DX, u32 HIGH, u32 LINE, u32 ROWS, u32 EACH,
          u32 TILES, u32 CHANNELS, u32 SLOTS>
struct Part {
    using Element = T;
    static constexpr u32 taps = KY * KX, columns = THREADS / 32 / ROWS, broad = 8 / HIGH, line = LINE;
    static constexpr u32 down = columns * TILES / LINE * HIGH, across = LINE * broad;
    static constexpr u32 rows = ROWS, each = EACH, tiles = TILES;
    static constexpr u32 channels = CHANNELS, slots = SLOTS;
    // Of a window of one what strides leave out is not brought.
    static constexpr u32 step_y = KY == 1 ? SY : 1, step_x = KX == 1 ? SX : 1;
    static constexpr u32 leap_y = KY == 1 ? 1 : SY, leap_x = KX == 1 ? 1 : SX;
    static constexpr u32 stride_y = SY, stride_x = SX;
    static constexpr u32 high = (down - 1) * leap_y + (KY - 1) * DY + 1;
    static constexpr u32 wide = (across - 1) * leap_x + (KX - 1) * DX + 1;
    static constexpr u32 positions = high * wide;
    // An odd number of 16 bytes, so that eight positions next to each other are in other banks; lines
    // are apart so that those of a tile are.
    static constexpr u32 pitch = CHANNELS * (u32)sizeof(T) + 16;
    static constexpr u32 spread = HIGH == 1 ? 1 : HIGH == 8 ? 2 : 8, odd = HIGH == 8 ? 1 : broad;
    static constexpr u32 apart = wide + (odd + spread - wide % spread) % spread;
    static constexpr u32 slot = high * apart * pitch;
    static constexpr bool is_float = sizeof(T) == 4;
    // Of the window, and how far apart its taps are in a slot.
    static constexpr u32 window_y = KY, window_x = KX, below = DY * apart * pitch, beside = DX * pitch;
    // Where the inputs of a tap lie behind those of the first, from this channel on.
    static __device__ __forceinline__ u32 offset(u32 channel, u32 tap) {
        return channel * (u32)sizeof(T) + tap / KX * below + tap % KX * beside;
    }
    // The first output of a tile.
    static __device__ __forceinline__ u32 y(u32 tile) { return tile / LINE * HIGH; }
    static __device__ __forceinline__ u32 x(u32 tile) { return tile % LINE * broad; }
    // Where the first input of an output lies.
    static __device__ __forceinline__ u32 place(u32 y, u32 x) { return (y * leap_y * apart + x * leap_x) * pitch; }
};

// What follows the products.
template <class T>
struct Behind {
    const T *bias, *added;
    T* y;
    bool relu;
};

// The place of a block of threads: its image, first group of filters and first output.
struct Corner {
    u64 image;
    u32 first, top, left;
};

template <class P>
__device__ __forceinline__ Corner corner_of(const Extents& e) {
    u32 rest = blockIdx.x;
    const u32 left = e.tiles_across.take(rest) * P::across;
    return {blockIdx.z, blockIdx.y * (P::rows * P::each), rest * P::down, left};
}

// Inputs of a tile, on their way to the slots at the beginning of the dynamic shared memory.
template <class P, bool LAST, bool WHOLE>
struct Inputs {
    using T = typename P::Element;
    const T* x;
    const Extents& e;
    i32* places;
    u32 base;

    // All threads wait for each other.
    __device__ __forceinline__ Inputs(const T* all, const Corner& corner, const Extents& extents)
        : x(all + corner.image * extents.channels * extents.height * extents.width), e(extents) {
        // Where in an image's plane the positions of the tile lie; outside of it they are zeros.
        places = (i32*)(dynamic_shared + P::slots * P::slot);
        base = address(dynamic_shared);
        const i32 corner_y = (i32)(corner.top * P::stride_y) - e.top;
        const i32 corner_x = (i32)(corner.left * P::stride_x) - e.left;
        for (u32 i = threadIdx.x; i < P::positions; i += THREADS) {
            const i32 y = corner_y + (i32)(i / P::wide * P::step_y);
            const i32 column = corner_x + (i32)(i % P::wide * P::step_x);
            const bool inside = (u32)y < e.height && (u32)column < e.width;
            places[i] = inside ? y * (i32)e.width + column : -1;
        }
        __syncthreads();
    }

    static __device__ __forceinline__ u32 line(u32 position) {
        return position / P::wide * P::apart + position % P::wide;
    }

    // Brings the channels of a stage to a slot.
    __device__ __forceinline__ void bring(u32 slot, u32 stage) const {
        if constexpr (WHOLE) {
            // A thread has the same 16 bytes of channels of several positions.
            constexpr u32 chunks = P::channels * (u32)sizeof(T) / 16;
            const u32 part = threadIdx.x % chunks * (16 / sizeof(T)), channel = stage * P::channels + part;
            const u32 to = base + slot * P::slot + part * (u32)sizeof(T);
#pragma unroll 4
            for (u32 i = threadIdx.x / chunks; i < P::positions; i += THREADS / chunks) {
                const i32 at = places[i];
                const bool in = at >= 0 && channel < e.channels;
                copy16(to + line(i) * P::pitch, in ? x + ((u32)at * e.channels + channel) : x, in);
            }
        } else {
            // Element by element: channels that are no whole 16 bytes, or not next to each other.
            for (u32 i = threadIdx.x; i < P::positions * P::channels; i += THREADS) {
                const u32 position = LAST ? i / P::channels : i % P::positions;
                const u32 c = LAST ? i % P::channels : i / P::positions, channel = stage * P::channels + c;
                const i32 at = places[position];
                const u32 plane = e.height * e.width;
                float v = 0.0f;
                if (at >= 0 && channel < e.channels) {
                    v = get(x + (LAST ? (u32)at * e.channels + channel : channel * plane + (u32)at));
                }
                put((T*)(dynamic_shared + slot * P::slot + line(position) * P::pitch + c * (u32)sizeof(T)), v);
            }
        }
    }
};

// Writes a warp's sums, of its first group of filters and its first tile on. A lane has two filters next
// to each other at two positions of each tile.
template <class P, bool LAST, class Y>
__device__ __forceinline__ void finish(const float (&sum)[P::each][P::tiles][4], u32 group, u32 tile,
                                       const Corner& corner, const Behind<Y>& behind, const Extents& e) {
    const u32 lane = threadIdx.x % 32;
    const u64 plane = (u64)e.out_height * e.out_width;
#pragma unroll
    for (u32 n = 0; n < P::tiles; ++n) {
#pragma unroll
        for (u32 h = 0; h < 2; ++h) {
            const u32 q = lane % 4 * 2 + h;
            const u32 y = corner.top + P::y(tile + n) + q / P::broad;
            const u32 column = corner.left + P::x(tile + n) + q % P::broad;
            if (y >= e.out_height || column >= e.out_width) continue;
            const u64 pixel = (u64)y * e.out_width + column;
#pragma unroll
            for (u32 g = 0; g < P::each; ++g) {
                const u32 filter = (group + g) * 16 + lane / 4 * 2;
                if (filter >= e.filters) continue;
                const bool both = filter + 1 < e.filters;
                const u64 to = LAST ? (corner.image * plane + pixel) * e.filters + filter
                                    : (corner.image * e.filters + filter) * plane + pixel;
                const u64 second = to + (LAST ? 1 : plane);
                const bool pair = LAST && e.filters % 2 == 0;
                float v[2] = {sum[g][n][h], sum[g][n][2 + h]};
                if (behind.bias != nullptr) {
                    v[0] += get(behind.bias + filter);
                    if (both) v[1] += get(behind.bias + filter + 1);
                }
                if (behind.added != nullptr) {
                    v[0] += get(behind.added + to);
                    if (both) v[1] += get(behind.added + second);
                }
                if (behind.relu) {
                    v[0] = v[0] <= 0.0f ? 0.0f : v[0];
                    v[1] = v[1] <= 0.0f ? 0.0f : v[1];
                }
                if (pair) {
                    if constexpr (sizeof(Y) == 4) {
                        *(float2*)(behind.y + to) = make_float2(v[0], v[1]);
                    } else {
                        *(u32*)(behind.y + to) = narrow(v[0], v[1]);
                    }
                } else {
                    put(behind.y + to, v[0]);
                    if (both) put(behind.y + second, v[1]);
                }
            }
        }
    }
}
