// Dropout with a counter-based generator.
#include "common.cuh"

// Output i of the splitmix64 generator started at seed (Steele, Lea and Flood, "Fast
// splittable pseudorandom number generators", OOPSLA 2014).
__device__ __forceinline__ u64 splitmix64(u64 seed, u64 i) {
    u64 z = seed + (i + 1) * 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

// Element i of the tensor in row-major order is kept if its number in [0, 1) is at least the
// ratio; scale is 1 / (1 - ratio).
__device__ __forceinline__ float drop(float x, u64 stream, u64 i, float ratio, double scale) {
    const float u = (float)(u32)(splitmix64(stream, i) >> 40) * (1.0f / 16777216.0f);
    return u >= ratio ? (float)((double)x * scale) : 0.0f;
}

template <class T>
__device__ __forceinline__ void dropout(const T* x, const i64* step, T* y, u64 n, u64 seed, u64 before,
                                        double scale, float ratio) {
    constexpr u32 V = WIDTH<T>;
    // Output i of a stream that is `before` numbers ahead is output before + i.
    const u64 stream = splitmix64(seed, (u64)*step) + before * 0x9E3779B97F4A7C15ull;
    const u64 vectors = n / V, first = first_item();
    Pack<T, V> v[ITEMS];
#pragma unroll
    for (u32 k = 0; k < ITEMS; k++) {
        const u64 i = first + k * THREADS;
        if (i < vectors) v[k] = fetch<V>(x + V * i);
    }
#pragma unroll
    for (u32 k = 0; k < ITEMS; k++) {
        const u64 i = first + k * THREADS;
        if (i < vectors) {
            Vec<V> out;
#pragma unroll
            for (u32 j = 0; j < V; j++) out.v[j] = drop(v[k][j], stream, V * i + j, ratio, scale);
            store<V>(y + V * i, out);
        }
    }
    const u64 tail = V * vectors + first;
    if (first < V && tail < n) put(y + tail, drop(get(x + tail), stream, tail, ratio, scale));
}

#define DROPOUT(NAME, T)                                                                                   \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                  \
        NAME(const T* x, const i64* step, T* y, u64 n, u64 seed, u64 before, double scale, float ratio) {  \
        dropout(x, step, y, n, seed, before, scale, ratio);                                                \
    }
