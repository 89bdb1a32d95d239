// Pools and their gradients. Row-major tensors have up to three spatial dimensions, one element
// a thread; channels-last tensors two, V channels a thread. Gradients gather: each input
// position adds up, in a fixed order, what the windows over it send.
#include "common.cuh"

// Dimensions are depth, height, width; absent ones have extent 1.
struct Pool {
    u32 input[3], output[3], kernel[3], stride[3], before[3], after[3], dilation[3];
    u32 include_pad;
    Divisor in_height, in_width, in_depth, out_height, out_width, out_depth, channels;
    float full;  // 1 / positions of a window that lies within the input
};

constexpr u32 D = 0, H = 1, W = 2;

// The outputs lo..hi whose windows may cover input position i.
__device__ __forceinline__ void covering(u32 i, u32 output, u32 kernel, u32 stride, u32 before, u32 dilation, u32& lo,
                                         u32& hi) {
    const u32 at = i + before, span = (kernel - 1) * dilation;
    lo = at > span ? (at - span + stride - 1) / stride : 0;
    hi = min(at / stride + 1, output);
}

// How many taps of output o count in an average along one dimension.
__device__ __forceinline__ u32 taps(const Pool& p, u32 dim, u32 o) {
    const u32 start = o * p.stride[dim], d = p.dilation[dim];
    const u32 from = p.include_pad ? 0 : p.before[dim];
    const u32 to = p.before[dim] + p.input[dim] + (p.include_pad ? p.after[dim] : 0);
    const u32 first = start < from ? (from - start + d - 1) / d : 0;
    const u32 last = start < to ? min((to - start + d - 1) / d, p.kernel[dim]) : 0;
    return last > first ? last - first : 0;
}

// The factor of a window's sum in the average, given the taps counted per dimension.
__device__ __forceinline__ float average(const Pool& p, u32 d, u32 h, u32 w) {
    const u32 nd = taps(p, D, d), nh = taps(p, H, h), nw = taps(p, W, w);
    if (nd == p.kernel[D] && nh == p.kernel[H] && nw == p.kernel[W]) return p.full;
    return 1.0f / ((float)nd * (float)nh * (float)nw);
}

// The running maximum: the first of equals wins, NaN beats everything.
struct Best {
    float value;
    u32 tap;
    bool any;
    __device__ __forceinline__ void offer(float v, u32 t) {
        if (!any || v > value || (v != v && value == value)) {
            value = v;
            tap = t;
            any = true;
        }
    }
};

// ---- row-major -------------------------------------------------------------------------

// K > 0: a K by K window in two dimensions without dilation.
template <u32 K>
__device__ __forceinline__ void max_pool_planes(const float* x, float* y, u8* index8, i32* index32, u32 n,
                                                const Pool& p) {
    const u32 i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= n) return;
    u32 plane = i;
    const u32 ow = p.out_width.take(plane), oh = p.out_height.take(plane);
    Best best = {0.0f, 0, false};
    if constexpr (K > 0) {
        const float* from = x + (u64)plane * p.input[H] * p.input[W];
        const u32 h0 = oh * p.stride[H] - p.before[H], w0 = ow * p.stride[W] - p.before[W];
        float v[K * K];
#pragma unroll
        for (u32 k = 0; k < K * K; k++) {
            // Positions before the input wrap around to large numbers.
            const u32 h = h0 + k / K, w = w0 + k % K;
            if (h < p.input[H] && w < p.input[W]) v[k] = from[h * p.input[W] + w];
        }
#pragma unroll
        for (u32 k = 0; k < K * K; k++) {
            const u32 h = h0 + k / K, w = w0 + k % K;
            if (h < p.input[H] && w < p.input[W]) best.offer(v[k], k);
        }
    } else {
        const u32 od = p.out_depth.take(plane);
        const float* from = x + (u64)plane * p.input[D] * p.input[H] * p.input[W];
        u32 tap = 0;
        for (u32 kd = 0; kd < p.kernel[D]; kd++) {
            const u32 d = od * p.stride[D] + kd * p.dilation[D] - p.before[D];
            for (u32 kh = 0; kh < p.kernel[H]; kh++) {
                const u32 h = oh * p.stride[H] + kh * p.dilation[H] - p.before[H];
                for (u32 kw = 0; kw < p.kernel[W]; kw++, tap++) {
                    const u32 w = ow * p.stride[W] + kw * p.dilation[W] - p.before[W];
                    if (d < p.input[D] && h < p.input[H] && w < p.input[W]) {
                        best.offer(from[((u64)d * p.input[H] + h) * p.input[W] + w], tap);
                    }
                }
            }
        }
    }
    y[i] = best.value;
    if (index8) index8[i] = (u8)best.tap;
    if (index32) index32[i] = (i32)best.tap;
}

#define MAX_POOL_PLANES(NAME, K)                                                                              \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                     \
        NAME(const float* x, float* y, u8* index8, i32* index32, u32 n, const __grid_constant__ Pool p) {     \
        max_pool_planes<K>(x, y, index8, index32, n, p);                                                      \
    }
MAX_POOL_PLANES(max_pool_planes0, 0)
MAX_POOL_PLANES(max_pool_planes2, 2)
MAX_POOL_PLANES(max_pool_planes3, 3)

// One thread an input element. S > 0: two dimensions, stride S, no dilation.
template <u32 S, class I>
__device__ __forceinline__ void max_pool_grad_planes(const float* dy, const I* index, float* dx, u32 n, const Pool& p) {
    const u32 i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= n) return;
    u32 plane = i;
    const u32 w = p.in_width.take(plane), h = p.in_height.take(plane);
    float sum = 0.0f;
    u32 h_lo, h_hi, w_lo, w_hi;
    if constexpr (S > 0) {
        covering(h, p.output[H], p.kernel[H], S, p.before[H], 1, h_lo, h_hi);
        covering(w, p.output[W], p.kernel[W], S, p.before[W], 1, w_lo, w_hi);
        const u64 base = (u64)plane * p.output[H] * p.output[W];
        for (u32 oh = h_lo; oh < h_hi; oh++) {
            const u32 kh = h + p.before[H] - oh * S;
            for (u32 ow = w_lo; ow < w_hi; ow++) {
                const u32 kw = w + p.before[W] - ow * S;
                const u64 o = base + oh * p.output[W] + ow;
                if ((u32)index[o] == kh * p.kernel[W] + kw) sum += dy[o];
            }
        }
    } else {
        const u32 d = p.in_depth.take(plane);
        u32 d_lo, d_hi;
        covering(d, p.output[D], p.kernel[D], p.stride[D], p.before[D], p.dilation[D], d_lo, d_hi);
        covering(h, p.output[H], p.kernel[H], p.stride[H], p.before[H], p.dilation[H], h_lo, h_hi);
        covering(w, p.output[W], p.kernel[W], p.stride[W], p.before[W], p.dilation[W], w_lo, w_hi);
        for (u32 od = d_lo; od < d_hi; od++) {
            const u32 td = d + p.before[D] - od * p.stride[D];
            if (td % p.dilation[D]) continue;
            for (u32 oh = h_lo; oh < h_hi; oh++) {
                const u32 th = h + p.before[H] - oh * p.stride[H];
                if (th % p.dilation[H]) continue;
                for (u32 ow = w_lo; ow < w_hi; ow++) {
                    const u32 tw = w + p.before[W] - ow * p.stride[W];
                    if (tw % p.dilation[W]) continue;
                    const u32 tap = (td / p.dilation[D] * p.kernel[H] + th / p.dilation[H]) * p.kernel[W] +
                                    tw / p.dilation[W];
                    const u64 o = (((u64)plane * p.output[D] + od) * p.output[H] + oh) * p.output[W] + ow;
                    if ((u32)index[o] == tap) sum += dy[o];
                }
            }
        }
    }
    dx[i] = sum;
}

#define MAX_POOL_GRAD_PLANES(NAME, S, I)                                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                     \
        NAME(const float* dy, const I* index, float* dx, u32 n, const __grid_constant__ Pool p) {             \
        max_pool_grad_planes<S, I>(dy, index, dx, n, p);                                                      \
    }
MAX_POOL_GRAD_PLANES(max_pool_grad_planes0_u8, 0, u8)
MAX_POOL_GRAD_PLANES(max_pool_grad_planes0_i32, 0, i32)
MAX_POOL_GRAD_PLANES(max_pool_grad_planes1_u8, 1, u8)
MAX_POOL_GRAD_PLANES(max_pool_grad_planes2_u8, 2, u8)

template <u32 K>
__device__ __forceinline__ void average_pool_planes(const float* x, float* y, u32 n, const Pool& p) {
    const u32 i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= n) return;
    u32 plane = i;
    const u32 ow = p.out_width.take(plane), oh = p.out_height.take(plane);
    float sum = 0.0f;
    u32 od = 0;
    if constexpr (K > 0) {
        const float* from = x + (u64)plane * p.input[H] * p.input[W];
        const u32 h0 = oh * p.stride[H] - p.before[H], w0 = ow * p.stride[W] - p.before[W];
        float v[K * K];
#pragma unroll
        for (u32 k = 0; k < K * K; k++) {
            const u32 h = h0 + k / K, w = w0 + k % K;
            v[k] = h < p.input[H] && w < p.input[W] ? from[h * p.input[W] + w] : 0.0f;
        }
#pragma unroll
        for (u32 k = 0; k < K * K; k++) sum += v[k];
    } else {
        od = p.out_depth.take(plane);
        const float* from = x + (u64)plane * p.input[D] * p.input[H] * p.input[W];
        for (u32 kd = 0; kd < p.kernel[D]; kd++) {
            const u32 d = od * p.stride[D] + kd * p.dilation[D] - p.before[D];
            if (d >= p.input[D]) continue;
            for (u32 kh = 0; kh < p.kernel[H]; kh++) {
                const u32 h = oh * p.stride[H] + kh * p.dilation[H] - p.before[H];
                if (h >= p.input[H]) continue;
                float row = 0.0f;
                for (u32 kw = 0; kw < p.kernel[W]; kw++) {
                    const u32 w = ow * p.stride[W] + kw * p.dilation[W] - p.before[W];
                    if (w < p.input[W]) row += from[((u64)d * p.input[H] + h) * p.input[W] + w];
                }
                sum += row;
            }
        }
    }
    y[i] = sum * average(p, od, oh, ow);
}

#define AVERAGE_POOL_PLANES(NAME, K)                                                                          \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                     \
        NAME(const float* x, float* y, u32 n, const __grid_constant__ Pool p) {                               \
        average_pool_planes<K>(x, y, n, p);                                                                   \
    }
AVERAGE_POOL_PLANES(average_pool_planes0, 0)
AVERAGE_POOL_PLANES(average_pool_planes2, 2)
AVERAGE_POOL_PLANES(average_pool_planes3, 3)

template <u32 S>
__device__ __forceinline__ void average_pool_grad_planes(const float* dy, float* dx, u32 n, const Pool& p) {
    const u32 i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= n) return;
    u32 plane = i;
    const u32 w = p.in_width.take(plane), h = p.in_height.take(plane);
    float sum = 0.0f;
    u32 h_lo, h_hi, w_lo, w_hi;
    if constexpr (S > 0) {
        covering(h, p.output[H], p.kernel[H], S, p.before[H], 1, h_lo, h_hi);
        covering(w, p.output[W], p.kernel[W], S, p.before[W], 1, w_lo, w_hi);
        const u64 base = (u64)plane * p.output[H] * p.output[W];
        for (u32 oh = h_lo; oh < h_hi; oh++) {
            for (u32 ow = w_lo; ow < w_hi; ow++) sum += dy[base + oh * p.output[W] + ow] * average(p, 0, oh, ow);
        }
    } else {
        const u32 d = p.in_depth.take(plane);
        u32 d_lo, d_hi;
        covering(d, p.output[D], p.kernel[D], p.stride[D], p.before[D], p.dilation[D], d_lo, d_hi);
        covering(h, p.output[H], p.kernel[H], p.stride[H], p.before[H], p.dilation[H], h_lo, h_hi);
        covering(w, p.output[W], p.kernel[W], p.stride[W], p.before[W], p.dilation[W], w_lo, w_hi);
        for (u32 od = d_lo; od < d_hi; od++) {
            if ((d + p.before[D] - od * p.stride[D]) % p.dilation[D]) continue;
            for (u32 oh = h_lo; oh < h_hi; oh++) {
                if ((h + p.before[H] - oh * p.stride[H]) % p.dilation[H]) continue;
                for (u32 ow = w_lo; ow < w_hi; ow++) {
                    if ((w + p.before[W] - ow * p.stride[W]) % p.dilation[W]) continue;
                    const u64 o = (((u64)plane * p.output[D] + od) * p.output[H] + oh) * p.output[W] + ow;
                    sum += dy[o] * average(p, od, oh, ow);
                }
            }
        }
    }
    dx[i] = sum;
}

#define AVERAGE_POOL_GRAD_PLANES(NAME, S)                                                                     \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                     \
        NAME(const float* dy, float* dx, u32 n, const __grid_constant__ Pool p) {                             \
        average_pool_grad_planes<S>(dy, dx, n, p);                                                            \
    }
AVERAGE_POOL_GRAD_PLANES(average_pool_grad_planes0, 0)
AVERAGE_POOL_GRAD_PLANES(average_pool_grad_planes1, 1)
AVERAGE_POOL_GRAD_PLANES(average_pool_grad_planes2, 2)

// ---- channels last ---------------------------------------------------------------------

template <u32 V>
__device__ __forceinline__ void store_taps(u8* to, const Best (&best)[V]) {
    if constexpr (V == 4) {
        *reinterpret_cast<uchar4*>(to) = make_uchar4(best[0].tap, best[1].tap, best[2].tap, best[3].tap);
    } else {
        *to = (u8)best[0].tap;
    }
}
template <u32 V>
__device__ __forceinline__ void load_taps(const u8* from, u32 (&taps)[V]) {
    if constexpr (V == 4) {
        const uchar4 t = *reinterpret_cast<const uchar4*>(from);
        taps[0] = t.x;
        taps[1] = t.y;
        taps[2] = t.z;
        taps[3] = t.w;
    } else {
        taps[0] = *from;
    }
}
template <u32 V>
__device__ __forceinline__ void load_taps(const i32* from, u32 (&taps)[V]) {
#pragma unroll
    for (u32 e = 0; e < V; e++) taps[e] = (u32)from[e];
}

// p.channels counts groups of V channels. K > 0: a K by K window without dilation.
template <u32 V, u32 K>
__device__ __forceinline__ void max_pool_last(const float* x, float* y, u8* index8, i32* index32, u32 n,
                                              const Pool& p) {
    const u32 i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= n) return;
    u32 image = i;
    const u32 c = p.channels.take(image), ow = p.out_width.take(image), oh = p.out_height.take(image);
    const u32 row = p.channels.value * V;
    const float* from = x + (u64)image * p.input[H] * p.input[W] * row + c * V;
    Best best[V];
#pragma unroll
    for (u32 e = 0; e < V; e++) best[e] = {0.0f, 0, false};
    if constexpr (K > 0) {
        const u32 h0 = oh * p.stride[H] - p.before[H], w0 = ow * p.stride[W] - p.before[W];
        Vec<V> v[K * K];
#pragma unroll
        for (u32 k = 0; k < K * K; k++) {
            const u32 h = h0 + k / K, w = w0 + k % K;
            if (h < p.input[H] && w < p.input[W]) v[k] = load<V>(from + (u64)(h * p.input[W] + w) * row);
        }
#pragma unroll
        for (u32 k = 0; k < K * K; k++) {
            const u32 h = h0 + k / K, w = w0 + k % K;
            if (h < p.input[H] && w < p.input[W]) {
#pragma unroll
                for (u32 e = 0; e < V; e++) best[e].offer(v[k].v[e], k);
            }
        }
    } else {
        u32 tap = 0;
        for (u32 kh = 0; kh < p.kernel[H]; kh++) {
            const u32 h = oh * p.stride[H] + kh * p.dilation[H] - p.before[H];
            for (u32 kw = 0; kw < p.kernel[W]; kw++, tap++) {
                const u32 w = ow * p.stride[W] + kw * p.dilation[W] - p.before[W];
                if (h < p.input[H] && w < p.input[W]) {
                    const Vec<V> v = load<V>(from + ((u64)h * p.input[W] + w) * row);
#pragma unroll
                    for (u32 e = 0; e < V; e++) best[e].offer(v.v[e], tap);
                }
            }
        }
    }
    Vec<V> out;
#pragma unroll
    for (u32 e = 0; e < V; e++) out.v[e] = best[e].value;
    store<V>(y + (u64)i * V, out);
    if (index8) store_taps<V>(index8 + (u64)i * V, best);
    if (index32) {
#pragma unroll
        for (u32 e = 0; e < V; e++) index32[(u64)i * V + e] = (i32)best[e].tap;
    }
}

#define MAX_POOL_LAST(NAME, V, K)                                                                             \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                     \
        NAME(const float* x, float* y, u8* index8, i32* index32, u32 n, const __grid_constant__ Pool p) {     \
        max_pool_last<V, K>(x, y, index8, index32, n, p);                                                     \
    }
MAX_POOL_LAST(max_pool_last0_1, 1, 0)
MAX_POOL_LAST(max_pool_last0_4, 4, 0)
MAX_POOL_LAST(max_pool_last2_4, 4, 2)
MAX_POOL_LAST(max_pool_last3_4, 4, 3)

// S > 0: stride S, no dilation.
template <u32 V, u32 S, class I>
__device__ __forceinline__ void max_pool_grad_last(const float* dy, const I* index, float* dx, u32 n, const Pool& p) {
    const u32 i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= n) return;
    u32 image = i;
    const u32 c = p.channels.take(image), w = p.in_width.take(image), h = p.in_height.take(image);
    const u32 row = p.channels.value * V;
    const u32 sh = S > 0 ? S : p.stride[H], sw = S > 0 ? S : p.stride[W];
    const u32 dh = S > 0 ? 1 : p.dilation[H], dw = S > 0 ? 1 : p.dilation[W];
    u32 h_lo, h_hi, w_lo, w_hi;
    covering(h, p.output[H], p.kernel[H], sh, p.before[H], dh, h_lo, h_hi);
    covering(w, p.output[W], p.kernel[W], sw, p.before[W], dw, w_lo, w_hi);
    const u64 base = (u64)image * p.output[H] * p.output[W] * row + c * V;
    Vec<V> sum;
#pragma unroll
    for (u32 e = 0; e < V; e++) sum.v[e] = 0.0f;
    for (u32 oh = h_lo; oh < h_hi; oh++) {
        const u32 th = h + p.before[H] - oh * sh;
        if (S == 0 && th % dh) continue;
        for (u32 ow = w_lo; ow < w_hi; ow++) {
            const u32 tw = w + p.before[W] - ow * sw;
            if (S == 0 && tw % dw) continue;
            const u32 tap = th / dh * p.kernel[W] + tw / dw;
            const u64 o = base + (u64)(oh * p.output[W] + ow) * row;
            u32 at[V];
            load_taps<V>(index + o, at);
            const Vec<V> g = load<V>(dy + o);
#pragma unroll
            for (u32 e = 0; e < V; e++) sum.v[e] += at[e] == tap ? g.v[e] : 0.0f;
        }
    }
    store<V>(dx + (u64)i * V, sum);
}

#define MAX_POOL_GRAD_LAST(NAME, V, S, I)                                                                     \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                     \
        NAME(const float* dy, const I* index, float* dx, u32 n, const __grid_constant__ Pool p) {             \
        max_pool_grad_last<V, S, I>(dy, index, dx, n, p);                                                     \
    }
MAX_POOL_GRAD_LAST(max_pool_grad_last0_1_u8, 1, 0, u8)
MAX_POOL_GRAD_LAST(max_pool_grad_last0_1_i32, 1, 0, i32)
MAX_POOL_GRAD_LAST(max_pool_grad_last0_4_u8, 4, 0, u8)
MAX_POOL_GRAD_LAST(max_pool_grad_last0_4_i32, 4, 0, i32)
MAX_POOL_GRAD_LAST(max_pool_grad_last1_4_u8, 4, 1, u8)
MAX_POOL_GRAD_LAST(max_pool_grad_last2_4_u8, 4, 2, u8)

template <u32 V, u32 K>
__device__ __forceinline__ void average_pool_last(const float* x, float* y, u32 n, const Pool& p) {
    const u32 i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= n) return;
    u32 image = i;
    const u32 c = p.channels.take(image), ow = p.out_width.take(image), oh = p.out_height.take(image);
    const u32 row = p.channels.value * V;
    const float* from = x + (u64)image * p.input[H] * p.input[W] * row + c * V;
    Vec<V> sum;
#pragma unroll
    for (u32 e = 0; e < V; e++) sum.v[e] = 0.0f;
    if constexpr (K > 0) {
        const u32 h0 = oh * p.stride[H] - p.before[H], w0 = ow * p.stride[W] - p.before[W];
        Vec<V> v[K * K];
#pragma unroll
        for (u32 k = 0; k < K * K; k++) {
            const u32 h = h0 + k / K, w = w0 + k % K;
            if (h < p.input[H] && w < p.input[W]) {
                v[k] = load<V>(from + (u64)(h * p.input[W] + w) * row);
            } else {
#pragma unroll
                for (u32 e = 0; e < V; e++) v[k].v[e] = 0.0f;
            }
        }
#pragma unroll
        for (u32 k = 0; k < K * K; k++) {
#pragma unroll
            for (u32 e = 0; e < V; e++) sum.v[e] += v[k].v[e];
        }
    } else {
        for (u32 kh = 0; kh < p.kernel[H]; kh++) {
            const u32 h = oh * p.stride[H] + kh * p.dilation[H] - p.before[H];
            if (h >= p.input[H]) continue;
            Vec<V> line;
#pragma unroll
            for (u32 e = 0; e < V; e++) line.v[e] = 0.0f;
            for (u32 kw = 0; kw < p.kernel[W]; kw++) {
                const u32 w = ow * p.stride[W] + kw * p.dilation[W] - p.before[W];
                if (w >= p.input[W]) continue;
                const Vec<V> v = load<V>(from + ((u64)h * p.input[W] + w) * row);
#pragma unroll
                for (u32 e = 0; e < V; e++) line.v[e] += v.v[e];
            }
#pragma unroll
            for (u32 e = 0; e < V; e++) sum.v[e] += line.v[e];
        }
    }
    const float factor = average(p, 0, oh, ow);
#pragma unroll
    for (u32 e = 0; e < V; e++) sum.v[e] *= factor;
    store<V>(y + (u64)i * V, sum);
}

#define AVERAGE_POOL_LAST(NAME, V, K)                                                                         \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                     \
        NAME(const float* x, float* y, u32 n, const __grid_constant__ Pool p) {                               \
        average_pool_last<V, K>(x, y, n, p);                                                                  \
    }
AVERAGE_POOL_LAST(average_pool_last0_1, 1, 0)
AVERAGE_POOL_LAST(average_pool_last0_4, 4, 0)
AVERAGE_POOL_LAST(average_pool_last2_4, 4, 2)
AVERAGE_POOL_LAST(average_pool_last3_4, 4, 3)

template <u32 V>
__device__ __forceinline__ void average_pool_grad_last(const float* dy, float* dx, u32 n, const Pool& p) {
    const u32 i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= n) return;
    u32 image = i;
    const u32 c = p.channels.take(image), w = p.in_width.take(image), h = p.in_height.take(image);
    const u32 row = p.channels.value * V;
    u32 h_lo, h_hi, w_lo, w_hi;
    covering(h, p.output[H], p.kernel[H], p.stride[H], p.before[H], p.dilation[H], h_lo, h_hi);
    covering(w, p.output[W], p.kernel[W], p.stride[W], p.before[W], p.dilation[W], w_lo, w_hi);
    const u64 base = (u64)image * p.output[H] * p.output[W] * row + c * V;
    Vec<V> sum;
#pragma unroll
    for (u32 e = 0; e < V; e++) sum.v[e] = 0.0f;
    for (u32 oh = h_lo; oh < h_hi; oh++) {
        if ((h + p.before[H] - oh * p.stride[H]) % p.dilation[H]) continue;
        for (u32 ow = w_lo; ow < w_hi; ow++) {
            if ((w + p.before[W] - ow * p.stride[W]) % p.dilation[W]) continue;
            const Vec<V> g = load<V>(dy + base + (u64)(oh * p.output[W] + ow) * row);
            const float factor = average(p, 0, oh, ow);
#pragma unroll
            for (u32 e = 0; e < V; e++) sum.v[e] = fmaf(g.v[e], factor, sum.v[e]);
        }
    }
    store<V>(dx + (u64)i * V, sum);
}

#define AVERAGE_POOL_GRAD_LAST(NAME, V)                                                                       \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                     \
        NAME(const float* dy, float* dx, u32 n, const __grid_constant__ Pool p) {                             \
        average_pool_grad_last<V>(dy, dx, n, p);                                                              \
    }
AVERAGE_POOL_GRAD_LAST(average_pool_grad_last_1, 1)
AVERAGE_POOL_GRAD_LAST(average_pool_grad_last_4, 4)
