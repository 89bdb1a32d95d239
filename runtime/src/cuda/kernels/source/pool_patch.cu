// Gradients of pools with square windows of 2 or 3 and stride 1 or 2: each thread makes the
// gradient of a patch of input positions, so that it loads every window over them once and knows at
// compile time which tap of a window lies on which position.
#include "packed.cuh"
#include "pool.cuh"

// Extents of a patch. More rows share more windows, as far as registers last.
constexpr u32 PATCH_COLUMNS = 2;
__device__ constexpr u32 patch_rows(bool last, u32 stride) { return last && stride == 2 ? 2 : 4; }

// What a window sends: a maximum everything to its tap, an average a share to every tap. The
// taps of V channels are the bytes of one word, from the lowest.
template <u32 V>
struct Window {
    Vec<V> g;
    u32 taps;
    __device__ __forceinline__ bool sends(u32 e, u32 tap) const { return (taps >> 8 * e & 0xff) == tap; }
};

template <u32 V>
__device__ __forceinline__ u32 load_taps(const u8* from) {
    if constexpr (V == 4) {
        return *reinterpret_cast<const u32*>(from);
    } else {
        return *from;
    }
}

// The taps of a window outside: no position has one.
constexpr u32 NOWHERE = 0xffffffff;

// Two elements at an even place.
__device__ __forceinline__ void put2(float* p, float a, float b) { *reinterpret_cast<float2*>(p) = make_float2(a, b); }
__device__ __forceinline__ void put2(bf16* p, float a, float b) { *reinterpret_cast<u32*>(p) = narrow(a, b); }

// S: stride, K: window, R: padding before modulo the stride, the same in both dimensions.
// LAST: channels-last, V channels a thread; else planes, of which `image` counts all.
// MAX: of a maximum, with its taps; else of an average.
template <bool MAX, bool LAST, u32 V, u32 S, u32 K, u32 R, class T>
__device__ __forceinline__ void pool_grad_patch(const T* dy, const u8* index, T* dx, u32 n,
                                                const Divisor& rows, const Divisor& columns, const Pool& p) {
    constexpr u32 PATCH_ROWS = patch_rows(LAST, S), POSITIONS = PATCH_ROWS * PATCH_COLUMNS;
    // Along a dimension, N windows may lie over patch number a: from extent / S * a - BACK on.
    constexpr u32 BACK = (K - 1 - R) / S;
    constexpr u32 NH = BACK + (R + PATCH_ROWS - 1) / S + 1, NW = BACK + (R + PATCH_COLUMNS - 1) / S + 1;
    u32 image = blockIdx.x * THREADS + threadIdx.x;
    if (image >= n) return;
    u32 c = 0;
    if constexpr (LAST) c = p.channels.take(image) * V;
    const u32 b = columns.take(image), a = rows.take(image);
    const u32 step = LAST ? p.channels.value * V : 1;
    const u64 from = (u64)image * p.output[H] * p.output[W] * step + c;
    // Outputs before the first wrap around to large numbers.
    const u32 oh0 = PATCH_ROWS / S * a + p.before[H] / S - BACK;
    const u32 ow0 = PATCH_COLUMNS / S * b + p.before[W] / S - BACK;
    // Taps that count in an average, per column of windows.
    u32 wide[NW];
#pragma unroll
    for (u32 jw = 0; jw < NW; jw++) wide[jw] = MAX ? 0 : taps(p, W, ow0 + jw);
    Vec<V> sum[POSITIONS];
#pragma unroll
    for (u32 k = 0; k < POSITIONS; k++) {
#pragma unroll
        for (u32 e = 0; e < V; e++) sum[k].v[e] = 0.0f;
    }
#pragma unroll
    for (u32 jh = 0; jh < NH; jh++) {
        const u32 oh = oh0 + jh, tall = MAX ? 0 : taps(p, H, oh);
        Window<V> window[NW];
        bool in[NW];
#pragma unroll
        for (u32 jw = 0; jw < NW; jw++) {
            const u32 ow = ow0 + jw;
            in[jw] = oh < p.output[H] && ow < p.output[W];
            window[jw].taps = NOWHERE;
            if (in[jw]) {
                const u64 o = from + (u64)(oh * p.output[W] + ow) * step;
                window[jw].g = load<V>(dy + o);
                if constexpr (MAX) {
                    window[jw].taps = load_taps<V>(index + o);
                } else {
                    const float factor = share(p, 1, tall, wide[jw]);
#pragma unroll
                    for (u32 e = 0; e < V; e++) window[jw].g.v[e] *= factor;
                }
            }
        }
#pragma unroll
        for (u32 jw = 0; jw < NW; jw++) {
#pragma unroll
            for (u32 k = 0; k < POSITIONS; k++) {
                const u32 th = k / PATCH_COLUMNS + R + S * BACK - S * jh;
                const u32 tw = k % PATCH_COLUMNS + R + S * BACK - S * jw;
                if (th < K && tw < K) {
#pragma unroll
                    for (u32 e = 0; e < V; e++) {
                        if constexpr (MAX) {
                            if (window[jw].sends(e, th * K + tw)) sum[k].v[e] += window[jw].g.v[e];
                        } else {
                            sum[k].v[e] += in[jw] ? window[jw].g.v[e] : 0.0f;
                        }
                    }
                }
            }
        }
    }
    const u32 h0 = PATCH_ROWS * a, w0 = PATCH_COLUMNS * b;
    T* to = dx + ((u64)image * p.input[H] + h0) * p.input[W] * step + (u64)w0 * step + c;
#pragma unroll
    for (u32 kh = 0; kh < PATCH_ROWS; kh++) {
        if (h0 + kh >= p.input[H]) break;
        const Vec<V>* line = sum + kh * PATCH_COLUMNS;
        if (!LAST && p.input[W] % PATCH_COLUMNS == 0) {
            put2(to, line[0].v[0], line[1].v[0]);
        } else {
            store<V>(to, line[0]);
            if (w0 + 1 < p.input[W]) store<V>(to + step, line[1]);
        }
        to += (u64)p.input[W] * step;
    }
}

// With a stride of 1 a patch has most windows.
#define POOL_GRAD_PATCH(NAME, T, MAX, LAST, V, S, K, R)                                                   \
    extern "C" __global__ void __launch_bounds__(THREADS, S == 1 ? 3 : 4)                                 \
        NAME(const T* dy, const u8* index, T* dx, u32 n, const __grid_constant__ Divisor rows,            \
             const __grid_constant__ Divisor columns, const __grid_constant__ Pool p) {                   \
        pool_grad_patch<MAX, LAST, V, S, K, R>(dy, index, dx, n, rows, columns, p);                       \
    }

// The same for maxima of channels-last bf16 with patches of 2 by 2, two channels at a time. Up to
// two addends have the same sum in bf16 that they have by way of f32, which more take.
template <u32 V, u32 S, u32 K, u32 R>
__device__ __forceinline__ void pool_grad_pairs(const bf16* dy, const u8* index, bf16* dx, u32 n, const Divisor& rows,
                                                const Divisor& columns, const Pool& p) {
    constexpr u32 N = V / 2, SIDE = 2, BACK = (K - 1 - R) / S, SPAN = BACK + (R + SIDE - 1) / S + 1;
    u32 image = blockIdx.x * THREADS + threadIdx.x;
    if (image >= n) return;
    const u32 c = p.channels.take(image) * V, step = p.channels.value * V;
    const u32 b = columns.take(image), a = rows.take(image);
    const u64 from = (u64)image * p.output[H] * p.output[W] * step + c;
    // Outputs before the first wrap around to large numbers.
    const u32 oh0 = SIDE / S * a + p.before[H] / S - BACK, ow0 = SIDE / S * b + p.before[W] / S - BACK;
    // How many windows along a dimension have a place in the patch.
    u32 over[SIDE] = {};
#pragma unroll
    for (u32 k = 0; k < SIDE * SPAN; k++) over[k % SIDE] += k % SIDE + R + S * BACK - S * (k / SIDE) < K;
    u32 two[SIDE * SIDE][N];
    float sum[SIDE * SIDE][V];
#pragma unroll
    for (u32 k = 0; k < SIDE * SIDE; k++) {
#pragma unroll
        for (u32 i = 0; i < N; i++) {
            two[k][i] = 0;
            sum[k][2 * i] = sum[k][2 * i + 1] = 0.0f;
        }
    }
#pragma unroll
    for (u32 jh = 0; jh < SPAN; jh++) {
        const u32 oh = oh0 + jh;
        Words<2 * V> g[SPAN];
        Words<V> taps[SPAN];
#pragma unroll
        for (u32 jw = 0; jw < SPAN; jw++) {
            const u32 ow = ow0 + jw;
#pragma unroll
            for (u32 i = 0; i < N; i++) g[jw].w[i] = 0;
#pragma unroll
            for (u32 i = 0; i < V / 4; i++) taps[jw].w[i] = NOWHERE;
            if (oh < p.output[H] && ow < p.output[W]) {
                const u64 o = from + (u64)(oh * p.output[W] + ow) * step;
                g[jw] = fetch_words<2 * V>(dy + o);
                taps[jw] = fetch_words<V>(index + o);
            }
        }
#pragma unroll
        for (u32 k = 0; k < SPAN * N; k++) {
            const u32 jw = k / N, i = k % N;
            // With these upper bytes they are numbers around 1 of f16.
            const u32 at = bytes(taps[jw].w[i / 2], 0x3c3c3c3c, i % 2 ? 0x4342 : 0x4140);
#pragma unroll
            for (u32 to = 0; to < SIDE * SIDE; to++) {
                const u32 th = to / SIDE + R + S * BACK - S * jh, tw = to % SIDE + R + S * BACK - S * jw;
                if (th >= K || tw >= K) continue;
                const u32 sent = g[jw].w[i] & equal2(at, 0x3c003c00u + (th * K + tw) * 0x10001u);
                if (over[to / SIDE] * over[to % SIDE] <= 2) {
                    two[to][i] = add2(two[to][i], sent);
                } else {
                    sum[to][2 * i] += widen(sent);
                    sum[to][2 * i + 1] += __uint_as_float(sent & 0xffff0000u);
                }
            }
        }
    }
    const u32 h0 = SIDE * a, w0 = SIDE * b;
    bf16* to = dx + ((u64)image * p.input[H] + h0) * p.input[W] * step + (u64)w0 * step + c;
#pragma unroll
    for (u32 k = 0; k < SIDE * SIDE; k++) {
        if (h0 + k / SIDE >= p.input[H] || w0 + k % SIDE >= p.input[W]) continue;
        Words<2 * V> out;
#pragma unroll
        for (u32 i = 0; i < N; i++) {
            const bool few = over[k / SIDE] * over[k % SIDE] <= 2;
            out.w[i] = few ? two[k][i] : narrow(sum[k][2 * i], sum[k][2 * i + 1]);
        }
        store_words(to + (u64)(k / SIDE * p.input[W] + k % SIDE) * step, out);
    }
}

#define POOL_GRAD_PAIRS(NAME, V, S, K, R)                                                                 \
    extern "C" __global__ void __launch_bounds__(THREADS, S == 1 ? 2 : 4)                                 \
        NAME(const bf16* dy, const u8* index, bf16* dx, u32 n, const __grid_constant__ Divisor rows,      \
             const __grid_constant__ Divisor columns, const __grid_constant__ Pool p) {                   \
        pool_grad_pairs<V, S, K, R>(dy, index, dx, n, rows, columns, p);                                  \
    }

// Row-major, where rows of the input are accesses of N and rows of the output are accesses of N / S:
// each thread makes the gradient of N columns of 2 rows. LEFT windows before an access are over its
// columns too.
template <bool MAX, u32 N, u32 S, u32 K, u32 R, u32 LEFT, class T>
__device__ __forceinline__ void pool_grad_rows(const T* dy, const u8* index, T* dx, u32 n, const Divisor& rows,
                                               const Divisor& columns, const Pool& p) {
    constexpr u32 LINES = 2, BACK = (K - 1 - R) / S, M = N / S;
    constexpr u32 NH = BACK + (R + LINES - 1) / S + 1, NW = BACK + (R + N - 1) / S + 1;
    u32 plane = blockIdx.x * THREADS + threadIdx.x;
    if (plane >= n) return;
    const u32 b = columns.take(plane), a = rows.take(plane);
    // Outputs before the first wrap around to large numbers.
    const u32 oh0 = LINES / S * a + p.before[H] / S - BACK, ow0 = M * b - LEFT;
    u32 wide[NW];
#pragma unroll
    for (u32 jw = 0; jw < NW; jw++) wide[jw] = MAX ? 0 : taps(p, W, ow0 + jw);
    float sum[LINES * N];
#pragma unroll
    for (u32 k = 0; k < LINES * N; k++) sum[k] = 0.0f;
#pragma unroll
    for (u32 jh = 0; jh < NH; jh++) {
        const u32 oh = oh0 + jh;
        const bool in = oh < p.output[H];
        const u32 tall = MAX ? 0 : taps(p, H, oh);
        const u64 line = (u64)plane * p.output[H] * p.output[W] + (in ? oh * p.output[W] : 0);
        Words<M * sizeof(T)> middle = {};
        Words<M> places;
#pragma unroll
        for (u32 i = 0; i < (M + 3) / 4; i++) places.w[i] = NOWHERE;
        if (in) {
            middle = fetch_words<M * sizeof(T)>(dy + line + M * b);
            if constexpr (MAX) places = fetch_words<M>(index + line + M * b);
        }
        float g[NW];
        u32 taps[NW];
#pragma unroll
        for (u32 jw = 0; jw < NW; jw++) {
            const u32 ow = ow0 + jw, e = jw - LEFT;
            if (e < M) {
                if constexpr (sizeof(T) == 4) {
                    g[jw] = __uint_as_float(middle.w[e]);
                } else {
                    g[jw] = e % 2 ? __uint_as_float(middle.w[e / 2] & 0xffff0000u) : widen(middle.w[e / 2]);
                }
                taps[jw] = places.w[e / 4] >> 8 * (e % 4) & 0xff;
            } else {
                g[jw] = 0.0f;
                taps[jw] = NOWHERE;
                if (in && ow < p.output[W]) {
                    g[jw] = get(dy + line + ow);
                    if constexpr (MAX) taps[jw] = index[line + ow];
                }
            }
            if constexpr (!MAX) {
                if (in && ow < p.output[W]) g[jw] *= share(p, 1, tall, wide[jw]);
            }
        }
#pragma unroll
        for (u32 jw = 0; jw < NW; jw++) {
#pragma unroll
            for (u32 k = 0; k < LINES * N; k++) {
                const u32 th = k / N + R + S * BACK - S * jh, tw = k % N + R + S * BACK - S * jw;
                if (th < K && tw < K && (!MAX || taps[jw] == th * K + tw)) sum[k] += g[jw];
            }
        }
    }
    T* to = dx + ((u64)plane * p.input[H] + LINES * a) * p.input[W] + N * b;
#pragma unroll
    for (u32 kh = 0; kh < LINES; kh++, to += p.input[W]) {
        if (LINES * a + kh >= p.input[H]) break;
        Words<N * sizeof(T)> out;
        const float* line = sum + kh * N;
        if constexpr (sizeof(T) == 4) {
#pragma unroll
            for (u32 e = 0; e < N; e++) out.w[e] = __float_as_uint(line[e]);
        } else {
#pragma unroll
            for (u32 e = 0; e < N; e += 2) out.w[e / 2] = narrow(line[e], line[e + 1]);
        }
        store_words(to, out);
    }
}

#define POOL_GRAD_ROWS(NAME, T, MAX, N, S, K, R, LEFT)                                                    \
    extern "C" __global__ void __launch_bounds__(THREADS, MAX ? 4 : 3)                                    \
        NAME(const T* dy, const u8* index, T* dx, u32 n, const __grid_constant__ Divisor rows,            \
             const __grid_constant__ Divisor columns, const __grid_constant__ Pool p) {                   \
        pool_grad_rows<MAX, N, S, K, R, LEFT>(dy, index, dx, n, rows, columns, p);                        \
    }
