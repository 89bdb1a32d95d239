// Batch normalisation (Ioffe and Szegedy, ICML 2015) and its gradients. Sums are exact to f64,
// so neither shifts nor Welford's update are needed: a mean 10^4 standard deviations from zero
// costs the variance 10^-8. Three launches: sums of parts of the channels, the coefficients of
// each channel, one pass that applies them.
#pragma once
#include "common.cuh"

// The factor of x - mean in the output.
__device__ __forceinline__ float gain(float scale, float invstd) { return (float)((double)scale * (double)invstd); }

// Blocks run from the end of the tensor, where the cache still holds what the sums read last.
__device__ __forceinline__ u64 first_item_from_end() {
    return (u64)(gridDim.x - 1 - blockIdx.x) * (THREADS * ITEMS) + threadIdx.x;
}

// dy where the gate is open. `mean`, `factor`, `bias` belong to the channel of x.
template <u32 GATE>
__device__ __forceinline__ float gated(float dy, float x, float gate, float mean, float factor, float bias) {
    if constexpr (GATE == 1) return gate > 0.0f ? dy : 0.0f;
    if constexpr (GATE == 2) return fmaf(x - mean, factor, bias) > 0.0f ? dy : 0.0f;
    return dy;
}
