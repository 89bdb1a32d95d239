// Pools of row-major tensors with up to three spatial dimensions, one element a thread.
#include "pool.cuh"

template <class T>
__device__ __forceinline__ void max_pool_planes(const T* x, T* y, u8* index8, i32* index32, u32 n,
                                                const Pool& p) {
    const u32 i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= n) return;
    u32 plane = i;
    const u32 ow = p.out_width.take(plane), oh = p.out_height.take(plane), od = p.out_depth.take(plane);
    const T* from = x + (u64)plane * p.input[D] * p.input[H] * p.input[W];
    Best best = {0.0f, 0};
    bool any = false;
    u32 tap = 0;
    for (u32 kd = 0; kd < p.kernel[D]; kd++) {
        const u32 d = od * p.stride[D] + kd * p.dilation[D] - p.before[D];
        for (u32 kh = 0; kh < p.kernel[H]; kh++) {
            const u32 h = oh * p.stride[H] + kh * p.dilation[H] - p.before[H];
            for (u32 kw = 0; kw < p.kernel[W]; kw++, tap++) {
                const u32 w = ow * p.stride[W] + kw * p.dilation[W] - p.before[W];
                // Positions before the input wrap around to large numbers.
                if (d < p.input[D] && h < p.input[H] && w < p.input[W]) {
                    const float v = get(from + ((u64)d * p.input[H] + h) * p.input[W] + w);
                    if (!any) best = {v, tap};
                    best.offer(v, tap);
                    any = true;
                }
            }
        }
    }
    put(y + i, best.value);
    if (index8) index8[i] = (u8)best.tap;
    if (index32) index32[i] = (i32)best.tap;
}

#define MAX_POOL_PLANES(NAME, T)                                                                              \
    extern "C" __global__ void __launch_bounds__(THREADS, 4)                                                \
        NAME(const T* x, T* y, u8* index8, i32* index32, u32 n, const __grid_constant__ Pool p) {     \
        max_pool_planes(x, y, index8, index32, n, p);                                                         \
    }

// One thread an input element.
template <class I, class T>
__device__ __forceinline__ void max_pool_grad_planes(const T* dy, const I* index, T* dx, u32 n, const Pool& p) {
    const u32 i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= n) return;
    u32 plane = i;
    const u32 w = p.in_width.take(plane), h = p.in_height.take(plane);
    float sum = 0.0f;
    const u32 d = p.in_depth.take(plane);
    u32 d_lo, d_hi, h_lo, h_hi, w_lo, w_hi;
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
                if ((u32)index[o] == tap) sum += get(dy + o);
            }
        }
    }
    put(dx + i, sum);
}

#define MAX_POOL_GRAD_PLANES(NAME, T, I)                                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS, 4)                                                \
        NAME(const T* dy, const I* index, T* dx, u32 n, const __grid_constant__ Pool p) {             \
        max_pool_grad_planes<I>(dy, index, dx, n, p);                                                         \
    }

// K > 0: a K by K window in two dimensions without dilation.
template <u32 K, class T>
__device__ __forceinline__ void average_pool_planes(const T* x, T* y, u32 n, const Pool& p) {
    const u32 i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= n) return;
    u32 plane = i;
    const u32 ow = p.out_width.take(plane), oh = p.out_height.take(plane);
    float sum = 0.0f;
    u32 od = 0;
    if constexpr (K > 0) {
        const T* from = x + (u64)plane * p.input[H] * p.input[W];
        const u32 h0 = oh * p.stride[H] - p.before[H], w0 = ow * p.stride[W] - p.before[W];
        float v[K * K];
#pragma unroll
        for (u32 k = 0; k < K * K; k++) {
            const u32 h = h0 + k / K, w = w0 + k % K;
            v[k] = h < p.input[H] && w < p.input[W] ? get(from + h * p.input[W] + w) : 0.0f;
        }
#pragma unroll
        for (u32 k = 0; k < K * K; k++) sum += v[k];
    } else {
        od = p.out_depth.take(plane);
        const T* from = x + (u64)plane * p.input[D] * p.input[H] * p.input[W];
        for (u32 kd = 0; kd < p.kernel[D]; kd++) {
            const u32 d = od * p.stride[D] + kd * p.dilation[D] - p.before[D];
            if (d >= p.input[D]) continue;
            for (u32 kh = 0; kh < p.kernel[H]; kh++) {
                const u32 h = oh * p.stride[H] + kh * p.dilation[H] - p.before[H];
                if (h >= p.input[H]) continue;
                float row = 0.0f;
                for (u32 kw = 0; kw < p.kernel[W]; kw++) {
                    const u32 w = ow * p.stride[W] + kw * p.dilation[W] - p.before[W];
                    if (w < p.input[W]) row += get(from + ((u64)d * p.input[H] + h) * p.input[W] + w);
                }
                sum += row;
            }
        }
    }
    put(y + i, sum * average(p, od, oh, ow));
}

#define AVERAGE_POOL_PLANES(NAME, T, K)                                                                       \
    extern "C" __global__ void __launch_bounds__(THREADS, 4)                                                \
        NAME(const T* x, T* y, u32 n, const __grid_constant__ Pool p) {                               \
        average_pool_planes<K>(x, y, n, p);                                                                   \
    }

template <class T>
__device__ __forceinline__ void average_grad_planes(const T* dy, T* dx, u32 n, const Pool& p) {
    const u32 i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= n) return;
    u32 plane = i;
    const u32 w = p.in_width.take(plane), h = p.in_height.take(plane);
    float sum = 0.0f;
    const u32 d = p.in_depth.take(plane);
    u32 d_lo, d_hi, h_lo, h_hi, w_lo, w_hi;
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
                sum += get(dy + o) * average(p, od, oh, ow);
            }
        }
    }
    put(dx + i, sum);
}

#define AVERAGE_POOL_GRAD_PLANES(NAME, T)                                                                     \
    extern "C" __global__ void __launch_bounds__(THREADS, 4)                                                \
        NAME(const T* dy, T* dx, u32 n, const __grid_constant__ Pool p) {                             \
        average_grad_planes(dy, dx, n, p);                                                               \
    }
