// Convolutions with weights whose zeros are left out (vdnn_ir::sparse has the format; the direct
// sparse convolution is that of Chen, Escort, arXiv 1802.10280). A block of threads keeps what a
// tile of outputs reads of some channels in shared memory. A warp has filters, its lanes outputs of
// the tile: each weight is multiplied with all of them, so what bounds a warp is one access to
// shared memory for every 32 products. Where a weight's inputs lie is found by one lane for each of
// 32 weights at a time, and told to the others through shared memory.
#include "entries.cuh"

// A block has filters in so many `turns`.
struct Extents : Convolution {
    u32 turns, slabs, relu;
    Divisor tiles_across;
};

// A tile: ACROSS outputs next to each other, RUN for each lane; SLAB channels of what they read.
template <u32 KY, u32 KX, u32 SY, u32 SX, u32 DY, u32 DX, u32 ACROSS, u32 RUN, u32 SLAB, bool LAST>
struct Tile {
    static constexpr u32 taps = KY * KX, slab = SLAB, across = ACROSS, run = RUN;
    static constexpr u32 down = 32 * RUN / ACROSS;
    static constexpr bool last = LAST;
    // Of a window of one what strides leave out is not brought.
    static constexpr u32 step_y = KY == 1 ? SY : 1, step_x = KX == 1 ? SX : 1;
    static constexpr u32 leap_y = KY == 1 ? 1 : SY, leap_x = KX == 1 ? 1 : SX;
    static constexpr u32 stride_y = SY, stride_x = SX;
    static constexpr u32 rows = (down - 1) * leap_y + (KY - 1) * DY + 1;
    static constexpr u32 columns = (ACROSS - 1) * leap_x + (KX - 1) * DX + 1;
    static constexpr u32 positions = rows * columns;
    // From a position to the next: an odd number, so that lanes next to each other are in other banks.
    static constexpr u32 unit = LAST ? SLAB + 1 : 1;
    // Rows of lanes that lie below each other are in other banks, too.
    static constexpr bool spread = ACROSS < 32 && SX == 1 && SY == 1;
    static constexpr u32 odd = spread ? (ACROSS * unit + 32 - columns * unit % 32) % 32 : 0;
    static constexpr u32 pitch = columns * unit + odd;
    static constexpr u32 plane = LAST ? 1 : rows * pitch;
    static constexpr u32 size = LAST ? rows * pitch : SLAB * rows * pitch;

    // Where the input of a weight lies, from that of the slab's first, in bytes.
    static __device__ __forceinline__ u32 offset(u32 column) {
        const u32 channel = column / taps, tap = column % taps;
        return 4 * (channel * plane + tap / KX * DY * pitch + tap % KX * DX * unit);
    }

    // Where the inputs of a lane's first output lie, and from there those of its output `i`.
    static __device__ __forceinline__ u32 place(u32 lane) {
        return 4 * (lane / ACROSS * leap_y * pitch + lane % ACROSS * leap_x * unit);
    }
    static constexpr __device__ __forceinline__ u32 further(u32 i) {
        return 4 * (32 * i / ACROSS * leap_y * pitch + 32 * i % ACROSS * leap_x * unit);
    }
};

// Starts to bring the channels from `first` on of the tile whose first input is at (top, left),
// zeros around it.
template <class T, u32 WARPS>
__device__ __forceinline__ void bring(
    const float* __restrict__ x, const Extents& e, u32 first, i32 top, i32 left, float* __restrict__ tile) {
    constexpr u32 threads = 32 * WARPS;
    if (T::last) {
        constexpr u32 side = T::slab < threads ? T::slab : threads;
        const u32 mine = threadIdx.x % side;
        for (u32 at = threadIdx.x / side; at < T::positions; at += threads / side) {
            const u32 row = at / T::columns, column = at % T::columns;
            const u32 y = (u32)(top + (i32)(row * T::step_y)), x_at = (u32)(left + (i32)(column * T::step_x));
            const bool inside = y < e.height && x_at < e.width;
            const float* from = x + (u64)((inside ? y * e.width + x_at : 0) * e.channels);
#pragma unroll
            for (u32 c = mine; c < T::slab; c += side) {
                const bool in = inside && first + c < e.channels;
                copy4(tile + row * T::pitch + column * T::unit + c, from + (in ? first + c : 0), in);
            }
        }
    } else {
        constexpr u32 whole = (T::positions + 31) / 32 * 32, side = whole < threads ? whole : threads;
        constexpr u32 groups = threads / side;
        const u32 group = threadIdx.x / side, size = e.height * e.width;
        if (group >= groups) return;
        for (u32 at = threadIdx.x % side; at < T::positions; at += side) {
            const u32 row = at / T::columns, column = at % T::columns;
            const u32 y = (u32)(top + (i32)(row * T::step_y)), x_at = (u32)(left + (i32)(column * T::step_x));
            const bool inside = y < e.height && x_at < e.width;
            const float* from = x + (u64)((first + group) * size) + (inside ? y * e.width + x_at : 0);
            float* to = tile + group * T::plane + row * T::pitch + column;
#pragma unroll 4
            for (u32 c = group; c < T::slab; c += groups) {
                const bool in = inside && first + c < e.channels;
                copy4(to, in ? from : x, in);
                from += groups * size;
                to += groups * T::plane;
            }
        }
    }
}

template <class T>
__device__ __forceinline__ void add(float (&sum)[T::run], const u8* inputs, u32 offset, u32 value) {
    const u8* from = inputs + offset;
#pragma unroll
    for (u32 i = 0; i < T::run; ++i) sum[i] += __uint_as_float(value) * *(const float*)(from + T::further(i));
}

// A block: a tile of the outputs of an image (blockIdx.x, blockIdx.z) in `turns` times WARPS * EACH filters
// (blockIdx.y), each warp EACH of them at a time; STAGES slabs in shared memory.
template <class T, u32 WARPS, u32 EACH, u32 STAGES>
__device__ __forceinline__ void sparse_conv(
    const float* __restrict__ x, const i32* __restrict__ starts, const i32* __restrict__ entries,
    const float* __restrict__ bias, float* __restrict__ y, const float* __restrict__ added, const Extents& e) {
    float* const tiles = (float*)dynamic_shared;
    uint2* const heard = (uint2*)(dynamic_shared + (STAGES * T::size + 3) / 4 * 16) + threadIdx.x / 32 * 32;
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u32 down = blockIdx.x;
    const u32 left = e.tiles_across.take(down) * T::across, top = down * T::down;
    const i32 from_y = (i32)(top * T::stride_y) - e.top, from_x = (i32)(left * T::stride_x) - e.left;
    x += (u64)blockIdx.z * e.channels * e.height * e.width;
    const u64 image = (u64)blockIdx.z * e.filters * e.out_height * e.out_width;
    y += image;
    if (added != nullptr) added += image;
    const u32 loads = e.slabs == 1 ? 1 : e.turns * e.slabs;
    bring<T, WARPS>(x, e, 0, from_y, from_x, tiles);
    copies_commit();
    u32 slab = 0, filter = (blockIdx.y * e.turns * WARPS + warp) * EACH;
    float sum[EACH][T::run];
    i32 at[EACH], end[EACH];
    for (u32 step = 0; step < e.turns * e.slabs; ++step) {
        const u32 next = slab + 1 == e.slabs ? 0 : slab + 1;
        if (slab == 0) {
#pragma unroll
            for (u32 f = 0; f < EACH; ++f) {
                const bool real = filter + f < e.filters;
                at[f] = real ? starts[filter + f] : 0;
                end[f] = real ? starts[filter + f + 1] : 0;
                const float b = real && bias != nullptr ? bias[filter + f] : 0.0f;
#pragma unroll
                for (u32 i = 0; i < T::run; ++i) sum[f][i] = b;
            }
        }
        if (step < loads) {
            if (STAGES == 2 && step + 1 < loads) {
                bring<T, WARPS>(x, e, next * T::slab, from_y, from_x, tiles + (step + 1) % STAGES * T::size);
                copies_commit();
                copies_wait<STAGES - 1>();
            } else {
                copies_wait<0>();
            }
            __syncthreads();
        }
        const u8* inputs = (const u8*)(tiles + (loads == 1 ? 0 : step % STAGES * T::size)) + T::place(lane);
        const i32 from = (i32)(slab * T::slab * T::taps), limit = from + (i32)(T::slab * T::taps);
        // 32 entries, each lane one, a filter or 32 entries ahead of what is multiplied.
        Entry mine = entry(entries, at[0] + (i32)lane, end[0]);
#pragma unroll
        for (u32 f = 0; f < EACH; ++f) {
            bool more;
            do {
                // Columns ascend, so those of this slab come first.
                const bool now = mine.column < limit;
                const u32 count = __popc(__ballot_sync(0xffffffffu, now));
                if (now) heard[lane] = make_uint2(T::offset((u32)(mine.column - from)), (u32)mine.value);
                at[f] += (i32)count;
                more = count == 32;
                if (more) {
                    mine = entry(entries, at[f] + (i32)lane, end[f]);
                } else if (f + 1 < EACH) {
                    mine = entry(entries, at[f + 1 < EACH ? f + 1 : 0] + (i32)lane, end[f + 1 < EACH ? f + 1 : 0]);
                }
                __syncwarp();
                u32 j = 0;
                // Each filter has this loop, and all must stay in the cache of instructions.
#pragma unroll 1
                for (; j + 4 <= count; j += 4) {
                    const uint4 a = *(const uint4*)(heard + j), b = *(const uint4*)(heard + j + 2);
                    add<T>(sum[f], inputs, a.x, a.y);
                    add<T>(sum[f], inputs, a.z, a.w);
                    add<T>(sum[f], inputs, b.x, b.y);
                    add<T>(sum[f], inputs, b.z, b.w);
                }
#pragma unroll 1
                for (; j < count; ++j) add<T>(sum[f], inputs, heard[j].x, heard[j].y);
                __syncwarp();
            } while (more);
        }
        if (step + 1 < loads) {
            __syncthreads();
            if (STAGES == 1) {
                bring<T, WARPS>(x, e, next * T::slab, from_y, from_x, tiles);
                copies_commit();
            }
        }
        slab = next;
        if (slab != 0) continue;
        u32 me = lane;
        // Where results go is found here, not kept in registers through all that is above.
        asm volatile("" : "+r"(me));
#pragma unroll
        for (u32 i = 0; i < T::run; ++i) {
            const u32 n = me + 32 * i, row = top + n / T::across, column = left + n % T::across;
            if (row >= e.out_height || column >= e.out_width) continue;
            const u64 pixel = (u64)row * e.out_width + column;
            if (T::last && EACH % 4 == 0 && e.filters % 4 == 0) {
#pragma unroll
                for (u32 f = 0; f + 3 < EACH; f += 4) {
                    if (filter + f >= e.filters) break;
                    const u64 to = pixel * e.filters + filter + f;
                    float4 r = make_float4(sum[f][i], sum[f + 1][i], sum[f + 2][i], sum[f + 3][i]);
                    if (added != nullptr) {
                        const float4 a = *(const float4*)(added + to);
                        r = make_float4(r.x + a.x, r.y + a.y, r.z + a.z, r.w + a.w);
                    }
                    if (e.relu) r = make_float4(positive(r.x), positive(r.y), positive(r.z), positive(r.w));
                    *(float4*)(y + to) = r;
                }
            } else {
#pragma unroll
                for (u32 f = 0; f < EACH; ++f) {
                    if (filter + f >= e.filters) break;
                    const u64 plane = (u64)e.out_height * e.out_width;
                    const u64 to = T::last ? pixel * e.filters + filter + f : (filter + f) * plane + pixel;
                    const float r = sum[f][i] + (added != nullptr ? added[to] : 0.0f);
                    y[to] = e.relu ? positive(r) : r;
                }
            }
        }
        filter += WARPS * EACH;
    }
}

// Of the largest blocks one at a time is enough: for two of them sums would leave registers.
#define SPARSE_CONV(NAME, KY, KX, SY, SX, DY, DX, ACROSS, RUN, SLAB, WARPS, EACH, STAGES, LAST)            \
    extern "C" __global__ void __launch_bounds__(32 * WARPS, WARPS == 16 && RUN * EACH > 16) NAME(        \
        const float* x, const i32* starts, const i32* entries, const float* bias, float* y,               \
        const float* added, Extents e) {                                                                   \
        using T = Tile<KY, KX, SY, SX, DY, DX, ACROSS, RUN, SLAB, LAST>;                                   \
        sparse_conv<T, WARPS, EACH, STAGES>(x, starts, entries, bias, y, added, e);                        \
    }
