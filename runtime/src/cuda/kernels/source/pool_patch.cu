// Gradients of pools with square windows of 2 or 3 and stride 1 or 2: each thread makes the
// gradient of 2 by 2 or 4 by 2 input positions, so that it loads every window over them once and knows
// at compile time which tap of a window lies on which position.
#include "pool.cuh"

// Extents of a patch. One value a thread leaves registers for more rows.
constexpr u32 PATCH_COLUMNS = 2;
__device__ constexpr u32 patch_rows(bool last, u32 stride) { return last || stride == 1 ? 2 : 4; }

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
    Vec<V> sum[POSITIONS];
#pragma unroll
    for (u32 k = 0; k < POSITIONS; k++) {
#pragma unroll
        for (u32 e = 0; e < V; e++) sum[k].v[e] = 0.0f;
    }
#pragma unroll
    for (u32 jh = 0; jh < NH; jh++) {
        const u32 oh = oh0 + jh;
        Window<V> window[NW];
        bool in[NW];
#pragma unroll
        for (u32 jw = 0; jw < NW; jw++) {
            const u32 ow = ow0 + jw;
            in[jw] = oh < p.output[H] && ow < p.output[W];
            if (in[jw]) {
                const u64 o = from + (u64)(oh * p.output[W] + ow) * step;
                window[jw].g = load<V>(dy + o);
                if constexpr (MAX) {
                    window[jw].taps = load_taps<V>(index + o);
                } else {
                    const float factor = average(p, 0, oh, ow);
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
                        bool sent = in[jw];
                        if constexpr (MAX) sent = sent && window[jw].sends(e, th * K + tw);
                        sum[k].v[e] += sent ? window[jw].g.v[e] : 0.0f;
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

// With a stride of 1 a patch has most windows, and 80 registers do not suffice.
#define POOL_GRAD_PATCH(NAME, T, MAX, LAST, V, S, K, R)                                                   \
    extern "C" __global__ void __launch_bounds__(THREADS, S == 1 ? 2 : 4)                                 \
        NAME(const T* dy, const u8* index, T* dx, u32 n, const __grid_constant__ Divisor rows,            \
             const __grid_constant__ Divisor columns, const __grid_constant__ Pool p) {                   \
        pool_grad_patch<MAX, LAST, V, S, K, R>(dy, index, dx, n, rows, columns, p);                       \
    }
