// Negative log likelihood of [outer, classes, inner] log-probabilities and labels [outer,
// inner], and the gradients. A label outside the classes makes the loss NaN and reads nothing.
#include "common.cuh"

struct Labels {
    const void* labels;
    const float* weight;  // per class, or null for ones
    i64 ignored;
    u32 has_ignored;
    u32 wide;  // labels are i64, else i32
    u32 classes;
    u32 unused;
};

// The class of position p, or none (-1) for one that does not count, or bad (-2).
__device__ __forceinline__ i32 target(const Labels& l, u32 p) {
    const i64 label = l.wide ? ((const i64*)l.labels)[p] : (i64)((const i32*)l.labels)[p];
    if (l.has_ignored && label == l.ignored) return -1;
    return label >= 0 && label < (i64)l.classes ? (i32)label : -2;
}

__device__ __forceinline__ double nan_value() { return __longlong_as_double(0x7ff8000000000000LL); }

__device__ __forceinline__ double weight_of(const Labels& l, i32 class_) {
    if (class_ == -1) return 0.0;
    if (class_ == -2) return nan_value();
    return l.weight ? (double)l.weight[class_] : 1.0;
}

__device__ __forceinline__ double nll_term(const Labels& l, const float* log_prob, u32 p, Divisor inner) {
    const i32 class_ = target(l, p);
    if (class_ == -1) return 0.0;
    if (class_ == -2) return nan_value();
    u32 outer = p;
    const u32 at = inner.take(outer);
    const float lp = log_prob[((u64)outer * l.classes + class_) * inner.value + at];
    return -weight_of(l, class_) * (double)lp;
}

// One loss per position.
extern "C" __global__ void __launch_bounds__(THREADS)
    nll_each(const float* log_prob, float* loss, u32 positions, Divisor inner, const Labels l) {
    const u32 p = blockIdx.x * THREADS + threadIdx.x;
    if (p < positions) loss[p] = (float)nll_term(l, log_prob, p, inner);
}

// partial[2b] and partial[2b + 1]: the sums of losses and of weights of block b's positions.
// Without log_prob only the weights.
extern "C" __global__ void __launch_bounds__(THREADS)
    nll_partial(const float* log_prob, double* partial, u32 positions, Divisor inner, const Labels l) {
    double loss = 0.0, weight = 0.0;
    for (u32 p = blockIdx.x * THREADS + threadIdx.x; p < positions; p += gridDim.x * THREADS) {
        if (log_prob) loss += nll_term(l, log_prob, p, inner);
        weight += weight_of(l, target(l, p));
    }
    loss = block_reduce<Sum>(loss);
    weight = block_reduce<Sum>(weight);
    if (threadIdx.x == 0) {
        partial[2 * blockIdx.x] = loss;
        partial[2 * blockIdx.x + 1] = weight;
    }
}

// One block: loss[0] from `blocks` partial sums; total[0], if asked for, is the sum of weights.
extern "C" __global__ void __launch_bounds__(THREADS)
    nll_finish(const double* partial, float* loss, double* total, u32 blocks, u32 mean) {
    double sum = 0.0, weight = 0.0;
    for (u32 b = threadIdx.x; b < blocks; b += THREADS) {
        sum += partial[2 * b];
        weight += partial[2 * b + 1];
    }
    sum = block_reduce<Sum>(sum);
    weight = block_reduce<Sum>(weight);
    if (threadIdx.x == 0) {
        if (loss) loss[0] = (float)(mean ? sum / weight : sum);
        if (total) total[0] = weight;
    }
}

// What dloss becomes at position p: times the weight, over the total for a mean.
__device__ __forceinline__ double upstream(const float* dloss, const double* total, u32 each, const Labels& l, u32 p,
                                           i32 class_) {
    return (double)dloss[each ? p : 0] * weight_of(l, class_) / (total ? *total : 1.0);
}

// dlogits = upstream * (softmax - onehot): element i of [outer, classes, inner].
extern "C" __global__ void __launch_bounds__(THREADS)
    cross_entropy_grad(const float* dloss, const float* log_prob, const double* total, float* dx, u32 n, u32 each,
                       Divisor inner, Divisor classes, const Labels l) {
    const u32 i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= n) return;
    u32 rest = i;
    const u32 at = inner.take(rest), c = classes.take(rest);
    const u32 p = rest * inner.value + at;
    const i32 class_ = target(l, p);
    if (class_ == -1) {
        dx[i] = 0.0f;
        return;
    }
    const float lp = log_prob[i];
    // At the label one rounding of (softmax - 1), not of softmax and of the difference.
    const float d = (i32)c == class_ ? expm1f(lp) : expf(lp);
    dx[i] = (float)(upstream(dloss, total, each, l, p, class_) * (double)d);
}

// dlog_prob = -upstream at the label, zero elsewhere.
extern "C" __global__ void __launch_bounds__(THREADS)
    nll_grad(const float* dloss, const double* total, float* dx, u32 n, u32 each, Divisor inner, Divisor classes,
             const Labels l) {
    const u32 i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= n) return;
    u32 rest = i;
    const u32 at = inner.take(rest), c = classes.take(rest);
    const u32 p = rest * inner.value + at;
    const i32 class_ = target(l, p);
    const bool here = (i32)c == class_ || class_ == -2;
    dx[i] = here ? (float)-upstream(dloss, total, each, l, p, class_) : 0.0f;
}
