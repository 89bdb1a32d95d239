// The pass of batch normalisation that applies the coefficients.
#include "batchnorm.cuh"

// Where the channel of an element comes from.
enum Order : u32 {
    LAST4,    // channels last, a multiple of 4: `channels` counts groups of 4
    PLANES4,  // planes of a multiple of 4 elements: `plane` counts groups of 4
    LAST1,    // channels last
    PLANES1,  // planes
};

struct Where {
    Divisor channels, plane;
};

// The channels of the four elements from 4 * i on.
template <u32 ORDER>
__device__ __forceinline__ void channels_of(const Where& at, u32 i, u32 (&c)[4]) {
    if constexpr (ORDER == LAST4) {
        const u32 group = at.channels.take(i);
#pragma unroll
        for (u32 e = 0; e < 4; e++) c[e] = 4 * group + e;
    } else if constexpr (ORDER == PLANES4) {
        u32 plane = at.plane.quotient(i);
        const u32 channel = at.channels.take(plane);
#pragma unroll
        for (u32 e = 0; e < 4; e++) c[e] = channel;
    } else {
#pragma unroll
        for (u32 e = 0; e < 4; e++) {
            u32 rest = 4 * i + e;
            if constexpr (ORDER == PLANES1) rest = at.plane.quotient(rest);
            c[e] = at.channels.take(rest);
        }
    }
}

// Coefficient array `which` at the channels of one group of four elements.
template <u32 ORDER>
__device__ __forceinline__ Vec<4> pick(const float* coefficients, u32 which, u32 channels, const u32 (&c)[4]) {
    const float* from = coefficients + which * channels;
    if constexpr (ORDER == LAST4) {
        return load<4>(from + c[0]);
    } else {
        Vec<4> r;
        if constexpr (ORDER == PLANES4) {
            r.v[0] = r.v[1] = r.v[2] = r.v[3] = from[c[0]];
        } else {
#pragma unroll
            for (u32 e = 0; e < 4; e++) r.v[e] = from[c[e]];
        }
        return r;
    }
}

__device__ __forceinline__ float normalised(float x, float mean, float factor, float bias) {
    return fmaf(x - mean, factor, bias);
}

// Blocks run from the end of the tensor, where the cache still holds what the sums read last.
__device__ __forceinline__ u64 first_item_from_end() {
    return (u64)(gridDim.x - 1 - blockIdx.x) * (THREADS * ITEMS) + threadIdx.x;
}

// y = [relu](normalised x [+ added]); y may be x.
template <u32 ORDER, bool RELU, bool ADD>
__device__ __forceinline__ void bn_apply(const float* x, const float* added, float* y, const float* coefficients,
                                         u64 n, u32 channels, const Where& at) {
    const u64 vectors = n / 4, first = first_item_from_end();
    Vec<4> v[ITEMS], r[ITEMS];
#pragma unroll
    for (u32 k = 0; k < ITEMS; k++) {
        const u64 i = first + k * THREADS;
        if (i < vectors) {
            v[k] = load<4>(x + 4 * i);
            if constexpr (ADD) r[k] = load<4>(added + 4 * i);
        }
    }
#pragma unroll
    for (u32 k = 0; k < ITEMS; k++) {
        const u64 i = first + k * THREADS;
        if (i < vectors) {
            u32 c[4];
            channels_of<ORDER>(at, (u32)i, c);
            const Vec<4> mean = pick<ORDER>(coefficients, 0, channels, c);
            const Vec<4> factor = pick<ORDER>(coefficients, 1, channels, c);
            const Vec<4> bias = pick<ORDER>(coefficients, 2, channels, c);
#pragma unroll
            for (u32 e = 0; e < 4; e++) {
                float t = normalised(v[k].v[e], mean.v[e], factor.v[e], bias.v[e]);
                if constexpr (ADD) t += r[k].v[e];
                if constexpr (RELU) t = t <= 0.0f ? 0.0f : t;
                v[k].v[e] = t;
            }
            store<4>(y + 4 * i, v[k]);
        }
    }
    if constexpr (ORDER == LAST1 || ORDER == PLANES1) {
        const u64 tail = 4 * vectors + first;
        if (first < 4 && tail < n) {
            u32 c[4];
            channels_of<ORDER>(at, (u32)vectors, c);
            // The tail has up to three elements; a loop keeps the array in registers.
#pragma unroll
            for (u32 e = 0; e < 4; e++) {
                if (e == first) {
                    float t = normalised(x[tail], coefficients[c[e]], coefficients[channels + c[e]],
                                         coefficients[2 * channels + c[e]]);
                    if constexpr (ADD) t += added[tail];
                    if constexpr (RELU) t = t <= 0.0f ? 0.0f : t;
                    y[tail] = t;
                }
            }
        }
    }
}

#define BN_APPLY(NAME, ORDER, RELU, ADD)                                                                             \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                         \
        NAME(const float* x, const float* added, float* y, const float* coefficients, u64 n, u32 channels,        \
             const Where at) {                                                                                    \
        bn_apply<ORDER, RELU, ADD>(x, added, y, coefficients, n, channels, at);                                   \
    }

// dx = factor * ((g - third) - (x - mean) * fourth) with the gated g; without STATISTICS, third
// and fourth are zero and x is not read unless gated by it. With SEND, g goes to `sent` as well
// (the gradient of a tensor that was added before the ReLU). dx may be dy.
template <u32 ORDER, bool STATISTICS, u32 GATE, bool SEND>
__device__ __forceinline__ void bn_grad_apply(const float* dy, const float* x, const float* gate, const float* bias,
                                              float* dx, float* sent, const float* coefficients, u64 n, u32 channels,
                                              const Where& at) {
    constexpr bool READS_X = STATISTICS || GATE == 2;
    const u64 vectors = n / 4, first = first_item_from_end();
    Vec<4> g[ITEMS], v[ITEMS], open[ITEMS];
#pragma unroll
    for (u32 k = 0; k < ITEMS; k++) {
        const u64 i = first + k * THREADS;
        if (i < vectors) {
            g[k] = load<4>(dy + 4 * i);
            if constexpr (READS_X) v[k] = load<4>(x + 4 * i);
            if constexpr (GATE == 1) open[k] = load<4>(gate + 4 * i);
        }
    }
#pragma unroll
    for (u32 k = 0; k < ITEMS; k++) {
        const u64 i = first + k * THREADS;
        if (i < vectors) {
            u32 c[4];
            channels_of<ORDER>(at, (u32)i, c);
            Vec<4> mean, third, fourth, shift;
            const Vec<4> factor = pick<ORDER>(coefficients, 1, channels, c);
            if constexpr (READS_X) mean = pick<ORDER>(coefficients, 0, channels, c);
            if constexpr (STATISTICS) {
                third = pick<ORDER>(coefficients, 2, channels, c);
                fourth = pick<ORDER>(coefficients, 3, channels, c);
            }
            if constexpr (GATE == 2) shift = pick<ORDER>(bias, 0, channels, c);
            Vec<4> out;
#pragma unroll
            for (u32 e = 0; e < 4; e++) {
                const float d =
                    gated<GATE>(g[k].v[e], READS_X ? v[k].v[e] : 0.0f, GATE == 1 ? open[k].v[e] : 0.0f,
                                READS_X ? mean.v[e] : 0.0f, factor.v[e], GATE == 2 ? shift.v[e] : 0.0f);
                g[k].v[e] = d;
                out.v[e] = STATISTICS ? factor.v[e] * fmaf(mean.v[e] - v[k].v[e], fourth.v[e], d - third.v[e])
                                      : factor.v[e] * d;
            }
            if constexpr (SEND) store<4>(sent + 4 * i, g[k]);
            store<4>(dx + 4 * i, out);
        }
    }
    if constexpr (ORDER == LAST1 || ORDER == PLANES1) {
        const u64 tail = 4 * vectors + first;
        if (first < 4 && tail < n) {
            u32 c[4];
            channels_of<ORDER>(at, (u32)vectors, c);
#pragma unroll
            for (u32 e = 0; e < 4; e++) {
                if (e == first) {
                    const float* k = coefficients + c[e];
                    const float mean = k[0], factor = k[channels], xv = READS_X ? x[tail] : 0.0f;
                    const float d = gated<GATE>(dy[tail], xv, GATE == 1 ? gate[tail] : 0.0f, mean, factor,
                                                GATE == 2 ? bias[c[e]] : 0.0f);
                    if constexpr (SEND) sent[tail] = d;
                    dx[tail] = STATISTICS
                                   ? factor * fmaf(mean - xv, k[3 * channels], d - k[2 * channels])
                                   : factor * d;
                }
            }
        }
    }
}

#define BN_GRAD_APPLY(NAME, ORDER, STATISTICS, GATE, SEND)                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                         \
        NAME(const float* dy, const float* x, const float* gate, const float* bias, float* dx, float* sent,       \
             const float* coefficients, u64 n, u32 channels, const Where at) {                                    \
        bn_grad_apply<ORDER, STATISTICS, GATE, SEND>(dy, x, gate, bias, dx, sent, coefficients, n, channels, at); \
    }
