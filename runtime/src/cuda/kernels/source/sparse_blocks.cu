// Convolutions and products with weights whose blocks of zeros are left out
// (vdnn_ir::sparse::blocks has the format), by matrix instructions of warps. A block of threads has
// a tile of outputs and of filters. What the tile reads of some channels comes to shared memory once
// for all taps and filters, while what came before is multiplied; a warp walks over the lists of its
// filters, whose weights come from memory in the order of its lanes. Channels that no list has are
// not read.
#include "planes.cuh"

struct Extents : Convolution {
    // Of filters.
    u32 groups;
    Divisor tiles_across;
};

// Channels that are brought together are numbered below this.
constexpr u32 STAGES_MOST = 2048;

#ifndef VDNN_EMULATED
// Four matrices of eight rows of 16 bytes; lane i has the address of row i.
__device__ __forceinline__ void read_matrices(u32 (&r)[4], u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}
__device__ __forceinline__ void multiply_tf32(float (&d)[4], const uint4& a, u32 x, u32 y) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(x), "r"(y));
}
__device__ __forceinline__ void multiply_bf16(float (&d)[4], const uint4& a, u32 x, u32 y) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(x), "r"(y));
}
// The nearest tf32.
__device__ __forceinline__ u32 tf32(u32 x) {
    u32 r;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(__uint_as_float(x)));
    return r;
}
#endif

template <class T>
__device__ __forceinline__ void multiply(float (&d)[4], const uint4& a, u32 x, u32 y) {
    if constexpr (sizeof(T) == 4) {
        multiply_tf32(d, a, tf32(x), tf32(y));
    } else {
        multiply_bf16(d, a, x, y);
    }
}

// What a block has: TILES tiles of outputs for each of some warps, of ROWS * EACH groups of 16 filters,
// and of the input so many CHANNELS at a time. A tile is eight outputs, HIGH below each other; LINE of
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
    // Blocks of weights of the channels at hand, and 16 bytes of a block's values for a lane.
    static constexpr u32 items = CHANNELS / 16 * taps, quads = is_float ? 2 : 1;
    // Where a block's inputs lie behind those of the first.
    static __device__ __forceinline__ u32 offset(u32 item) {
        const u32 tap = item % taps;
        return item / taps * (16 * (u32)sizeof(T)) + (tap / KX * DY * apart + tap % KX * DX) * pitch;
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

template <class P, bool LAST, bool WHOLE, class Y>
__device__ __forceinline__ void sparse_blocks(const typename P::Element* __restrict__ x,
                                              const i32* __restrict__ starts, const i32* __restrict__ numbers,
                                              const uint4* __restrict__ values, const Behind<Y>& behind,
                                              const Extents& e) {
    using T = typename P::Element;
    __shared__ u8 needed[STAGES_MOST];
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 warp_row = warp / P::columns, warp_column = warp % P::columns;
    u32 rest = blockIdx.x;
    const u32 left = e.tiles_across.take(rest) * P::across, top = rest * P::down;
    const u64 image = blockIdx.z;
    x += image * e.channels * e.height * e.width;
    const u32 first = blockIdx.y * (P::rows * P::each), stages = (e.channels + P::channels - 1) / P::channels;

    // Which channels are wanted at all.
    for (u32 i = threadIdx.x; i < stages; i += THREADS) needed[i] = 0;
    __syncthreads();
    const u32 behind_last = first + P::rows * P::each < e.groups ? first + P::rows * P::each : e.groups;
    for (i32 i = starts[first] + (i32)threadIdx.x; i < starts[behind_last]; i += THREADS) {
        needed[(u32)numbers[i] / P::items] = 1;
    }
    __syncthreads();
    auto next = [&](u32 stage) {
        while (stage < stages && needed[stage] == 0) ++stage;
        return stage;
    };

    // Where in an image's plane the positions of the tile lie; outside of it they are zeros.
    i32* places = (i32*)(dynamic_shared + P::slots * P::slot);
    const i32 corner_y = (i32)(top * P::stride_y) - e.top, corner_x = (i32)(left * P::stride_x) - e.left;
    for (u32 i = threadIdx.x; i < P::positions; i += THREADS) {
        const i32 y = corner_y + (i32)(i / P::wide * P::step_y);
        const i32 column = corner_x + (i32)(i % P::wide * P::step_x);
        const bool inside = (u32)y < e.height && (u32)column < e.width;
        places[i] = inside ? y * (i32)e.width + column : -1;
    }
    __syncthreads();
    const u32 base = address(dynamic_shared);
    auto line = [](u32 position) { return position / P::wide * P::apart + position % P::wide; };
    auto bring = [&](u32 slot, u32 stage) {
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
    };

    // Where a lane's rows of 16 bytes lie: the first two of eight outputs, of two tiles.
    constexpr u32 reads = (P::tiles + 1) / 2;
    const u32 tile = warp_column * P::tiles;
    u32 row[reads];
#pragma unroll
    for (u32 n = 0; n < reads; ++n) {
        const u32 t = 2 * n + lane / 16 < P::tiles ? tile + 2 * n + lane / 16 : tile + 2 * n;
        const u32 y = P::y(t) + lane % 8 / P::broad, column = P::x(t) + lane % 8 % P::broad;
        row[n] = base + P::place(y, column) + lane / 8 % 2 * 16;
    }

    // A lane's part of the next block of each of the warp's lists.
    i32 at[P::each] = {}, end[P::each] = {};
    u32 number[P::each] = {};
    uint4 ahead[P::each][P::quads] = {};
    auto fetch = [&](u32 g) {
        number[g] = ~0u;
        if (at[g] < end[g]) {
            number[g] = (u32)numbers[at[g]];
            const uint4* from = values + (u64)(u32)at[g] * (32 * P::quads) + lane;
#pragma unroll
            for (u32 k = 0; k < P::quads; ++k) ahead[g][k] = from[32 * k];
        }
    };
#pragma unroll
    for (u32 g = 0; g < P::each; ++g) {
        const u32 group = first + warp_row * P::each + g;
        at[g] = group < e.groups ? starts[group] : 0;
        end[g] = group < e.groups ? starts[group + 1] : 0;
        fetch(g);
    }
    float sum[P::each][P::tiles][4] = {};

    u32 bringing = next(0), stage = bringing;
#pragma unroll
    for (u32 s = 0; s + 1 < P::slots; ++s) {
        if (bringing < stages) {
            bring(s, bringing);
            bringing = next(bringing + 1);
        }
        copies_commit();
    }
    u32 slot = 0;
    while (stage < stages) {
        copies_wait<(int)P::slots - 2>();
        __syncthreads();
        // All have read what was in the slot before this one.
        if (bringing < stages) {
            bring(slot == 0 ? P::slots - 1 : slot - 1, bringing);
            bringing = next(bringing + 1);
        }
        copies_commit();
        const u32 lowest = stage * P::items, slot_at = slot * P::slot;
#pragma unroll
        for (u32 g = 0; g < P::each; ++g) {
            while (number[g] < lowest + P::items) {
                const u32 offset = slot_at + P::offset(number[g] - lowest);
                uint4 a[P::quads];
#pragma unroll
                for (u32 k = 0; k < P::quads; ++k) a[k] = ahead[g][k];
                ++at[g];
                fetch(g);
#pragma unroll
                for (u32 k = 0; k < P::quads; ++k) {
                    if constexpr (P::is_float) {
                        a[k] = make_uint4(tf32(a[k].x), tf32(a[k].y), tf32(a[k].z), tf32(a[k].w));
                    }
#pragma unroll
                    for (u32 n = 0; n < reads; ++n) {
                        u32 b[4];
                        read_matrices(b, row[n] + offset + 32 * k);
                        multiply<T>(sum[g][2 * n], a[k], b[0], b[1]);
                        if (2 * n + 1 < P::tiles) multiply<T>(sum[g][(2 * n + 1) % P::tiles], a[k], b[2], b[3]);
                    }
                }
            }
        }
        slot = slot + 1 == P::slots ? 0 : slot + 1;
        stage = next(stage + 1);
    }

    // A lane has two filters next to each other at two positions of each tile.
    const u64 plane = (u64)e.out_height * e.out_width;
#pragma unroll
    for (u32 n = 0; n < P::tiles; ++n) {
#pragma unroll
        for (u32 h = 0; h < 2; ++h) {
            const u32 q = lane % 4 * 2 + h;
            const u32 y = top + P::y(tile + n) + q / P::broad, column = left + P::x(tile + n) + q % P::broad;
            if (y >= e.out_height || column >= e.out_width) continue;
            const u64 pixel = (u64)y * e.out_width + column;
#pragma unroll
            for (u32 g = 0; g < P::each; ++g) {
                const u32 filter = (first + warp_row * P::each + g) * 16 + lane / 4 * 2;
                if (filter >= e.filters) continue;
                const bool both = filter + 1 < e.filters;
                const u64 to = LAST ? (image * plane + pixel) * e.filters + filter
                                    : (image * e.filters + filter) * plane + pixel;
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

#define SPARSE_BLOCKS(NAME, T, Y, KY, KX, SY, SX, DY, DX, HIGH, LINE, ROWS, EACH, TILES, CHANNELS, SLOTS,       \
                      LAST, WHOLE)                                                                              \
    extern "C" __global__ void __launch_bounds__(THREADS, 2)                                                    \
        NAME(const T* x, const i32* starts, const i32* numbers, const uint4* values, const Y* bias,             \
             const Y* added, Y* y, u32 relu, Extents e) {                                                       \
        using P = Part<T, KY, KX, SY, SX, DY, DX, HIGH, LINE, ROWS, EACH, TILES, CHANNELS, SLOTS>;              \
        sparse_blocks<P, LAST, WHOLE>(x, starts, numbers, values, Behind<Y>{bias, added, y, relu != 0}, e);     \
    }
