// Convolutions and products with weights whose blocks of zeros are left out
// (vdnn_ir::sparse::blocks has the format), by matrix instructions of warps. A warp walks over the lists
// of its filters, whose weights come from memory in the order of its lanes. Channels that no list has are
// not read.
#include "tiles.cuh"

// Channels that are brought together are numbered below this.
constexpr u32 STAGES_MOST = 2048;

#ifndef VDNN_EMULATED
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

template <class P, bool LAST, bool WHOLE, class Y>
__device__ __forceinline__ void sparse_blocks(const typename P::Element* __restrict__ x,
                                              const i32* __restrict__ starts, const i32* __restrict__ numbers,
                                              const uint4* __restrict__ values, const Behind<Y>& behind,
                                              const Extents& e) {
    using T = typename P::Element;
    __shared__ u8 needed[STAGES_MOST];
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 warp_row = warp / P::columns, warp_column = warp % P::columns;
    const Corner corner = corner_of<P>(e);
    const u32 first = corner.first, stages = (e.channels + P::channels - 1) / P::channels;
    // Blocks of weights of the channels at hand, and 16 bytes of a block's values for a lane.
    constexpr u32 items = P::channels / 16 * P::taps, quads = P::is_float ? 2 : 1;

    // Which channels are wanted at all.
    for (u32 i = threadIdx.x; i < stages; i += THREADS) needed[i] = 0;
    __syncthreads();
    const u32 behind_last = first + P::rows * P::each < e.groups ? first + P::rows * P::each : e.groups;
    for (i32 i = starts[first] + (i32)threadIdx.x; i < starts[behind_last]; i += THREADS) {
        needed[(u32)numbers[i] / items] = 1;
    }
    __syncthreads();
    auto next = [&](u32 stage) {
        while (stage < stages && needed[stage] == 0) ++stage;
        return stage;
    };

    const Inputs<P, LAST, WHOLE> inputs(x, corner, e);

    // Where a lane's rows of 16 bytes lie: the first two of eight outputs, of two tiles.
    constexpr u32 reads = (P::tiles + 1) / 2;
    const u32 tile = warp_column * P::tiles;
    u32 row[reads];
#pragma unroll
    for (u32 n = 0; n < reads; ++n) {
        const u32 t = 2 * n + lane / 16 < P::tiles ? tile + 2 * n + lane / 16 : tile + 2 * n;
        const u32 y = P::y(t) + lane % 8 / P::broad, column = P::x(t) + lane % 8 % P::broad;
        row[n] = inputs.base + P::place(y, column) + lane / 8 % 2 * 16;
    }

    // A lane's part of the next block of each of the warp's lists.
    i32 at[P::each] = {}, end[P::each] = {};
    u32 number[P::each] = {};
    uint4 ahead[P::each][quads] = {};
    auto fetch = [&](u32 g) {
        number[g] = ~0u;
        if (at[g] < end[g]) {
            number[g] = (u32)numbers[at[g]];
            const uint4* from = values + (u64)(u32)at[g] * (32 * quads) + lane;
#pragma unroll
            for (u32 k = 0; k < quads; ++k) ahead[g][k] = from[32 * k];
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
            inputs.bring(s, bringing);
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
            inputs.bring(slot == 0 ? P::slots - 1 : slot - 1, bringing);
            bringing = next(bringing + 1);
        }
        copies_commit();
        const u32 lowest = stage * items, slot_at = slot * P::slot;
#pragma unroll
        for (u32 g = 0; g < P::each; ++g) {
            while (number[g] < lowest + items) {
                const u32 item = number[g] - lowest;
                const u32 offset = slot_at + P::offset(item / P::taps * 16, item % P::taps);
                uint4 a[quads];
#pragma unroll
                for (u32 k = 0; k < quads; ++k) a[k] = ahead[g][k];
                ++at[g];
                fetch(g);
#pragma unroll
                for (u32 k = 0; k < quads; ++k) {
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

    finish<P, LAST>(sum, first + warp_row * P::each, tile, corner, behind, e);
}

#define SPARSE_BLOCKS(NAME, T, Y, KY, KX, SY, SX, DY, DX, HIGH, LINE, ROWS, EACH, TILES, CHANNELS, SLOTS,       \
                      LAST, WHOLE)                                                                              \
    extern "C" __global__ void __launch_bounds__(THREADS, 2)                                                    \
        NAME(const T* x, const i32* starts, const i32* numbers, const uint4* values, const Y* bias,             \
             const Y* added, Y* y, u32 relu, Extents e) {                                                       \
        using P = Part<T, KY, KX, SY, SX, DY, DX, HIGH, LINE, ROWS, EACH, TILES, CHANNELS, SLOTS>;              \
        sparse_blocks<P, LAST, WHOLE>(x, starts, numbers, values, Behind<Y>{bias, added, y, relu != 0}, e);     \
    }
