// From sums to the coefficients of each channel.
#include "batchnorm.cuh"

// Both sums of 8 channels a block, 32 threads each; valid where the result is true.
__device__ __forceinline__ bool channel_sums(const double2* partial, u32 channels, u32 chunks, u32& c, double2& sums) {
    __shared__ double2 parts[THREADS];
    const u32 tx = threadIdx.x % 8, ty = threadIdx.x / 8;
    c = blockIdx.x * 8 + tx;
    sums = make_double2(0.0, 0.0);
    if (c < channels) {
#pragma unroll 4
        for (u32 i = ty; i < chunks; i += THREADS / 8) {
            const double2 t = partial[(u64)i * channels + c];
            sums.x += t.x;
            sums.y += t.y;
        }
    }
    parts[threadIdx.x] = sums;
    __syncthreads();
    if (ty != 0 || c >= channels) return false;
#pragma unroll
    for (u32 i = 1; i < THREADS / 8; i++) {
        const double2 t = parts[i * 8 + tx];
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

// Arrays begin at the first of `channels`; coefficient arrays are `stride` floats apart.
// y = (x - mean) * factor + bias. `plain` keeps the bias as it is, so that a backward pass can
// recompute y exactly; else what rounding the mean to f32 lost goes into it.
extern "C" __global__ void __launch_bounds__(THREADS)
    bn_train_coefficients(const double2* partial, const float* scale, const float* bias, const float* old_mean,
                          const float* old_var, float* new_mean, float* new_var, float* batch_mean,
                          float* batch_invstd, float* coefficients, u32 channels, u32 stride, u32 chunks,
                          double count, double eps, double momentum, u32 plain) {
    u32 c;
    double2 sums;
    if (!channel_sums(partial, channels, chunks, c, sums)) return;
    const double mean = sums.x / count;
    const double spread = sums.y / count - mean * mean;
    const double var = spread < 0.0 ? 0.0 : spread;  // keeps NaN
    const float mean32 = (float)mean, invstd = (float)(1.0 / sqrt(var + eps));
    const float factor = gain(scale[c], invstd);
    const float shift = plain ? bias[c] : (float)((double)bias[c] - (double)factor * (mean - (double)mean32));
    new_mean[c] = (float)((double)old_mean[c] * momentum + mean * (1.0 - momentum));
    new_var[c] = (float)((double)old_var[c] * momentum + var * (1.0 - momentum));
    batch_mean[c] = mean32;
    batch_invstd[c] = invstd;
    put(coefficients, stride, c, mean32, factor, shift, 0.0f);
}

// The same, plain, for channels whose batch statistics another batch norm has found.
extern "C" __global__ void __launch_bounds__(THREADS)
    bn_known_coefficients(const float* known_mean, const float* known_invstd, const float* scale, const float* bias,
                          const float* old_mean, const float* old_var, float* new_mean, float* new_var,
                          float* batch_mean, float* batch_invstd, float* coefficients, u32 channels, u32 stride,
                          double eps, double momentum) {
    const u32 c = blockIdx.x * THREADS + threadIdx.x;
    if (c >= channels) return;
    const float mean = known_mean[c], invstd = known_invstd[c];
    const double spread = 1.0 / ((double)invstd * (double)invstd) - eps;
    const double var = spread < 0.0 ? 0.0 : spread;  // keeps NaN
    new_mean[c] = (float)((double)old_mean[c] * momentum + (double)mean * (1.0 - momentum));
    new_var[c] = (float)((double)old_var[c] * momentum + var * (1.0 - momentum));
    batch_mean[c] = mean;
    batch_invstd[c] = invstd;
    put(coefficients, stride, c, mean, gain(scale[c], invstd), bias[c], 0.0f);
}

// With running statistics.
extern "C" __global__ void __launch_bounds__(THREADS)
    bn_infer_coefficients(const float* scale, const float* bias, const float* mean, const float* var,
                          float* coefficients, u32 channels, double eps) {
    const u32 c = blockIdx.x * THREADS + threadIdx.x;
    if (c >= channels) return;
    put(coefficients, channels, c, mean[c], (float)((double)scale[c] / sqrt((double)var[c] + eps)), bias[c], 0.0f);
}

// Those of bn_train_coefficients with `plain` again, from the statistics it has left.
extern "C" __global__ void __launch_bounds__(THREADS)
    bn_apply_coefficients(const float* scale, const float* bias, const float* mean, const float* invstd,
                          float* coefficients, u32 channels) {
    const u32 c = blockIdx.x * THREADS + threadIdx.x;
    if (c < channels) put(coefficients, channels, c, mean[c], gain(scale[c], invstd[c]), bias[c], 0.0f);
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

// Those that only add a bias.
#define BIAS_COEFFICIENTS(NAME, T)                                                               \
    extern "C" __global__ void __launch_bounds__(THREADS)                                        \
        NAME(const T* bias, float* coefficients, u32 channels) {                                 \
        const u32 c = blockIdx.x * THREADS + threadIdx.x;                                        \
        if (c < channels) put(coefficients, channels, c, 0.0f, 1.0f, get(bias + c), 0.0f);       \
    }
