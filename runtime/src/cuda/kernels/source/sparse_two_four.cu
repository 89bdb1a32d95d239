// Convolutions and products with weights of which two of four are zero (vdnn_ir::sparse::two_four has
// the format), by the sparse matrix instructions of warps: two of four products are not computed. A warp
// walks over the pieces of its filters, slab by slab and tap by tap; they come from memory in the order
// of its lanes.
#include "tiles.cuh"

#ifndef VDNN_EMULATED
// Without this word, which PTX 8.5 brought, newer machines take a slower way.
#if __CUDACC_VER_MAJOR__ > 12 || (__CUDACC_VER_MAJOR__ == 12 && __CUDACC_VER_MINOR__ >= 5)
#define ORDERED "mma.sp::ordered_metadata"
#else
#define ORDERED "mma.sp"
#endif
// Lanes 4i and 4i+1 say which of four weights are kept.
__device__ __forceinline__ void multiply_two_four(float (&d)[4], const uint4& a, const u32 (&b)[4], u32 kept) {
    asm volatile(ORDERED
                 ".sync.aligned.m16n8k32.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
                 "{%8, %9, %10, %11}, {%0, %1, %2, %3}, %12, 0x0;"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]), "r"(kept));
}
#endif

// Channels of a piece, and its extents: 16 bytes of values for each lane, then 16 words of places.
constexpr u32 PIECE = 32, PIECE_QUADS = 36, PIECE_PLACES = 128;

// Weights come DEPTH pieces of each group ahead.
template <class P, u32 DEPTH, bool LAST, bool WHOLE, class Y>
__device__ __forceinline__ void sparse_two_four(const bf16* __restrict__ x, const uint4* __restrict__ pieces,
                                                const Behind<Y>& behind, const Extents& e) {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 group = blockIdx.y * (P::rows * P::each) + warp / P::columns * P::each;
    const u32 tile = warp % P::columns * P::tiles;
    const Corner corner = corner_of<P>(e);
    const Inputs<P, LAST, WHOLE> inputs(x, corner, e);
    const u32 stages = (e.channels + P::channels - 1) / P::channels;
    const u32 columns = (e.channels + PIECE - 1) / PIECE * P::taps;

    // Where a lane's row of 16 bytes lies, of the first, second, third or last eight channels.
    u32 row[P::tiles];
#pragma unroll
    for (u32 n = 0; n < P::tiles; ++n) {
        const u32 y = P::y(tile + n) + lane % 8 / P::broad, column = P::x(tile + n) + lane % 8 % P::broad;
        row[n] = inputs.base + P::place(y, column) + lane / 8 * 16;
    }

    // A lane's part of the next pieces; where there are no filters, two of four zeros.
    const uint4* from = pieces + (u64)group * PIECE_QUADS;
    u32 fetched = 0;
    uint4 ahead[DEPTH][P::each] = {};
    u32 kept[DEPTH][P::each];
    auto fetch = [&](uint4 (&a)[P::each], u32 (&k)[P::each]) {
        if (fetched < columns) {
#pragma unroll
            for (u32 g = 0; g < P::each; ++g) {
                if (group + g < e.groups) {
                    a[g] = from[g * PIECE_QUADS + lane];
                    k[g] = ((const u32*)(from + g * PIECE_QUADS))[PIECE_PLACES + lane / 4 * 2 + lane % 2];
                }
            }
            from += (u64)e.groups * PIECE_QUADS;
            ++fetched;
        }
    };
#pragma unroll
    for (u32 d = 0; d < DEPTH; ++d) {
#pragma unroll
        for (u32 g = 0; g < P::each; ++g) kept[d][g] = 0x44444444u;
        fetch(ahead[d], kept[d]);
    }
    float sum[P::each][P::tiles][4] = {};

#pragma unroll
    for (u32 s = 0; s + 1 < P::slots; ++s) {
        if (s < stages) inputs.bring(s, s);
        copies_commit();
    }
    // The slot, tap and slab of the stage at hand, and what lies there.
    u32 stage = 0, slot = 0, offset = 0, tap_x = 0, tap_y = 0, left = 0;
    for (u32 column = 0; column < columns;) {
#pragma unroll
        for (u32 d = 0; d < DEPTH; ++d) {
            if (column == columns) break;
            if (left == 0) {
                copies_wait<(int)P::slots - 2>();
                __syncthreads();
                // All have read what was in the slot before this one.
                const u32 coming = stage + P::slots - 1;
                if (coming < stages) inputs.bring(slot == 0 ? P::slots - 1 : slot - 1, coming);
                copies_commit();
                left = P::channels / PIECE * P::taps;
                offset = slot * P::slot;
                tap_x = tap_y = 0;
                slot = slot + 1 == P::slots ? 0 : slot + 1;
                ++stage;
            }
#pragma unroll
            for (u32 n = 0; n < P::tiles; ++n) {
                u32 b[4];
                read_matrices(b, row[n] + offset);
#pragma unroll
                for (u32 g = 0; g < P::each; ++g) multiply_two_four(sum[g][n], ahead[d][g], b, kept[d][g]);
            }
            fetch(ahead[d], kept[d]);
            --left;
            ++column;
            offset += P::beside;
            if (++tap_x == P::window_x) {
                tap_x = 0;
                offset += P::below - P::window_x * P::beside;
                if (++tap_y == P::window_y) {
                    tap_y = 0;
                    offset += PIECE * (u32)sizeof(bf16) - P::window_y * P::below;
                }
            }
        }
    }
    finish<P, LAST>(sum, group, tile, corner, behind, e);
}

#define SPARSE_TWO_FOUR(NAME, Y, KY, KX, SY, SX, DY, DX, HIGH, LINE, ROWS, EACH, TILES, CHANNELS, SLOTS, DEPTH,  \
                        BLOCKS, LAST, WHOLE)                                                                    \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)                                               \
        NAME(const bf16* x, const uint4* pieces, const Y* bias, const Y* added, Y* y, u32 relu, Extents e) {    \
        using P = Part<bf16, KY, KX, SY, SX, DY, DX, HIGH, LINE, ROWS, EACH, TILES, CHANNELS, SLOTS>;           \
        sparse_two_four<P, DEPTH, LAST, WHOLE>(x, pieces, Behind<Y>{bias, added, y, relu != 0}, e);             \
    }
