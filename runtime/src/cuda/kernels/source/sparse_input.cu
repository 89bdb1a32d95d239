// Convolutions that leave out the products with zeros of the input (feature-map sparsity as in cuSNN,
// PACT 2022). A warp has a tile of outputs in 32 * EACH filters in its registers and walks over
// channels: it lists the inputs of a channel that are not zero, by ballots, and adds each to the
// outputs that it reaches, whose registers a switch over its position knows. A channel with so many
// of them that the switch costs more than it saves is multiplied whole; each warp decides for itself.
#include "planes.cuh"

struct Extents : Convolution {
    // Quads of channels of a block, and tiles of an image.
    u32 quads, tiles;
    // Ends with a ReLU.
    u32 relu;
    u32 unused;
    u64 elements;
    Divisor tiles_across, filter_blocks;
};

constexpr u32 WARPS = THREADS / 32;
// Channels that a warp lists at once.
constexpr u32 QUAD = 4;
// A window, and the inputs of a tile of TH by TW outputs; rows and columns without any tap are left out.
template <u32 KY, u32 KX, u32 SY, u32 SX, u32 DY, u32 DX, u32 TH, u32 TW>
struct Window {
    static constexpr u32 ky = KY, kx = KX, taps = KY * KX, down = TH, across = TW, outputs = TH * TW;
    static constexpr u32 sy = SY, sx = SX, dy = DY, dx = DX;
    static constexpr u32 step_y = KY == 1 ? SY : 1, step_x = KX == 1 ? SX : 1;
    static constexpr u32 stride_y = KY == 1 ? 1 : SY, stride_x = KX == 1 ? 1 : SX;
    static constexpr u32 rows = (TH - 1) * stride_y + (KY - 1) * DY + 1;
    static constexpr u32 columns = (TW - 1) * stride_x + (KX - 1) * DX + 1;
    static constexpr u32 positions = rows * columns;
    static constexpr u32 words = (positions + 31) / 32;
    // Sums of a thread that go through shared memory at once: whole rows of tiles.
    static constexpr u32 round = outputs % 7 == 0 ? 14 : 16;
};

// What is computed from a number behind this is computed there, not once in front of the loop, where
// it would take registers from the sums.
__device__ __forceinline__ void fresh(u32& n) { asm volatile("" : "+r"(n)); }

template <class W, u32 EACH>
struct Thread {
    // Weights of the next channel are asked for before this one's inputs are added, if there is room.
    static constexpr bool AHEAD = W::taps * EACH <= 18;
    float weight[W::taps][EACH];
    float next[AHEAD ? W::taps : 1][EACH];
    float sum[W::outputs][EACH];

    // The products of the input at position P.
    template <u32 P>
    __device__ __forceinline__ void add(float v) {
        if constexpr (P < W::positions) {
            constexpr u32 row = P / W::columns, column = P % W::columns;
#pragma unroll
            for (u32 ky = 0; ky < W::ky; ky++) {
                if (row < ky * W::dy || (row - ky * W::dy) % W::stride_y != 0) continue;
                const u32 y = (row - ky * W::dy) / W::stride_y;
                if (y >= W::down) continue;
#pragma unroll
                for (u32 kx = 0; kx < W::kx; kx++) {
                    if (column < kx * W::dx || (column - kx * W::dx) % W::stride_x != 0) continue;
                    const u32 x = (column - kx * W::dx) / W::stride_x;
                    if (x >= W::across) continue;
#pragma unroll
                    for (u32 e = 0; e < EACH; e++) {
                        sum[y * W::across + x][e] += v * weight[ky * W::kx + kx][e];
                    }
                }
            }
        }
    }

    // Those of the inputs of which a bit is set, which are all that are not zero; `next` is read ahead.
#define ONE(n, part)                                                                                       \
    if constexpr (n < W::positions) {                                                                      \
        if (bits[(n) / 32] >> (n) % 32 & 1) add<n>(now.part);                                              \
    }
#define FOUR(n)                                                                                            \
    if constexpr (n < W::positions) {                                                                      \
        const float4 now = next;                                                                           \
        if constexpr (n + 4 < W::positions) next = *(const float4*)(values + n + 4);                       \
        ONE(n, x) ONE(n + 1, y) ONE(n + 2, z) ONE(n + 3, w)                                                \
    }
#define MANY(n) FOUR(n) FOUR(n + 4) FOUR(n + 8) FOUR(n + 12) FOUR(n + 16) FOUR(n + 20) FOUR(n + 24) FOUR(n + 28)
    __device__ __forceinline__ void add_all(const float* values, const u32 (&bits)[W::words]) {
        float4 next = *(const float4*)values;
        MANY(0) MANY(32) MANY(64)
    }

    // The weights of a channel, [taps][filters] of them, from this lane's first filter on; so many are
    // left from there.
    template <u32 ROWS>
    static __device__ __forceinline__ void fetch(
        float (&to)[ROWS][EACH], const float* __restrict__ from, u32 left, u32 filters) {
        fresh(filters);
#pragma unroll
        for (u32 tap = 0; tap < ROWS; tap++) {
#pragma unroll
            for (u32 e = 0; e < EACH; e++) to[tap][e] = 32 * e < left ? from[32 * e] : 0.0f;
            from += filters;
        }
    }
    // Those of the first channel are on their way before it is known which inputs they are for.
    __device__ __forceinline__ void begin(const float* __restrict__ from, u32 left, u32 filters) {
        if constexpr (AHEAD) fetch(next, from, left, filters);
    }
    // The weights of a channel; those of the one behind it set out, if there is one.
    __device__ __forceinline__ void advance(const float* __restrict__ from, u32 left, u32 filters, bool more) {
        if constexpr (AHEAD) {
#pragma unroll
            for (u32 tap = 0; tap < W::taps; tap++) {
#pragma unroll
                for (u32 e = 0; e < EACH; e++) weight[tap][e] = next[tap][e];
            }
            if (more) fetch(next, from + W::taps * filters, left, filters);
        } else {
            fetch(weight, from, left, filters);
        }
    }
};

// A block: TILES tiles of the outputs of an image (blockIdx.x, blockIdx.z) in 32 * EACH filters from
// some of the channels (blockIdx.y), which its warps of a tile deal among them.
template <class W, u32 EACH, u32 TILES, u32 BLOCKS, bool LAST>
__device__ __forceinline__ void sparse_input_conv(
    const float* __restrict__ x, const float* __restrict__ weights, const float* __restrict__ bias,
    const float* __restrict__ added, float* __restrict__ y, float* __restrict__ parts, const Extents& e) {
    constexpr u32 SHARE = WARPS / TILES, COUNT = W::outputs * EACH, ROUND = W::round;
    __shared__ __align__(16) float values[WARPS][QUAD][32 * W::words];
    __shared__ float exchanged[WARPS][ROUND][33];
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    Thread<W, EACH> mine;
#pragma unroll
    for (u32 i = 0; i < W::outputs; i++) {
#pragma unroll
        for (u32 f = 0; f < EACH; f++) mine.sum[i][f] = 0.0f;
    }

    const u32 tile = blockIdx.x * TILES + warp / SHARE;
    if (tile < e.tiles) {
        for (u32 n = warp % SHARE; n < e.quads; n += SHARE) {
            u32 split = blockIdx.y;
            fresh(split);
            const u32 filter = e.filter_blocks.take(split) * 32 * EACH;
            const u32 first = (split * e.quads + n) * QUAD;
            if (first >= e.channels) break;
            const u32 own = filter + lane, own_left = own < e.filters ? e.filters - own : 0;
            const float* from = weights + (u64)first * W::taps * e.filters + own;
            mine.begin(from, own_left, e.filters);
            // Where the inputs of this lane lie in a channel; around the image there are none.
            constexpr u32 NONE = 0xffffffffu;
            u32 place[W::words];
            u32 down = tile, near = lane, images = blockIdx.z;
            fresh(down);
            fresh(near);
            fresh(images);
            const float* image = x + images * ((u64)e.height * e.width * e.channels);
            const u32 left = e.tiles_across.take(down) * W::across * W::sx, top = down * W::down * W::sy;
#pragma unroll
            for (u32 j = 0; j < W::words; j++) {
                const u32 p = near + 32 * j;
                const u32 row = (u32)((i32)(top + p / W::columns * W::step_y) - e.top);
                const u32 column = (u32)((i32)(left + p % W::columns * W::step_x) - e.left);
                const bool inside = p < W::positions && row < e.height && column < e.width;
                place[j] = inside ? (row * e.width + column) * (LAST ? e.channels : 1) : NONE;
            }
            float v[W::words][QUAD];
#pragma unroll
            for (u32 j = 0; j < W::words; j++) {
#pragma unroll
                for (u32 c = 0; c < QUAD; c++) v[j][c] = 0.0f;
                if (place[j] == NONE) continue;
                if (LAST && e.channels % 4 == 0) {
                    const float4 four = *(const float4*)(image + place[j] + first);
                    v[j][0] = four.x;
                    v[j][1] = four.y;
                    v[j][2] = four.z;
                    v[j][3] = four.w;
                } else {
#pragma unroll
                    for (u32 c = 0; c < QUAD; c++) {
                        if (first + c >= e.channels) break;
                        v[j][c] = image[LAST ? place[j] + first + c : (first + c) * (e.height * e.width) + place[j]];
                    }
                }
            }
#pragma unroll
            for (u32 j = 0; j < W::words; j++) {
#pragma unroll
                for (u32 c = 0; c < QUAD; c++) values[warp][c][lane + 32 * j] = v[j][c];
            }
            __syncwarp();
#pragma unroll 1
            for (u32 c = 0; c < QUAD; c++) {
                u32 bits[W::words], any = 0;
#pragma unroll
                for (u32 j = 0; j < W::words; j++) {
                    bits[j] = __ballot_sync(0xffffffffu, values[warp][c][lane + 32 * j] != 0.0f);
                    any |= bits[j];
                }
                // With weights ahead a channel of zeros costs no wait.
                if (any == 0 && !Thread<W, EACH>::AHEAD) continue;
                mine.advance(from + c * (W::taps * e.filters), own_left, e.filters, c + 1 < QUAD && first + c + 1 < e.channels);
                if (any == 0) continue;
                mine.add_all(values[warp][c], bits);
            }
            __syncwarp();
        }
    }

    u32 split = blockIdx.y;
    fresh(split);
    const u32 filter = e.filter_blocks.take(split) * 32 * EACH;
    const u64 out_plane = (u64)e.out_height * e.out_width;
    // The sums of the warps of a tile are added up in their order, a few at a time.
#pragma unroll
    for (u32 round = 0; round < COUNT; round += ROUND) {
        __syncthreads();
#pragma unroll
        for (u32 i = 0; i < ROUND; i++) {
            if (round + i < COUNT) {
                const u32 k = round + i;
                exchanged[warp][i][lane] =
                    LAST ? mine.sum[k / EACH][k % EACH] : mine.sum[k % W::outputs][k / W::outputs];
            }
        }
        __syncthreads();
#pragma unroll 1
        for (u32 n = threadIdx.x; n < TILES * ROUND * 32; n += THREADS) {
            // Neighbours in memory to neighbouring threads.
            const u32 i = LAST ? n / 32 % ROUND : n % ROUND, l = LAST ? n % 32 : n / ROUND % 32;
            const u32 nth = n / (32 * ROUND), k = round + i;
            const u32 output = LAST ? k / EACH : k % W::outputs;
            const u32 f = filter + (LAST ? k % EACH : k / W::outputs) * 32 + l;
            u32 at = blockIdx.x * TILES + nth;
            if (k >= COUNT || at >= e.tiles || f >= e.filters) continue;
            const u32 across = e.tiles_across.take(at) * W::across;
            const u32 row = at * W::down + output / W::across, column = across + output % W::across;
            if (row >= e.out_height || column >= e.out_width) continue;
            float total = exchanged[nth * SHARE][i][l];
#pragma unroll
            for (u32 s = 1; s < SHARE; s++) total += exchanged[nth * SHARE + s][i][l];
            const u64 pixel = (u64)row * e.out_width + column;
            const u64 to = blockIdx.z * out_plane * e.filters +
                (LAST ? pixel * e.filters + f : f * out_plane + pixel);
            if (parts != nullptr) {
                parts[split * e.elements + to] = total;
                continue;
            }
            if (bias != nullptr) total += bias[f];
            if (added != nullptr) total += added[to];
            y[to] = e.relu ? larger(total, 0.0f) : total;
        }
    }
}

// y is the sum of so many parts of as many elements, in their order, with the bias and what else is
// added; filters of y are `plane` elements apart, V elements in a row are of one thread.
template <u32 V>
__device__ __forceinline__ void sparse_input_sum(
    const float* __restrict__ parts, const float* __restrict__ bias, const float* __restrict__ added,
    float* __restrict__ y, u32 count, u32 elements, Divisor plane, Divisor filters, u32 relu) {
    const u32 i = (blockIdx.x * THREADS + threadIdx.x) * V;
    if (i >= elements) return;
    Vec<V> total = load<V>(parts + i);
#pragma unroll 4
    for (u32 s = 1; s < count; s++) {
        const Vec<V> part = load<V>(parts + (u64)s * elements + i);
#pragma unroll
        for (u32 v = 0; v < V; v++) total.v[v] += part.v[v];
    }
    if (bias != nullptr) {
#pragma unroll
        for (u32 v = 0; v < V; v++) {
            u32 f = plane.quotient(i + v);
            total.v[v] += bias[filters.take(f)];
        }
    }
    if (added != nullptr) {
        const Vec<V> r = load<V>(added + i);
#pragma unroll
        for (u32 v = 0; v < V; v++) total.v[v] += r.v[v];
    }
    if (relu) {
#pragma unroll
        for (u32 v = 0; v < V; v++) total.v[v] = larger(total.v[v], 0.0f);
    }
    store<V>(y + i, total);
}

#define SPARSE_INPUT_CONV(NAME, KY, KX, SY, SX, DY, DX, TH, TW, EACH, TILES, BLOCKS, LAST)                 \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) NAME(                                    \
        const float* x, const float* weights, const float* bias, const float* added, float* y,             \
        float* parts, Extents e) {                                                                         \
        using W = Window<KY, KX, SY, SX, DY, DX, TH, TW>;                                                  \
        sparse_input_conv<W, EACH, TILES, BLOCKS, LAST>(x, weights, bias, added, y, parts, e);             \
    }
#define SPARSE_INPUT_SUM(NAME, V)                                                                          \
    extern "C" __global__ void __launch_bounds__(THREADS) NAME(                                            \
        const float* parts, const float* bias, const float* added, float* y, u32 count, u32 elements,      \
        Divisor plane, Divisor filters, u32 relu) {                                                        \
        sparse_input_sum<V>(parts, bias, added, y, count, elements, plane, filters, relu);                 \
    }
