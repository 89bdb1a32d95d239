// Maxima over square windows of K with stride S, in two dimensions without dilation: each thread
// makes a patch of outputs, so that it loads what their windows share once, and finds the maximum
// of each row of a window first. A position outside of the input stands for the nearest one
// within and has that one's tap, so that no load needs a condition and no maximum changes.
#include "packed.cuh"
#include "pool.cuh"

// The bytes that name the taps of N maxima, from words whose lowest bytes they are.
template <u32 N>
__device__ __forceinline__ Words<N> join_bytes(const u32* from) {
    Words<N> r;
    if constexpr (N == 1) {
        r.w[0] = from[0];
    } else if constexpr (N == 2) {
        r.w[0] = bytes(from[0], from[1], 0x40);
    } else {
#pragma unroll
        for (u32 e = 0; e < N; e += 4) {
            r.w[e / 4] = bytes(bytes(from[e], from[e + 1], 0x40), bytes(from[e + 2], from[e + 3], 0x40), 0x5410);
        }
    }
    return r;
}

// The maximum of a part of a window and its tap: the first of equals wins, NaN beats everything.
template <class T>
struct Top;

template <>
struct Top<float> {
    static constexpr u32 LANES = 1;
    float value;
    u32 tap;
    // Prepares what was loaded, once for all windows over it.
    template <u32 N>
    static __device__ __forceinline__ void prepare(Words<N>&) {}
    // Element e of that.
    template <u32 N>
    static __device__ __forceinline__ Top of(const Words<N>& v, u32 e, u32 tap) {
        return {__uint_as_float(v.w[e]), tap};
    }
    // The maximum with a later part.
    __device__ __forceinline__ void join(const Top& later) {
        if (!(later.value <= value) && value == value) *this = later;
    }
    // The same in a window that began so many taps earlier.
    __device__ __forceinline__ Top moved(u32 taps) const { return {value, tap + taps}; }
    // N neighbouring maxima as they lie in memory, and their taps.
    template <u32 N>
    static __device__ __forceinline__ Words<4 * N> values(const Top* tops) {
        Words<4 * N> r;
#pragma unroll
        for (u32 e = 0; e < N; e++) r.w[e] = __float_as_uint(tops[e].value);
        return r;
    }
    template <u32 N>
    static __device__ __forceinline__ Words<N> taps(const Top* tops) {
        u32 low[N];
#pragma unroll
        for (u32 e = 0; e < N; e++) low[e] = tops[e].tap;
        return join_bytes<N>(low);
    }
};

// One integer, so that one instruction compares: the number's place in their order above the
// complement of the tap. A maximum of zero comes out as positive.
template <>
struct Top<bf16> {
    static constexpr u32 LANES = 1;
    i32 key;
    // Two numbers to integers of the same order, and back.
    static __device__ __forceinline__ u32 order(u32 two) { return two ^ (bytes(two, two, 0xbb99) & 0x7fff7fffu); }
    template <u32 N>
    static __device__ __forceinline__ void prepare(Words<N>& v) {
#pragma unroll
        for (u32 i = 0; i < (N + 3) / 4; i++) v.w[i] = order(plain2(v.w[i]));
    }
    template <u32 N>
    static __device__ __forceinline__ Top of(const Words<N>& v, u32 e, u32 tap) {
        return {(i32)bytes(v.w[e / 2], 0xff - tap, e % 2 ? 0x3254 : 0x1054)};
    }
    __device__ __forceinline__ void join(const Top& later) { key = later.key > key ? later.key : key; }
    __device__ __forceinline__ Top moved(u32 taps) const { return {key - (i32)taps}; }
    template <u32 N>
    static __device__ __forceinline__ Words<2 * N> values(const Top* tops) {
        Words<2 * N> r;
        if constexpr (N == 1) {
            r.w[0] = order((u32)tops[0].key >> 16);
        } else {
#pragma unroll
            for (u32 e = 0; e < N; e += 2) r.w[e / 2] = order(bytes(tops[e].key, tops[e + 1].key, 0x7632));
        }
        return r;
    }
    template <u32 N>
    static __device__ __forceinline__ Words<N> taps(const Top* tops) {
        u32 low[N];
#pragma unroll
        for (u32 e = 0; e < N; e++) low[e] = (u32)tops[e].key;
        Words<N> r = join_bytes<N>(low);
#pragma unroll
        for (u32 i = 0; i < (N + 3) / 4; i++) r.w[i] = ~r.w[i];
        return r;
    }
};

// Two channels at once, with taps of 16 bits. It tells that there is NaN, but not which tap is the
// first. Of zeros that tie, a positive one comes out, with the first one's tap.
struct Top2 {
    static constexpr u32 LANES = 2;
    u32 both, tap;
    template <u32 N>
    static __device__ __forceinline__ void prepare(Words<N>&) {}
    template <u32 N>
    static __device__ __forceinline__ Top2 of(const Words<N>& v, u32 i, u32 tap) {
        return {v.w[i], tap * 0x10001u};
    }
    __device__ __forceinline__ void join(const Top2& later) {
        const u32 above = above2(later.both, both);
        tap = (tap & ~above) | (later.tap & above);
        both = larger2(both, later.both);
    }
    __device__ __forceinline__ Top2 moved(u32 taps) const { return {both, tap + taps * 0x10001u}; }
    template <u32 N>
    static __device__ __forceinline__ Words<2 * N> values(const Top2* tops) {
        Words<2 * N> r;
#pragma unroll
        for (u32 i = 0; i < N / 2; i++) r.w[i] = tops[i].both;
        return r;
    }
    template <u32 N>
    static __device__ __forceinline__ Words<N> taps(const Top2* tops) {
        Words<N> r;
#pragma unroll
        for (u32 i = 0; i < N / 4; i++) r.w[i] = bytes(tops[2 * i].tap, tops[2 * i + 1].tap, 0x6420);
        return r;
    }
};

// What finds the maxima of V channels.
template <class T, bool PAIRS>
struct Finder {
    using Type = Top<T>;
};
template <>
struct Finder<bf16, true> {
    using Type = Top2;
};

// The position within the input that stands for one perhaps outside.
__device__ __forceinline__ i32 nearest(i32 i, u32 extent) {
    const i32 last = (i32)extent - 1, above = i > 0 ? i : 0;
    return above < last ? above : last;
}

// How many taps before tap j of a window that begins at `start` are outside: 0 for j itself inside.
template <u32 K>
__device__ __forceinline__ u32 outside(u32 j, i32 start) {
    const i32 i = start + (i32)j;
    return j + 1 < K && i < 0 ? -i : 0;
}

// Joins row r of a patch's windows, `skipped` rows of which are outside before it, into the maxima of
// the windows over it.
template <u32 K, u32 S, u32 PH, class U>
__device__ __forceinline__ void join_row(U* const (&tops)[PH], u32 r, u32 skipped, const U& row) {
#pragma unroll
    for (u32 jh = 0; jh < PH; jh++) {
        const u32 kh = r - S * jh;
        if (kh >= K) continue;
        const U part = row.moved(K * (kh + skipped));
        if (kh == 0) {
            *tops[jh] = part;
        } else {
            tops[jh]->join(part);
        }
    }
}

// N neighbours.
template <u32 N, class U, class T>
__device__ __forceinline__ void store_tops(T* y, u8* index, u64 at, const U* tops) {
    store_words(y + at, U::template values<N>(tops));
    if (index) store_words(index + at, U::template taps<N>(tops));
}

// Channels-last: V channels of PH outputs above each other. p.channels counts groups of V channels.
template <u32 V, u32 K, u32 S, u32 PH, class T>
__device__ __forceinline__ void max_patch_last(const T* x, T* y, u8* index, u32 n, const Divisor& rows,
                                               const Divisor& columns, const Pool& p) {
    using U = typename Finder<T, (V > 1)>::Type;
    constexpr u32 NH = S * (PH - 1) + K, N = V / U::LANES;
    u32 image = blockIdx.x * THREADS + threadIdx.x;
    if (image >= n) return;
    const u32 c = p.channels.take(image) * V, step = p.channels.value * V;
    const u32 ow = columns.take(image), oh0 = PH * rows.take(image);
    const i32 h0 = (i32)(oh0 * S - p.before[H]), w0 = (i32)(ow * S - p.before[W]);
    const T* from = x + (u64)image * p.input[H] * p.input[W] * step + c;
    u32 at[K], skipped[K];
#pragma unroll
    for (u32 j = 0; j < K; j++) {
        at[j] = nearest(w0 + (i32)j, p.input[W]) * step;
        skipped[j] = outside<K>(j, w0);
    }
    U top[PH][N];
#pragma unroll
    for (u32 r = 0; r < NH; r++) {
        const T* line = from + nearest(h0 + (i32)r, p.input[H]) * p.input[W] * step;
        Words<V * sizeof(T)> v[K];
#pragma unroll
        for (u32 j = 0; j < K; j++) {
            v[j] = fetch_words<V * sizeof(T)>(line + at[j]);
            U::prepare(v[j]);
        }
#pragma unroll
        for (u32 i = 0; i < N; i++) {
            U row = U::of(v[0], i, skipped[0]);
#pragma unroll
            for (u32 j = 1; j < K; j++) row.join(U::of(v[j], i, j + skipped[j]));
            U* tops[PH];
#pragma unroll
            for (u32 jh = 0; jh < PH; jh++) tops[jh] = &top[jh][i];
            join_row<K, S, PH>(tops, r, outside<K>(r, h0), row);
        }
    }
    u64 to = (((u64)image * p.output[H] + oh0) * p.output[W] + ow) * step + c;
#pragma unroll
    for (u32 jh = 0; jh < PH; jh++, to += p.output[W] * step) {
        if (oh0 + jh >= p.output[H]) break;
        if constexpr (U::LANES == 2) {
            u32 finite = 0;
#pragma unroll
            for (u32 i = 0; i < N; i++) finite = times_zero2(top[jh][i].both, finite);
            if (finite & 0x7fff7fff) {
                // There is NaN, or infinity.
#pragma unroll 1
                for (u32 e = 0; e < V; e++) {
                    const u32 h = h0 + jh * S;
                    Best best = no_best(h, w0, K);
#pragma unroll 1
                    for (u32 k = 0; k < K * K; k++) {
                        const u32 kh = h + k / K, kw = w0 + k % K;
                        if (kh >= p.input[H] || kw >= p.input[W]) continue;
                        best.offer(get(from + (kh * p.input[W] + kw) * step + e), k);
                    }
                    put(y + to + e, best.value);
                    if (index) index[to + e] = (u8)best.tap;
                }
                continue;
            }
        }
        store_tops<V>(y, index, to, top[jh]);
    }
}

#define MAX_PATCH_LAST(NAME, T, V, K, S, PH)                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS, 3)                                                  \
        NAME(const T* x, T* y, u8* index, u32 n, const __grid_constant__ Divisor rows,                        \
             const __grid_constant__ Divisor columns, const __grid_constant__ Pool p) {                       \
        max_patch_last<V, K, S, PH>(x, y, index, n, rows, columns, p);                                        \
    }

// Row-major: PH rows of outputs, of each those whose windows begin at N neighbouring positions.
// WHOLE: rows of the input are accesses of N, of which the first begins B positions after the
// first window.
template <u32 N, u32 K, u32 S, u32 PH, bool WHOLE, u32 B, class T>
__device__ __forceinline__ void max_patch_planes(const T* x, T* y, u8* index, u32 n, const Divisor& rows,
                                                 const Divisor& columns, const Pool& p) {
    using U = Top<T>;
    constexpr u32 PW = N / S, NH = S * (PH - 1) + K, NW = S * (PW - 1) + K;
    u32 plane = blockIdx.x * THREADS + threadIdx.x;
    if (plane >= n) return;
    const u32 column = columns.take(plane), ow0 = PW * column, oh0 = PH * rows.take(plane);
    const i32 h0 = (i32)(oh0 * S - p.before[H]), w0 = (i32)(N * column - p.before[W]);
    const T* from = x + (u64)plane * p.input[H] * p.input[W];
    U top[PH][PW];
#pragma unroll
    for (u32 r = 0; r < NH; r++) {
        const T* line = from + nearest(h0 + (i32)r, p.input[H]) * p.input[W];
        Words<N * sizeof(T)> middle;
        if constexpr (WHOLE) {
            middle = fetch_words<N * sizeof(T)>(line + N * column);
            U::prepare(middle);
        }
        U part[NW];
#pragma unroll
        for (u32 j = 0; j < NW; j++) {
            if (WHOLE && j - B < N) {
                part[j] = U::of(middle, j - B, 0);
            } else {
                Words<sizeof(T)> one = fetch_words<sizeof(T)>(line + nearest(w0 + (i32)j, p.input[W]));
                U::prepare(one);
                part[j] = U::of(one, 0, outside<K>(j, w0));
            }
        }
#pragma unroll
        for (u32 jw = 0; jw < PW; jw++) {
            U row = part[S * jw];
#pragma unroll
            for (u32 kw = 1; kw < K; kw++) row.join(part[S * jw + kw].moved(kw));
            U* tops[PH];
#pragma unroll
            for (u32 jh = 0; jh < PH; jh++) tops[jh] = &top[jh][jw];
            join_row<K, S, PH>(tops, r, outside<K>(r, h0), row);
        }
    }
    u64 to = ((u64)plane * p.output[H] + oh0) * p.output[W] + ow0;
#pragma unroll
    for (u32 jh = 0; jh < PH; jh++, to += p.output[W]) {
        if (oh0 + jh >= p.output[H]) break;
        store_tops<PW>(y, index, to, top[jh]);
    }
}

#define MAX_PATCH_PLANES(NAME, T, N, K, S, PH, WHOLE, B)                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS, WHOLE ? 4 : 6)                                      \
        NAME(const T* x, T* y, u8* index, u32 n, const __grid_constant__ Divisor rows,                        \
             const __grid_constant__ Divisor columns, const __grid_constant__ Pool p) {                       \
        max_patch_planes<N, K, S, PH, WHOLE, B>(x, y, index, n, rows, columns, p);                            \
    }
