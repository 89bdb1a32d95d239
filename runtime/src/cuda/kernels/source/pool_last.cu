// Pools of channels-last tensors, V channels a thread.
#include "pool.cuh"

template <u32 V>
__device__ __forceinline__ void store_taps(u8* to, const Best (&best)[V]) {
    if constexpr (V == 4) {
        *reinterpret_cast<uchar4*>(to) = make_uchar4(best[0].tap, best[1].tap, best[2].tap, best[3].tap);
    } else {
        *to = (u8)best[0].tap;
    }
}
// Indices of V maxima.
template <u32 V, class I>
struct Taps {
    I v[V];
};
template <u32 V>
__device__ __forceinline__ Taps<V, u8> load_taps(const u8* from) {
    Taps<V, u8> r;
    if constexpr (V == 4) {
        const uchar4 t = *reinterpret_cast<const uchar4*>(from);
        r.v[0] = t.x;
        r.v[1] = t.y;
        r.v[2] = t.z;
        r.v[3] = t.w;
    } else {
        r.v[0] = *from;
    }
    return r;
}
template <u32 V>
__device__ __forceinline__ Taps<V, i32> load_taps(const i32* from) {
    Taps<V, i32> r;
#pragma unroll
    for (u32 e = 0; e < V; e++) r.v[e] = from[e];
    return r;
}

// p.channels counts groups of V channels.
template <u32 V, class T>
__device__ __forceinline__ void max_pool_last(const T* x, T* y, u8* index8, i32* index32, u32 n,
                                              const Pool& p) {
    const u32 i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= n) return;
    u32 image = i;
    const u32 c = p.channels.take(image), ow = p.out_width.take(image), oh = p.out_height.take(image);
    const u32 row = p.channels.value * V;
    const T* from = x + (u64)image * p.input[H] * p.input[W] * row + c * V;
    const u32 h0 = oh * p.stride[H] - p.before[H], w0 = ow * p.stride[W] - p.before[W];
    Best best[V];
    bool any = false;
    u32 tap = 0;
    for (u32 kh = 0; kh < p.kernel[H]; kh++) {
        const u32 h = h0 + kh * p.dilation[H];
        for (u32 kw = 0; kw < p.kernel[W]; kw++, tap++) {
            const u32 w = w0 + kw * p.dilation[W];
            if (h < p.input[H] && w < p.input[W]) {
                const Vec<V> v = load<V>(from + ((u64)h * p.input[W] + w) * row);
#pragma unroll
                for (u32 e = 0; e < V; e++) {
                    if (!any) best[e] = {v.v[e], tap};
                    best[e].offer(v.v[e], tap);
                }
                any = true;
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

#define MAX_POOL_LAST(NAME, T, V)                                                                             \
    extern "C" __global__ void __launch_bounds__(THREADS, 4)                                                  \
        NAME(const T* x, T* y, u8* index8, i32* index32, u32 n, const __grid_constant__ Pool p) {     \
        max_pool_last<V>(x, y, index8, index32, n, p);                                                        \
    }

template <u32 V, class I, class T>
__device__ __forceinline__ void max_pool_grad_last(const T* dy, const I* index, T* dx, u32 n, const Pool& p) {
    const u32 i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= n) return;
    u32 image = i;
    const u32 c = p.channels.take(image), w = p.in_width.take(image), h = p.in_height.take(image);
    const u32 row = p.channels.value * V;
    const u64 base = (u64)image * p.output[H] * p.output[W] * row + c * V;
    Vec<V> sum;
#pragma unroll
    for (u32 e = 0; e < V; e++) sum.v[e] = 0.0f;
    u32 h_lo, h_hi, w_lo, w_hi;
    covering(h, p.output[H], p.kernel[H], p.stride[H], p.before[H], p.dilation[H], h_lo, h_hi);
    covering(w, p.output[W], p.kernel[W], p.stride[W], p.before[W], p.dilation[W], w_lo, w_hi);
    for (u32 oh = h_lo; oh < h_hi; oh++) {
        const u32 th = h + p.before[H] - oh * p.stride[H];
        if (th % p.dilation[H]) continue;
        for (u32 ow = w_lo; ow < w_hi; ow++) {
            const u32 tw = w + p.before[W] - ow * p.stride[W];
            if (tw % p.dilation[W]) continue;
            const u32 tap = th / p.dilation[H] * p.kernel[W] + tw / p.dilation[W];
            const u64 o = base + (u64)(oh * p.output[W] + ow) * row;
            const Taps<V, I> at = load_taps<V>(index + o);
            const Vec<V> g = load<V>(dy + o);
#pragma unroll
            for (u32 e = 0; e < V; e++) sum.v[e] += (u32)at.v[e] == tap ? g.v[e] : 0.0f;
        }
    }
    store<V>(dx + (u64)i * V, sum);
}

#define MAX_POOL_GRAD_LAST(NAME, T, V, I)                                                                     \
    extern "C" __global__ void __launch_bounds__(THREADS, 4)                                                  \
        NAME(const T* dy, const I* index, T* dx, u32 n, const __grid_constant__ Pool p) {             \
        max_pool_grad_last<V, I>(dy, index, dx, n, p);                                                        \
    }

// K > 0: a K by K window without dilation.
template <u32 V, u32 K, class T>
__device__ __forceinline__ void average_pool_last(const T* x, T* y, u32 n, const Pool& p) {
    const u32 i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= n) return;
    u32 image = i;
    const u32 c = p.channels.take(image), ow = p.out_width.take(image), oh = p.out_height.take(image);
    const u32 row = p.channels.value * V;
    const T* from = x + (u64)image * p.input[H] * p.input[W] * row + c * V;
    Vec<V> sum;
#pragma unroll
    for (u32 e = 0; e < V; e++) sum.v[e] = 0.0f;
    if constexpr (K > 0) {
        const u32 h0 = oh * p.stride[H] - p.before[H], w0 = ow * p.stride[W] - p.before[W];
        Pack<T, V> v[K * K];
#pragma unroll
        for (u32 k = 0; k < K * K; k++) {
            const u32 h = h0 + k / K, w = w0 + k % K;
            if (h < p.input[H] && w < p.input[W]) {
                v[k] = fetch<V>(from + (u64)(h * p.input[W] + w) * row);
            } else {
                v[k] = Pack<T, V>{};
            }
        }
#pragma unroll
        for (u32 k = 0; k < K * K; k++) {
#pragma unroll
            for (u32 e = 0; e < V; e++) sum.v[e] += v[k][e];
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

#define AVERAGE_POOL_LAST(NAME, T, V, K)                                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS, 4)                                                  \
        NAME(const T* x, T* y, u32 n, const __grid_constant__ Pool p) {                               \
        average_pool_last<V, K>(x, y, n, p);                                                                  \
    }

template <u32 V, class T>
__device__ __forceinline__ void average_pool_grad_last(const T* dy, T* dx, u32 n, const Pool& p) {
    const u32 i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= n) return;
    u32 image = i;
    const u32 c = p.channels.take(image), w = p.in_width.take(image), h = p.in_height.take(image);
    const u32 row = p.channels.value * V;
    const u64 base = (u64)image * p.output[H] * p.output[W] * row + c * V;
    Vec<V> sum;
#pragma unroll
    for (u32 e = 0; e < V; e++) sum.v[e] = 0.0f;
    u32 h_lo, h_hi, w_lo, w_hi;
    covering(h, p.output[H], p.kernel[H], p.stride[H], p.before[H], p.dilation[H], h_lo, h_hi);
    covering(w, p.output[W], p.kernel[W], p.stride[W], p.before[W], p.dilation[W], w_lo, w_hi);
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

#define AVERAGE_POOL_GRAD_LAST(NAME, T, V)                                                                    \
    extern "C" __global__ void __launch_bounds__(THREADS, 4)                                                  \
        NAME(const T* dy, T* dx, u32 n, const __grid_constant__ Pool p) {                             \
        average_pool_grad_last<V>(dy, dx, n, p);                                                              \
    }
