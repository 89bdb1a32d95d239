// Local response normalisation across channels (Krizhevsky et al., NIPS 2012), one element a
// thread. Neighbouring channels lie `step` elements apart.
#include "common.cuh"

struct Lrn {
    Divisor inner, channels;  // elements behind a channel; channels
    u32 before, after;        // channels of a window in front and behind
    float factor, bias, beta; // base = bias + factor * sum of squares; y = x * base^-beta
    float slope;              // 2 * alpha * beta / size
};

template <class T>
__device__ __forceinline__ float base_at(const T* x, u64 column, u32 c, u64 step, const Lrn& p) {
    const u32 lo = c > p.before ? c - p.before : 0, hi = min(c + p.after + 1, p.channels.value);
    float sum = 0.0f;
    for (u32 j = lo; j < hi; j++) {
        const float v = get(x + column + j * step);
        sum = fmaf(v, v, sum);
    }
    return fmaf(p.factor, sum, p.bias);
}

// base^-beta; the usual exponent needs no general power.
__device__ __forceinline__ float scale_of(float base, float beta) {
    if (beta == 0.75f) {
        const float root = sqrtf(base);
        return 1.0f / (root * sqrtf(root));
    }
    return powf(base, -beta);
}

// The channel of element i and the element of channel 0 at the same position.
__device__ __forceinline__ u32 locate(u32 i, const Lrn& p, u64& column) {
    u32 rest = i;
    const u32 at = p.inner.take(rest), c = p.channels.take(rest);
    column = (u64)rest * p.channels.value * p.inner.value + at;
    return c;
}

template <class T>
__device__ __forceinline__ void lrn(const T* x, T* y, u32 n, const Lrn& p) {
    const u32 i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= n) return;
    u64 column;
    const u32 c = locate(i, p, column);
    put(y + i, get(x + i) * scale_of(base_at(x, column, c, p.inner.value, p), p.beta));
}

#define LRN(NAME, T)                                                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS) NAME(const T* x, T* y, u32 n, const Lrn p) {         \
        lrn(x, y, n, p);                                                                                       \
    }

// dx_i = dy_i base_i^-beta - slope x_i * sum over windows j holding i of dy_j y_j / base_j.
template <class T>
__device__ __forceinline__ void lrn_grad(const T* dy, const T* x, const T* y, T* dx, u32 n, const Lrn& p) {
    const u32 i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= n) return;
    u64 column;
    const u32 c = locate(i, p, column);
    const u64 step = p.inner.value;
    const u32 lo = c > p.after ? c - p.after : 0, hi = min(c + p.before + 1, p.channels.value);
    float sum = 0.0f, own = 0.0f;
    for (u32 j = lo; j < hi; j++) {
        const u64 at = column + j * step;
        const float base = base_at(x, column, j, step, p);
        const float g = get(dy + at);
        if (j == c) own = g * scale_of(base, p.beta);
        sum += g * get(y + at) / base;
    }
    put(dx + i, own - p.slope * get(x + i) * sum);
}

#define LRN_GRAD(NAME, T)                                                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                      \
        NAME(const T* dy, const T* x, const T* y, T* dx, u32 n, const Lrn p) {                                 \
        lrn_grad(dy, x, y, dx, n, p);                                                                          \
    }
