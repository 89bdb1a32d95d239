// Convolutions with weights whose zeros are left out, of row-major feature maps, without tiles in
// shared memory: where few weights are left, most of what a tile would bring is read once or not at
// all. A warp has a filter, or a part of its weights, and outputs that follow each other in the
// plane, so that what a weight is multiplied with follows each other, too, and is read by one
// access to the first cache for all lanes. Where a window reaches over the border is found once for
// each output, as a mask of taps. Where a weight's inputs lie is found by one lane for each of 32
// weights at a time, and told to the others through shared memory; the next 32 are on their way.
#include "entries.cuh"

// A warp has `turns` filters one after the other; 2^split warps share each.
struct Extents : Convolution {
    u32 turns, split, relu;
    Divisor across;
};

// Outputs of a lane: RUN times WIDE that follow each other. With SAME, y has the extents of x and
// strides are one, so that an output's place is that of its input but for the tap.
template <u32 KY, u32 KX, u32 SY, u32 SX, u32 DY, u32 DX, u32 RUN, u32 WIDE, u32 UNROLL, bool SAME>
struct Gather {
    static constexpr u32 taps = KY * KX, window_y = KY, window_x = KX, run = RUN, wide = WIDE;
    static constexpr u32 stride_y = SY, stride_x = SX, apart_y = DY, apart_x = DX;
    static constexpr u32 unroll = UNROLL, values = RUN * WIDE, outputs = 32 * values;
    // No output has an input beside its own.
    static constexpr bool line = SAME && taps == 1;
    // Outputs of which each has a place of its own; the others follow it.
    static constexpr u32 places = SAME && !line ? 1 : RUN;
    static_assert(taps <= 32 && UNROLL % 4 == 0 && 32 % UNROLL == 0 && (WIDE == 1 || line), "a way");

    // Where the input of a weight lies, from that of the first tap of the first channel.
    static __device__ __forceinline__ u32 offset(u32 channel, u32 tap, const Convolution& e) {
        return channel * (e.height * e.width) + tap / KX * DY * e.width + tap % KX * DX;
    }

    // The taps whose inputs are not beyond the border, for a window from (top, left) on.
    static __device__ __forceinline__ u32 inside(i32 top, i32 left, const Convolution& e) {
        u32 mask = 0;
#pragma unroll
        for (u32 tap = 0; tap < taps; ++tap) {
            const u32 y = (u32)(top + (i32)(tap / KX * DY)), x = (u32)(left + (i32)(tap % KX * DX));
            mask |= (u32)(y < e.height && x < e.width) << tap;
        }
        return mask;
    }
};

// WIDE inputs, or zeros if no bit is in both numbers.
template <u32 WIDE>
__device__ __forceinline__ void read(float* to, const float* from, u32 a, u32 b) {
    static_assert(WIDE == 1 || WIDE == 4, "an access");
#ifdef VDNN_EMULATED
    for (u32 i = 0; i < WIDE; ++i) to[i] = a & b ? from[i] : 0.0f;
#else
    // A branch would keep the accesses of other weights from being in flight at the same time.
    if (WIDE == 4) {
        asm("{.reg .pred in; .reg .b32 t; and.b32 t, %5, %6; setp.ne.u32 in, t, 0;"
            "mov.f32 %0, 0f00000000; mov.f32 %1, 0f00000000; mov.f32 %2, 0f00000000; mov.f32 %3, 0f00000000;"
            "@in ld.global.nc.v4.f32 {%0, %1, %2, %3}, [%4];}"
            : "=&f"(to[0]), "=&f"(to[1]), "=&f"(to[2]), "=&f"(to[3])
            : "l"(from), "r"(a), "r"(b));
    } else {
        asm("{.reg .pred in; .reg .b32 t; and.b32 t, %2, %3; setp.ne.u32 in, t, 0;"
            "mov.f32 %0, 0f00000000; @in ld.global.nc.f32 %0, [%1];}"
            : "=&f"(to[0])
            : "l"(from), "r"(a), "r"(b));
    }
#endif
}

// Adds the products of UNROLL weights from `j` on, of which `count` there are: all, with FULL.
template <class T, bool FULL>
__device__ __forceinline__ void add(
    float (&sum)[T::values], const float* const (&from)[T::places], const u32 (&inside)[T::run],
    const u32* heard, u32 j, u32 count) {
    u32 offset[T::unroll], tap[T::unroll], weight[T::unroll];
#pragma unroll
    for (u32 u = 0; u < T::unroll; u += 4) {
        *(uint4*)(offset + u) = *(const uint4*)(heard + j + u);
        *(uint4*)(weight + u) = *(const uint4*)(heard + 32 + j + u);
        if (!T::line) *(uint4*)(tap + u) = *(const uint4*)(heard + 64 + j + u);
    }
    float v[T::unroll][T::values];
#pragma unroll
    for (u32 u = 0; u < T::unroll; ++u) {
#pragma unroll
        for (u32 i = 0; i < T::run; ++i) {
            const float* at = from[i < T::places ? i : 0] + offset[u] + (T::places == 1 ? 32 * i : 0);
            if (!T::line) {
                read<1>(v[u] + i, at, inside[i], tap[u]);
            } else if (!FULL) {
                read<T::wide>(v[u] + T::wide * i, at, j + u < count, 1);
            } else if (T::wide == 4) {
                *(float4*)(v[u] + 4 * i) = __ldg((const float4*)at);
            } else {
                v[u][i] = __ldg(at);
            }
        }
    }
#pragma unroll
    for (u32 u = 0; u < T::unroll; ++u) {
#pragma unroll
        for (u32 i = 0; i < T::values; ++i) sum[i] += __uint_as_float(weight[u]) * v[u][i];
    }
}

// A block: outputs of an image (blockIdx.x, blockIdx.z) in `turns` times as many filters (blockIdx.y) as its
// warps are, shared by 2^split.
template <class T>
__device__ __forceinline__ void sparse_gather(
    const float* __restrict__ x, const i32* __restrict__ starts, const i32* __restrict__ entries,
    const float* __restrict__ bias, float* __restrict__ y, const float* __restrict__ added, const Extents& e) {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    const u32 sharing = 1u << e.split, part = warp & (sharing - 1);
    // Places, values and taps of 32 weights for each warp; then partial sums.
    u32* const heard = (u32*)dynamic_shared + 96 * warp;
    float* const parts = (float*)dynamic_shared + 96 * warps;
    u32 filter = (blockIdx.y * (warps >> e.split) + (warp >> e.split)) * e.turns;
    // Of a filter, and one ahead.
    i32 start = starts[min(filter, e.filters)], stop = starts[min(filter + 1, e.filters)];
    i32 after = starts[min(filter + 2, e.filters)];

    const u32 positions = e.out_height * e.out_width, first = blockIdx.x * T::outputs + lane * T::wide;
    x += (u64)blockIdx.z * e.channels * e.height * e.width;
    const u64 image = (u64)blockIdx.z * e.filters * positions;
    y += image;
    if (added != nullptr) added += image;

    // The weights of this part of a filter.
    auto end_of = [&](i32& at) {
        const u32 all = (u32)(stop - start), each = (all + sharing - 1) >> e.split;
        at = start + (i32)min(part * each, all);
        return start + (i32)min((part + 1) * each, all);
    };
    i32 at;
    i32 end = end_of(at);
    Entry mine = entry(entries, at + (i32)lane, end);

    const float* from[T::places];
    u32 inside[T::run];
#pragma unroll
    for (u32 i = 0; i < T::run; ++i) {
        const u32 p = first + 32 * T::wide * i;
        if (T::line) {
            // Beyond the end the sums go nowhere.
            from[i < T::places ? i : 0] = x + (p < positions ? p : 0);
            inside[i] = 1;
        } else {
            u32 row = p;
            const u32 column = e.across.take(row);
            const i32 top = (i32)(row * T::stride_y) - e.top, left = (i32)(column * T::stride_x) - e.left;
            if (i < T::places) from[i] = x + ((i64)top * (i32)e.width + left);
            inside[i] = p < positions ? T::inside(top, left, e) : 0;
        }
        // Else it would be taken apart, and four instructions would put it together for each access.
        if (i < T::places) asm volatile("" : "+l"(from[i]));
    }

    for (u32 turn = 0; turn < e.turns; ++turn, ++filter) {
        const bool real = filter < e.filters;
        float sum[T::values];
        const float b = real && part == 0 && bias != nullptr ? bias[filter] : 0.0f;
#pragma unroll
        for (u32 i = 0; i < T::values; ++i) sum[i] = b;
        bool more;
        do {
            const u32 count = min((u32)(end - at), 32u);
            const bool some = lane < count;
            const u32 column = some ? (u32)mine.column : 0, tap = column % T::taps;
            heard[lane] = T::offset(column / T::taps, tap, e);
            heard[32 + lane] = (u32)mine.value;
            heard[64 + lane] = (u32)some << tap;
            at += (i32)count;
            more = at < end;
            if (!more && turn + 1 < e.turns) {
                start = stop;
                stop = after;
                after = starts[min(filter + 3, e.filters)];
                end = end_of(at);
                mine = entry(entries, at + (i32)lane, end);
            } else if (more) {
                mine = entry(entries, at + (i32)lane, end);
            }
            __syncwarp();
            u32 j = 0;
#pragma unroll 1
            for (; T::line ? j + T::unroll <= count : j < count; j += T::unroll) {
                add<T, true>(sum, from, inside, heard, j, count);
            }
            if (T::line && j < count) add<T, false>(sum, from, inside, heard, j, count);
            __syncwarp();
        } while (more);
        if (e.split != 0) {
            // Each second turn has its own place, so that one barrier is enough.
            float* const to = parts + (turn % 2 * warps + warp) * T::outputs + lane;
            if (part != 0) {
#pragma unroll
                for (u32 i = 0; i < T::values; ++i) to[32 * i] = sum[i];
            }
            __syncthreads();
            if (part != 0) continue;
#pragma unroll 1
            for (u32 other = 1; other < sharing; ++other) {
#pragma unroll
                for (u32 i = 0; i < T::values; ++i) sum[i] += to[other * T::outputs + 32 * i];
            }
        }
        if (!real) continue;
#pragma unroll
        for (u32 i = 0; i < T::run; ++i) {
            const u32 p = first + 32 * T::wide * i;
            if (p >= positions) continue;
            const u64 out = (u64)filter * positions + p;
            if (T::wide == 4) {
                float4 r = make_float4(sum[4 * i], sum[4 * i + 1 < T::values ? 4 * i + 1 : 0],
                                       sum[4 * i + 2 < T::values ? 4 * i + 2 : 0],
                                       sum[4 * i + 3 < T::values ? 4 * i + 3 : 0]);
                if (added != nullptr) {
                    const float4 a = *(const float4*)(added + out);
                    r = make_float4(r.x + a.x, r.y + a.y, r.z + a.z, r.w + a.w);
                }
                if (e.relu) r = make_float4(positive(r.x), positive(r.y), positive(r.z), positive(r.w));
                *(float4*)(y + out) = r;
            } else {
                const float r = sum[i] + (added != nullptr ? added[out] : 0.0f);
                y[out] = e.relu ? positive(r) : r;
            }
        }
    }
}

#define SPARSE_GATHER(NAME, KY, KX, SY, SX, DY, DX, RUN, WIDE, UNROLL, SAME)                              \
    extern "C" __global__ void __launch_bounds__(512, 1) NAME(                                               \
        const float* x, const i32* starts, const i32* entries, const float* bias, float* y,               \
        const float* added, Extents e) {                                                                  \
        using T = Gather<KY, KX, SY, SX, DY, DX, RUN, WIDE, UNROLL, SAME>;                                \
        sparse_gather<T>(x, starts, entries, bias, y, added, e);                                          \
    }
