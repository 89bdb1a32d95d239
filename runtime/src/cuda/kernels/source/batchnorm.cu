// Batch normalisation (Ioffe and Szegedy, ICML 2015) and its gradients. Sums are exact to f64,
// so neither shifts nor Welford's update are needed: a mean 10^4 standard deviations from zero
// costs the variance 10^-8. Three launches: sums of parts of the channels, the coefficients of
// each channel, one pass that applies them.
#include "common.cuh"

// What a pass over the tensors sums: x and x^2; or dy and dy (x - mean). With GATE 1 dy counts
// where `gate` (the output of a ReLU behind the normalisation) is positive, with GATE 2 where
// the recomputed output (x - mean) * scale * invstd + bias is.
struct Sources {
    const float *x, *dy, *gate;
    const float *mean, *factor, *bias;  // per channel; the last two for GATE 2
};

template <u32 V, bool GRAD, u32 GATE>
struct Terms {
    double first[V], second[V];
    __device__ __forceinline__ void reset() {
#pragma unroll
        for (u32 e = 0; e < V; e++) first[e] = second[e] = 0.0;
    }
};

// dy where the gate is open. `mean`, `factor`, `bias` belong to the channel of x.
template <u32 GATE>
__device__ __forceinline__ float gated(float dy, float x, float gate, float mean, float factor, float bias) {
    if constexpr (GATE == 1) return gate > 0.0f ? dy : 0.0f;
    if constexpr (GATE == 2) return fmaf(x - mean, factor, bias) > 0.0f ? dy : 0.0f;
    return dy;
}

// One channel of the planes [images, channels, plane]: block (channel, chunk), `chunk` groups of
// V elements. partial[chunk * channels + c] takes both sums.
template <u32 V, bool GRAD, u32 GATE>
__device__ __forceinline__ void sums_of_planes(const Sources& s, double2* partial, u32 channels, Divisor plane,
                                               u32 units, u32 chunk) {
    const u32 c = blockIdx.x;
    const u32 begin = blockIdx.y * chunk, end = min(units, begin + chunk);
    float mean = 0.0f, factor = 0.0f, bias = 0.0f;
    if constexpr (GRAD) mean = s.mean[c];
    if constexpr (GATE == 2) {
        factor = s.factor[c];
        bias = s.bias[c];
    }
    double first = 0.0, second = 0.0;
    for (u32 u = begin + threadIdx.x; u < end; u += THREADS * ITEMS) {
        Vec<V> x[ITEMS], dy[ITEMS], gate[ITEMS];
#pragma unroll
        for (u32 j = 0; j < ITEMS; j++) {
            u32 image = u + j * THREADS;
            if (image < end) {
                const u32 at = plane.take(image);
                const u64 i = (((u64)image * channels + c) * plane.value + at) * V;
                x[j] = load<V>(s.x + i);
                if constexpr (GRAD) dy[j] = load<V>(s.dy + i);
                if constexpr (GATE == 1) gate[j] = load<V>(s.gate + i);
            }
        }
#pragma unroll
        for (u32 j = 0; j < ITEMS; j++) {
            if (u + j * THREADS < end) {
#pragma unroll
                for (u32 e = 0; e < V; e++) {
                    if constexpr (GRAD) {
                        const float g = gated<GATE>(dy[j].v[e], x[j].v[e], GATE == 1 ? gate[j].v[e] : 0.0f, mean,
                                                    factor, bias);
                        first += (double)g;
                        second = fma((double)g, (double)x[j].v[e] - (double)mean, second);
                    } else {
                        const double v = (double)x[j].v[e];
                        first += v;
                        second = fma(v, v, second);
                    }
                }
            }
        }
    }
    first = block_reduce<Sum>(first);
    second = block_reduce<Sum>(second);
    if (threadIdx.x == 0) partial[(u64)blockIdx.y * channels + c] = make_double2(first, second);
}

// The same for rows of channels [rows, channels]: V channels a thread, `lanes` threads along
// them and THREADS / lanes along the rows. Block (group of lanes, chunk of rows).
template <u32 V, bool GRAD, u32 GATE>
__device__ __forceinline__ void sums_of_rows(const Sources& s, double2* partial, u32 channels, u32 rows, u32 chunk,
                                             u32 lanes) {
    __shared__ double2 parts[THREADS * V];
    const u32 tx = threadIdx.x % lanes, ty = threadIdx.x / lanes, height = THREADS / lanes;
    const u32 c = (blockIdx.x * lanes + tx) * V;
    double first[V], second[V];
#pragma unroll
    for (u32 e = 0; e < V; e++) first[e] = second[e] = 0.0;
    if (c < channels) {
        const u32 begin = blockIdx.y * chunk, end = min(rows, begin + chunk);
        Vec<V> mean, factor, bias;
        if constexpr (GRAD) mean = load<V>(s.mean + c);
        if constexpr (GATE == 2) {
            factor = load<V>(s.factor + c);
            bias = load<V>(s.bias + c);
        }
        for (u32 row = begin + ty; row < end; row += height * ITEMS) {
            Vec<V> x[ITEMS], dy[ITEMS], gate[ITEMS];
#pragma unroll
            for (u32 j = 0; j < ITEMS; j++) {
                if (row + j * height < end) {
                    const u64 i = (u64)(row + j * height) * channels + c;
                    x[j] = load<V>(s.x + i);
                    if constexpr (GRAD) dy[j] = load<V>(s.dy + i);
                    if constexpr (GATE == 1) gate[j] = load<V>(s.gate + i);
                }
            }
#pragma unroll
            for (u32 j = 0; j < ITEMS; j++) {
                if (row + j * height < end) {
#pragma unroll
                    for (u32 e = 0; e < V; e++) {
                        if constexpr (GRAD) {
                            const float g = gated<GATE>(dy[j].v[e], x[j].v[e], GATE == 1 ? gate[j].v[e] : 0.0f,
                                                        mean.v[e], GATE == 2 ? factor.v[e] : 0.0f,
                                                        GATE == 2 ? bias.v[e] : 0.0f);
                            first[e] += (double)g;
                            second[e] = fma((double)g, (double)x[j].v[e] - (double)mean.v[e], second[e]);
                        } else {
                            const double v = (double)x[j].v[e];
                            first[e] += v;
                            second[e] = fma(v, v, second[e]);
                        }
                    }
                }
            }
        }
    }
#pragma unroll
    for (u32 e = 0; e < V; e++) parts[e * THREADS + threadIdx.x] = make_double2(first[e], second[e]);
    __syncthreads();
    if (ty == 0 && c < channels) {
#pragma unroll
        for (u32 e = 0; e < V; e++) {
            double2 total = parts[e * THREADS + tx];
            for (u32 h = 1; h < height; h++) {
                const double2 t = parts[e * THREADS + h * lanes + tx];
                total.x += t.x;
                total.y += t.y;
            }
            partial[(u64)blockIdx.y * channels + c + e] = total;
        }
    }
}

#define SUMS(NAME, GRAD, GATE)                                                                                    \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                         \
        NAME##_planes1(const Sources s, double2* partial, u32 channels, Divisor plane, u32 units, u32 chunk) {    \
        sums_of_planes<1, GRAD, GATE>(s, partial, channels, plane, units, chunk);                                 \
    }                                                                                                             \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                         \
        NAME##_planes4(const Sources s, double2* partial, u32 channels, Divisor plane, u32 units, u32 chunk) {    \
        sums_of_planes<4, GRAD, GATE>(s, partial, channels, plane, units, chunk);                                 \
    }                                                                                                             \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                         \
        NAME##_rows1(const Sources s, double2* partial, u32 channels, u32 rows, u32 chunk, u32 lanes) {           \
        sums_of_rows<1, GRAD, GATE>(s, partial, channels, rows, chunk, lanes);                                    \
    }                                                                                                             \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                         \
        NAME##_rows4(const Sources s, double2* partial, u32 channels, u32 rows, u32 chunk, u32 lanes) {           \
        sums_of_rows<4, GRAD, GATE>(s, partial, channels, rows, chunk, lanes);                                    \
    }
SUMS(bn_sums, false, 0)
SUMS(bn_grad_sums, true, 0)

// ---- coefficients ----------------------------------------------------------------------

// Both sums of 32 channels a block, 8 threads each; valid where the result is true.
__device__ __forceinline__ bool channel_sums(const double2* partial, u32 channels, u32 chunks, u32& c, double2& sums) {
    __shared__ double2 parts[THREADS];
    const u32 tx = threadIdx.x % 32, ty = threadIdx.x / 32;
    c = blockIdx.x * 32 + tx;
    sums = make_double2(0.0, 0.0);
    if (c < channels) {
        for (u32 i = ty; i < chunks; i += THREADS / 32) {
            const double2 t = partial[(u64)i * channels + c];
            sums.x += t.x;
            sums.y += t.y;
        }
    }
    parts[threadIdx.x] = sums;
    __syncthreads();
    if (ty != 0 || c >= channels) return false;
#pragma unroll
    for (u32 i = 1; i < THREADS / 32; i++) {
        const double2 t = parts[i * 32 + tx];
        sums.x += t.x;
        sums.y += t.y;
    }
    return true;
}

// Coefficient arrays of `channels` floats each, one after the other: mean, factor and two more.
__device__ __forceinline__ void put(float* coefficients, u32 channels, u32 c, float mean, float factor, float third,
                                    float fourth) {
    coefficients[c] = mean;
    coefficients[channels + c] = factor;
    coefficients[2 * channels + c] = third;
    coefficients[3 * channels + c] = fourth;
}

// y = (x - mean) * factor + bias. `plain` keeps the bias as it is, so that a backward pass can
// recompute y exactly; else what rounding the mean to f32 lost goes into it.
extern "C" __global__ void __launch_bounds__(THREADS)
    bn_train_coefficients(const double2* partial, const float* scale, const float* bias, const float* old_mean,
                          const float* old_var, float* new_mean, float* new_var, float* batch_mean,
                          float* batch_invstd, float* coefficients, u32 channels, u32 chunks, double count,
                          double eps, double momentum, u32 plain) {
    u32 c;
    double2 sums;
    if (!channel_sums(partial, channels, chunks, c, sums)) return;
    const double mean = sums.x / count;
    const double spread = sums.y / count - mean * mean;
    const double var = spread < 0.0 ? 0.0 : spread;  // keeps NaN
    const float mean32 = (float)mean, invstd = (float)(1.0 / sqrt(var + eps));
    const float factor = (float)((double)scale[c] * (double)invstd);
    const float shift = plain ? bias[c] : (float)((double)bias[c] - (double)factor * (mean - (double)mean32));
    new_mean[c] = (float)((double)old_mean[c] * momentum + mean * (1.0 - momentum));
    new_var[c] = (float)((double)old_var[c] * momentum + var * (1.0 - momentum));
    batch_mean[c] = mean32;
    batch_invstd[c] = invstd;
    put(coefficients, channels, c, mean32, factor, shift, 0.0f);
}

// With running statistics.
extern "C" __global__ void __launch_bounds__(THREADS)
    bn_infer_coefficients(const float* scale, const float* bias, const float* mean, const float* var,
                          float* coefficients, u32 channels, double eps) {
    const u32 c = blockIdx.x * THREADS + threadIdx.x;
    if (c >= channels) return;
    put(coefficients, channels, c, mean[c], (float)((double)scale[c] / sqrt((double)var[c] + eps)), bias[c], 0.0f);
}

// dx = factor * ((dy - third) - (x - mean) * fourth); `deviation` is the variance, or the
// inverse standard deviation if `is_invstd`, which also says that the statistics depend on x.
extern "C" __global__ void __launch_bounds__(THREADS)
    bn_grad_coefficients(const double2* partial, const float* scale, const float* mean, const float* deviation,
                         float* dscale, float* dbias, float* coefficients, u32 channels, u32 chunks, double count,
                         double eps, u32 is_invstd) {
    u32 c;
    double2 sums;
    if (!channel_sums(partial, channels, chunks, c, sums)) return;
    const double invstd = is_invstd ? (double)deviation[c] : 1.0 / sqrt((double)deviation[c] + eps);
    dscale[c] = (float)(sums.y * invstd);
    dbias[c] = (float)sums.x;
    const float third = is_invstd ? (float)(sums.x / count) : 0.0f;
    const float fourth = is_invstd ? (float)(sums.y * invstd * invstd / count) : 0.0f;
    put(coefficients, channels, c, mean[c], (float)((double)scale[c] * invstd), third, fourth);
}

// The factor scale * invstd that GATE 2 needs before the sums.
extern "C" __global__ void __launch_bounds__(THREADS)
    bn_gate_factors(const float* scale, const float* invstd, float* factor, u32 channels) {
    const u32 c = blockIdx.x * THREADS + threadIdx.x;
    if (c < channels) factor[c] = (float)((double)scale[c] * (double)invstd[c]);
}

// ---- the pass that applies them ----------------------------------------------------------

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

#define APPLY(NAME, ORDER, RELU, ADD)                                                                             \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                         \
        NAME(const float* x, const float* added, float* y, const float* coefficients, u64 n, u32 channels,        \
             const Where at) {                                                                                    \
        bn_apply<ORDER, RELU, ADD>(x, added, y, coefficients, n, channels, at);                                   \
    }
#define APPLY_ORDERS(NAME, RELU, ADD)       \
    APPLY(NAME##_last4, LAST4, RELU, ADD)   \
    APPLY(NAME##_planes4, PLANES4, RELU, ADD) \
    APPLY(NAME##_last1, LAST1, RELU, ADD)   \
    APPLY(NAME##_planes1, PLANES1, RELU, ADD)
APPLY_ORDERS(bn_apply, false, false)

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

#define GRAD_APPLY(NAME, ORDER, STATISTICS, GATE, SEND)                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                         \
        NAME(const float* dy, const float* x, const float* gate, const float* bias, float* dx, float* sent,       \
             const float* coefficients, u64 n, u32 channels, const Where at) {                                    \
        bn_grad_apply<ORDER, STATISTICS, GATE, SEND>(dy, x, gate, bias, dx, sent, coefficients, n, channels, at); \
    }
#define GRAD_APPLY_ORDERS(NAME, STATISTICS, GATE, SEND)         \
    GRAD_APPLY(NAME##_last4, LAST4, STATISTICS, GATE, SEND)     \
    GRAD_APPLY(NAME##_planes4, PLANES4, STATISTICS, GATE, SEND) \
    GRAD_APPLY(NAME##_last1, LAST1, STATISTICS, GATE, SEND)     \
    GRAD_APPLY(NAME##_planes1, PLANES1, STATISTICS, GATE, SEND)
GRAD_APPLY_ORDERS(bn_grad_apply, true, 0, false)
GRAD_APPLY_ORDERS(bn_infer_grad_apply, false, 0, false)
