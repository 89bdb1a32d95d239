// Softmax and log-softmax along one axis of [outer, axis, inner], and their gradients. Shifted
// by the maximum, so that no exponential overflows; sums in f64.
#include "common.cuh"

// One of n elements, `step` apart, from the maximum and the sum of the exponentials.
template <bool LOG>
struct Scale {
    float top;
    double shift;
    __device__ __forceinline__ Scale(float top, double sum) : top(top), shift(LOG ? (double)top + log(sum) : 1.0 / sum) {}
    __device__ __forceinline__ float operator()(float x) const {
        if constexpr (LOG) {
            return (float)((double)x - shift);
        } else {
            return (float)((double)expf(x - top) * shift);
        }
    }
};

// Contiguous rows, each by a group of G threads.
template <u32 G, bool LOG>
__device__ __forceinline__ void softmax_rows(const float* x, float* y, u32 rows, u32 axis) {
    const u32 lane = threadIdx.x % G, row = blockIdx.x * (THREADS / G) + threadIdx.x / G;
    // A warp of a row out of range only takes part in the sums.
    const u32 n = row < rows ? axis : 0;
    const float* from = x + (u64)row * axis;
    float* to = y + (u64)row * axis;
    float top = -__int_as_float(0x7f800000);
    for (u32 i = lane; i < n; i += G) top = fmaxf(top, from[i]);
    top = (float)group_reduce<G, Max>((double)top);
    double sum = 0.0;
    for (u32 i = lane; i < n; i += G) sum += (double)expf(from[i] - top);
    sum = group_reduce<G, Sum>(sum);
    const Scale<LOG> scale(top, sum);
    for (u32 i = lane; i < n; i += G) to[i] = scale(from[i]);
}

// Lines across rows of `inner` elements, one a thread.
template <bool LOG>
__device__ __forceinline__ void softmax_columns(const float* x, float* y, u32 lines, u32 axis, Divisor inner) {
    const u32 line = blockIdx.x * THREADS + threadIdx.x;
    if (line >= lines) return;
    u32 outer = line;
    const u32 at = inner.take(outer);
    const u64 base = (u64)outer * axis * inner.value + at;
    float top = -__int_as_float(0x7f800000);
    for (u32 a = 0; a < axis; a++) top = fmaxf(top, x[base + (u64)a * inner.value]);
    double sum = 0.0;
    for (u32 a = 0; a < axis; a++) sum += (double)expf(x[base + (u64)a * inner.value] - top);
    const Scale<LOG> scale(top, sum);
    for (u32 a = 0; a < axis; a++) y[base + (u64)a * inner.value] = scale(x[base + (u64)a * inner.value]);
}

// dx = y (dy - sum(dy y)), or with LOG dy - exp(y) sum(dy).
template <bool LOG>
__device__ __forceinline__ double gradient_term(float dy, float y) {
    return LOG ? (double)dy : (double)dy * (double)y;
}
template <bool LOG>
__device__ __forceinline__ float gradient(float dy, float y, double sum) {
    return LOG ? (float)((double)dy - (double)expf(y) * sum) : (float)((double)y * ((double)dy - sum));
}

template <u32 G, bool LOG>
__device__ __forceinline__ void softmax_grad_rows(const float* dy, const float* y, float* dx, u32 rows, u32 axis) {
    const u32 lane = threadIdx.x % G, row = blockIdx.x * (THREADS / G) + threadIdx.x / G;
    const u32 n = row < rows ? axis : 0;
    const u64 base = (u64)row * axis;
    double sum = 0.0;
    for (u32 i = lane; i < n; i += G) sum += gradient_term<LOG>(dy[base + i], y[base + i]);
    sum = group_reduce<G, Sum>(sum);
    for (u32 i = lane; i < n; i += G) dx[base + i] = gradient<LOG>(dy[base + i], y[base + i], sum);
}

template <bool LOG>
__device__ __forceinline__ void softmax_grad_columns(const float* dy, const float* y, float* dx, u32 lines, u32 axis,
                                                     Divisor inner) {
    const u32 line = blockIdx.x * THREADS + threadIdx.x;
    if (line >= lines) return;
    u32 outer = line;
    const u32 at = inner.take(outer);
    const u64 base = (u64)outer * axis * inner.value + at;
    double sum = 0.0;
    for (u32 a = 0; a < axis; a++) {
        const u64 i = base + (u64)a * inner.value;
        sum += gradient_term<LOG>(dy[i], y[i]);
    }
    for (u32 a = 0; a < axis; a++) {
        const u64 i = base + (u64)a * inner.value;
        dx[i] = gradient<LOG>(dy[i], y[i], sum);
    }
}

#define SOFTMAX_ROWS(NAME, G, LOG)                                                                        \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                 \
        NAME(const float* x, float* y, u32 rows, u32 axis) {                                              \
        softmax_rows<G, LOG>(x, y, rows, axis);                                                           \
    }
#define SOFTMAX_COLUMNS(NAME, LOG)                                                                        \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                 \
        NAME(const float* x, float* y, u32 lines, u32 axis, Divisor inner) {                              \
        softmax_columns<LOG>(x, y, lines, axis, inner);                                                   \
    }
#define SOFTMAX_GRAD_ROWS(NAME, G, LOG)                                                                   \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                 \
        NAME(const float* dy, const float* y, float* dx, u32 rows, u32 axis) {                            \
        softmax_grad_rows<G, LOG>(dy, y, dx, rows, axis);                                                 \
    }
#define SOFTMAX_GRAD_COLUMNS(NAME, LOG)                                                                   \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                 \
        NAME(const float* dy, const float* y, float* dx, u32 lines, u32 axis, Divisor inner) {            \
        softmax_grad_columns<LOG>(dy, y, dx, lines, axis, inner);                                         \
    }
