// Casts between f32 and bf16, eight elements an access.
#include "common.cuh"

template <class F, class T>
__device__ __forceinline__ void cast(const F* x, T* y, u64 n) {
    constexpr u32 V = 8;
    const u64 vectors = n / V, first = first_item();
    Pack<F, V> v[ITEMS];
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
            for (u32 j = 0; j < V; j++) out.v[j] = v[k][j];
            store<V>(y + V * i, out);
        }
    }
    const u64 tail = V * vectors + first;
    if (first < V && tail < n) put(y + tail, get(x + tail));
}

#define CAST(NAME, F, T)                                                                             \
    extern "C" __global__ void __launch_bounds__(THREADS) NAME(const F* x, T* y, u64 n) {            \
        cast(x, y, n);                                                                               \
    }
