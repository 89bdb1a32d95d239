// The pass of batch normalisation that applies the coefficients.
#include "batchnorm.cuh"

// Where the channel of an element comes from. Vectors are of V elements.
enum Order : u32 {
    LAST,     // channels last, a multiple of V: `channels` counts vectors
    SAME,     // the same, and all vectors of a thread have the same channels
    PLANES,   // planes of a multiple of V elements: `plane` counts vectors
    LAST1,    // channels last
    PLANES1,  // planes
};

struct Where {
    Divisor channels, plane;
};

// The channels of the elements of vector i.
template <u32 ORDER, u32 V>
__device__ __forceinline__ void channels_of(const Where& at, u32 i, u32 (&c)[V]) {
    if constexpr (ORDER == LAST || ORDER == SAME) {
        const u32 group = at.channels.take(i);
#pragma unroll
        for (u32 e = 0; e < V; e++) c[e] = V * group + e;
    } else if constexpr (ORDER == PLANES) {
        u32 plane = at.plane.quotient(i);
        const u32 channel = at.channels.take(plane);
#pragma unroll
        for (u32 e = 0; e < V; e++) c[e] = channel;
    } else {
#pragma unroll
        for (u32 e = 0; e < V; e++) {
            u32 rest = V * i + e;
            if constexpr (ORDER == PLANES1) rest = at.plane.quotient(rest);
            c[e] = at.channels.take(rest);
        }
    }
}

// Coefficient array `which` at the channels of one vector.
template <u32 ORDER, u32 V>
__device__ __forceinline__ Vec<V> pick(const float* coefficients, u32 which, u32 channels, const u32 (&c)[V]) {
    const float* from = coefficients + which * channels;
    if constexpr (ORDER == LAST || ORDER == SAME) {
        return load<V>(from + c[0]);
    } else {
        Vec<V> r;
#pragma unroll
        for (u32 e = 0; e < V; e++) r.v[e] = from[ORDER == PLANES ? c[0] : c[e]];
        return r;
    }
}

__device__ __forceinline__ float normalised(float x, float mean, float factor, float bias) {
    return fmaf(x - mean, factor, bias);
}

// y = [relu](normalised x [+ added]); y may be x.
template <u32 ORDER, bool RELU, bool ADD, class T>
__device__ __forceinline__ void bn_apply(const T* x, const T* added, T* y, const float* coefficients, u64 n,
                                         u32 channels, const Where& at) {
    constexpr u32 V = WIDTH<T>;
    const u64 vectors = n / V, first = first_item_from_end();
    Pack<T, V> v[ITEMS], r[ITEMS];
#pragma unroll
    for (u32 k = 0; k < ITEMS; k++) {
        const u64 i = first + k * THREADS;
        if (i < vectors) {
            v[k] = fetch<V>(x + V * i);
            if constexpr (ADD) r[k] = fetch<V>(added + V * i);
        }
    }
    Vec<V> mean, factor, bias;
    const auto coefficients_of = [&](u32 i) {
        u32 c[V];
        channels_of<ORDER>(at, i, c);
        mean = pick<ORDER>(coefficients, 0, channels, c);
        factor = pick<ORDER>(coefficients, 1, channels, c);
        bias = pick<ORDER>(coefficients, 2, channels, c);
    };
    if constexpr (ORDER == SAME) coefficients_of(first < vectors ? (u32)first : 0);
#pragma unroll
    for (u32 k = 0; k < ITEMS; k++) {
        const u64 i = first + k * THREADS;
        if (i < vectors) {
            if constexpr (ORDER != SAME) coefficients_of((u32)i);
            Vec<V> out;
#pragma unroll
            for (u32 e = 0; e < V; e++) {
                float t = normalised(v[k][e], mean.v[e], factor.v[e], bias.v[e]);
                if constexpr (ADD) t += r[k][e];
                if constexpr (RELU) t = t <= 0.0f ? 0.0f : t;
                out.v[e] = t;
            }
            store<V>(y + V * i, out);
        }
    }
    if constexpr (ORDER == LAST1 || ORDER == PLANES1) {
        const u64 tail = V * vectors + first;
        if (first < V && tail < n) {
            u32 c[V];
            channels_of<ORDER>(at, (u32)vectors, c);
            // The tail has up to V - 1 elements; a loop keeps the array in registers.
#pragma unroll
            for (u32 e = 0; e < V; e++) {
                if (e == first) {
                    float t = normalised(get(x + tail), coefficients[c[e]], coefficients[channels + c[e]],
                                         coefficients[2 * channels + c[e]]);
                    if constexpr (ADD) t += get(added + tail);
                    if constexpr (RELU) t = t <= 0.0f ? 0.0f : t;
                    put(y + tail, t);
                }
            }
        }
    }
}

#define BN_APPLY(NAME, T, ORDER, RELU, ADD)                                                                       \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                         \
        NAME(const T* x, const T* added, T* y, const float* coefficients, u64 n, u32 channels, const Where at) {  \
        bn_apply<ORDER, RELU, ADD>(x, added, y, coefficients, n, channels, at);                                   \
    }

// dx = factor * ((g - third) - (x - mean) * fourth) with the gated g; without STATISTICS, third
// and fourth are zero and x is not read unless gated by it. With SEND, g goes to `sent` as well
// (the gradient of a tensor that was added before the ReLU). dx may be dy.
template <u32 ORDER, bool STATISTICS, u32 GATE, bool SEND, class T>
__device__ __forceinline__ void bn_grad_apply(const T* dy, const T* x, const T* gate, const float* bias, T* dx, T* sent,
                                              const float* coefficients, u64 n, u32 channels, const Where& at) {
    constexpr bool READS_X = STATISTICS || GATE == 2;
    constexpr u32 V = WIDTH<T>;
    const u64 vectors = n / V, first = first_item_from_end();
    Pack<T, V> g[ITEMS], v[ITEMS], open[ITEMS];
#pragma unroll
    for (u32 k = 0; k < ITEMS; k++) {
        const u64 i = first + k * THREADS;
        if (i < vectors) {
            g[k] = fetch<V>(dy + V * i);
            if constexpr (READS_X) v[k] = fetch<V>(x + V * i);
            if constexpr (GATE == 1) open[k] = fetch<V>(gate + V * i);
        }
    }
    Vec<V> factor, mean, third, fourth, shift;
    const auto coefficients_of = [&](u32 i) {
        u32 c[V];
        channels_of<ORDER>(at, i, c);
        factor = pick<ORDER>(coefficients, 1, channels, c);
        if constexpr (READS_X) mean = pick<ORDER>(coefficients, 0, channels, c);
        if constexpr (STATISTICS) {
            third = pick<ORDER>(coefficients, 2, channels, c);
            fourth = pick<ORDER>(coefficients, 3, channels, c);
        }
        if constexpr (GATE == 2) shift = pick<ORDER>(bias, 0, channels, c);
    };
    if constexpr (ORDER == SAME) coefficients_of(first < vectors ? (u32)first : 0);
#pragma unroll
    for (u32 k = 0; k < ITEMS; k++) {
        const u64 i = first + k * THREADS;
        if (i < vectors) {
            if constexpr (ORDER != SAME) coefficients_of((u32)i);
            Vec<V> passed, out;
#pragma unroll
            for (u32 e = 0; e < V; e++) {
                const float d =
                    gated<GATE>(g[k][e], READS_X ? v[k][e] : 0.0f, GATE == 1 ? open[k][e] : 0.0f,
                                READS_X ? mean.v[e] : 0.0f, factor.v[e], GATE == 2 ? shift.v[e] : 0.0f);
                passed.v[e] = d;
                out.v[e] = STATISTICS ? factor.v[e] * fmaf(mean.v[e] - v[k][e], fourth.v[e], d - third.v[e])
                                      : factor.v[e] * d;
            }
            if constexpr (SEND) store<V>(sent + V * i, passed);
            store<V>(dx + V * i, out);
        }
    }
    if constexpr (ORDER == LAST1 || ORDER == PLANES1) {
        const u64 tail = V * vectors + first;
        if (first < V && tail < n) {
            u32 c[V];
            channels_of<ORDER>(at, (u32)vectors, c);
#pragma unroll
            for (u32 e = 0; e < V; e++) {
                if (e == first) {
                    const float* k = coefficients + c[e];
                    const float mean = k[0], factor = k[channels], xv = READS_X ? get(x + tail) : 0.0f;
                    const float d = gated<GATE>(get(dy + tail), xv, GATE == 1 ? get(gate + tail) : 0.0f, mean, factor,
                                                GATE == 2 ? bias[c[e]] : 0.0f);
                    if constexpr (SEND) put(sent + tail, d);
                    put(dx + tail, STATISTICS ? factor * fmaf(mean - xv, k[3 * channels], d - k[2 * channels])
                                              : factor * d);
                }
            }
        }
    }
}

#define BN_GRAD_APPLY(NAME, T, ORDER, STATISTICS, GATE, SEND)                                                     \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                         \
        NAME(const T* dy, const T* x, const T* gate, const float* bias, T* dx, T* sent,                           \
             const float* coefficients, u64 n, u32 channels, const Where at) {                                    \
        bn_grad_apply<ORDER, STATISTICS, GATE, SEND>(dy, x, gate, bias, dx, sent, coefficients, n, channels, at); \
    }
