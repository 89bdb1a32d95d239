// The optimizer step, constants and plain copies.
#include "common.cuh"

// v = momentum*v + (g + decay*w); w -= lr*v, with the rounded v.
__device__ __forceinline__ void sgd_step(float& w, float& v, float g, float lr, float momentum, float decay) {
    v = fmaf(momentum, v, fmaf(decay, w, g));
    w = fmaf(-lr, v, w);
}

// The elements of one block, ITEMS vectors a thread; the first block takes what no vector holds.
__device__ __forceinline__ void sgd_block(const float* w_in, const float* v_in, const float* g_in, const float* hyper,
                                          float* w_out, float* v_out, u64 n, u64 first) {
    const float lr = hyper[0], momentum = hyper[1], decay = hyper[2];
    const u64 vectors = n / 4;
    Vec<4> w[ITEMS], v[ITEMS], g[ITEMS];
#pragma unroll
    for (u32 k = 0; k < ITEMS; k++) {
        const u64 i = first + k * THREADS;
        if (i < vectors) {
            w[k] = load<4>(w_in + 4 * i);
            v[k] = load<4>(v_in + 4 * i);
            g[k] = load<4>(g_in + 4 * i);
        }
    }
#pragma unroll
    for (u32 k = 0; k < ITEMS; k++) {
        const u64 i = first + k * THREADS;
        if (i < vectors) {
#pragma unroll
            for (u32 j = 0; j < 4; j++) sgd_step(w[k].v[j], v[k].v[j], g[k].v[j], lr, momentum, decay);
            store<4>(w_out + 4 * i, w[k]);
            store<4>(v_out + 4 * i, v[k]);
        }
    }
    const u64 tail = 4 * vectors + first;
    if (first < 4 && tail < n) {
        float w1 = w_in[tail], v1 = v_in[tail];
        sgd_step(w1, v1, g_in[tail], lr, momentum, decay);
        w_out[tail] = w1;
        v_out[tail] = v1;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    sgd(const float* w_in, const float* v_in, const float* g_in, const float* hyper, float* w_out, float* v_out,
        u64 n) {
    sgd_block(w_in, v_in, g_in, hyper, w_out, v_out, n, first_item());
}

// A weight has its blocks from first_block on to the next one's.
struct Weight {
    const float *w_in, *v_in, *g;
    float *w_out, *v_out;
    u32 n, first_block;
};
struct Weights {
    Weight all[64];
};

extern "C" __global__ void __launch_bounds__(THREADS)
    sgd_many(const float* hyper, u32 count, const __grid_constant__ Weights weights) {
    u32 i = 0;
    while (i + 1 < count && weights.all[i + 1].first_block <= blockIdx.x) i++;
    const Weight& x = weights.all[i];
    const u64 first = (u64)(blockIdx.x - x.first_block) * (THREADS * ITEMS) + threadIdx.x;
    sgd_block(x.w_in, x.v_in, x.g, hyper, x.w_out, x.v_out, x.n, first);
}

// n words of 32 bits at a 16-byte boundary.
extern "C" __global__ void __launch_bounds__(THREADS) fill32(u32* y, u32 value, u64 n) {
    const u64 vectors = n / 4, first = first_item();
    const uint4 v = make_uint4(value, value, value, value);
#pragma unroll
    for (u32 k = 0; k < ITEMS; k++) {
        const u64 i = first + k * THREADS;
        if (i < vectors) reinterpret_cast<uint4*>(y)[i] = v;
    }
    const u64 tail = 4 * vectors + first;
    if (first < 4 && tail < n) y[tail] = value;
}

// Elements of 1, 2 or 8 bytes whose bits are the low ones of `value`.
template <class T>
__device__ __forceinline__ void fill(T* y, u64 value, u64 n) {
    const u64 i = (u64)blockIdx.x * THREADS + threadIdx.x;
    if (i < n) y[i] = (T)value;
}
extern "C" __global__ void __launch_bounds__(THREADS) fill8(u8* y, u64 value, u64 n) { fill(y, value, n); }
extern "C" __global__ void __launch_bounds__(THREADS) fill16(u16* y, u64 value, u64 n) { fill(y, value, n); }
extern "C" __global__ void __launch_bounds__(THREADS) fill64(u64* y, u64 value, u64 n) { fill(y, value, n); }

// n bytes between 16-byte boundaries that do not overlap.
extern "C" __global__ void __launch_bounds__(THREADS) copy_bytes(const u8* x, u8* y, u64 n) {
    const u64 vectors = n / 16, first = first_item();
    uint4 v[ITEMS];
#pragma unroll
    for (u32 k = 0; k < ITEMS; k++) {
        const u64 i = first + k * THREADS;
        if (i < vectors) v[k] = reinterpret_cast<const uint4*>(x)[i];
    }
#pragma unroll
    for (u32 k = 0; k < ITEMS; k++) {
        const u64 i = first + k * THREADS;
        if (i < vectors) reinterpret_cast<uint4*>(y)[i] = v[k];
    }
    const u64 tail = 16 * vectors + first;
    if (first < 16 && tail < n) y[tail] = x[tail];
}

// Occupies its stream for about this time.
extern "C" __global__ void spin(u64 nanoseconds) {
    u64 start, now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(start));
    do {
        asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    } while (now - start < nanoseconds);
}
