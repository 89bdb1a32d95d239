// Tensors to the host without their zeros, and back (vdnn_ir::packed has the format). One end is
// device memory, the other pinned memory of the host, read and written over the link: there all
// accesses are of 16 bytes, neighbouring threads' next to each other. A block does GROUPS chunks at
// a time, so that a few blocks keep the link busy and leave the other multiprocessors to the step.
#include "common.cuh"

constexpr u32 CHUNK = 2048;
constexpr u32 GROUPS = 4;
// Threads of a group: each has EACH elements and one byte of the mask.
constexpr u32 EACH = 8;
constexpr u32 MASK = CHUNK / EACH;

template <class T>
struct Slot {
    static constexpr u64 bytes = MASK + CHUNK * sizeof(T);
    static constexpr u32 in_vector = 16 / sizeof(T);
};

// The sum of what the group's threads before this one have, and of all of them. Barriers.
__device__ __forceinline__ u32 count_before(u32 count, u32* warps, u32& all) {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u32 before = 0;
#pragma unroll
    for (u32 half = 1; half < 32; half *= 2) {
        const u32 other = __shfl_xor_sync(0xffffffffu, count, half);
        if (lane & half) before += other;
        count += other;
    }
    if (lane == 0) warps[warp] = count;
    __syncthreads();
    constexpr u32 WARPS = MASK / 32;
    const u32 first = warp / WARPS * WARPS;
    all = 0;
#pragma unroll
    for (u32 w = 0; w < WARPS; ++w) {
        const u32 there = warps[first + w];
        if (first + w < warp) before += there;
        all += there;
    }
    return before;
}

template <class T>
__device__ __forceinline__ void pack(const T* __restrict__ x, u64 elements, u8* __restrict__ to) {
    __shared__ __align__(16) T values[GROUPS][CHUNK];
    __shared__ __align__(16) u8 masks[GROUPS][MASK];
    __shared__ u32 warps[GROUPS * MASK / 32];
    const u32 group = threadIdx.x / MASK, t = threadIdx.x % MASK;
    const u64 chunks = (elements + CHUNK - 1) / CHUNK;
    for (u64 first = (u64)blockIdx.x * GROUPS; first < chunks; first += (u64)gridDim.x * GROUPS) {
        const u64 chunk = first + group, at = chunk * CHUNK + t * EACH;
        __align__(16) T element[EACH];
        if (at + EACH <= elements) {
#pragma unroll
            for (u32 v = 0; v < EACH / Slot<T>::in_vector; ++v) {
                ((uint4*)element)[v] = ((const uint4*)(x + at))[v];
            }
        } else {
#pragma unroll
            for (u32 i = 0; i < EACH; ++i) element[i] = at + i < elements ? x[at + i] : 0;
        }
        u32 mask = 0;
#pragma unroll
        for (u32 i = 0; i < EACH; ++i) mask |= (element[i] != 0 ? 1u : 0u) << i;
        masks[group][t] = (u8)mask;
        u32 all;
        u32 slot = count_before(__popc(mask), warps, all);
#pragma unroll
        for (u32 i = 0; i < EACH; ++i) {
            if (mask >> i & 1) values[group][slot++] = element[i];
        }
        __syncthreads();
        if (chunk < chunks) {
            uint4* out = (uint4*)(to + chunk * Slot<T>::bytes);
            if (t < MASK / 16) out[t] = ((const uint4*)masks[group])[t];
            const u32 vectors = (all + Slot<T>::in_vector - 1) / Slot<T>::in_vector;
            for (u32 v = t; v < vectors; v += MASK) out[MASK / 16 + v] = ((const uint4*)values[group])[v];
        }
        __syncthreads();
    }
}

template <class T>
__device__ __forceinline__ void unpack(const u8* __restrict__ from, u64 elements, T* __restrict__ y) {
    __shared__ __align__(16) T values[GROUPS][CHUNK];
    __shared__ __align__(16) u8 masks[GROUPS][MASK];
    __shared__ u32 warps[GROUPS * MASK / 32];
    const u32 group = threadIdx.x / MASK, t = threadIdx.x % MASK;
    const u64 chunks = (elements + CHUNK - 1) / CHUNK;
    for (u64 first = (u64)blockIdx.x * GROUPS; first < chunks; first += (u64)gridDim.x * GROUPS) {
        const u64 chunk = first + group, at = chunk * CHUNK + t * EACH;
        const uint4* in = (const uint4*)(from + chunk * Slot<T>::bytes);
        if (t < MASK / 16) ((uint4*)masks[group])[t] = chunk < chunks ? in[t] : make_uint4(0, 0, 0, 0);
        __syncthreads();
        const u32 mask = masks[group][t];
        u32 all;
        u32 slot = count_before(__popc(mask), warps, all);
        const u32 vectors = (all + Slot<T>::in_vector - 1) / Slot<T>::in_vector;
        for (u32 v = t; v < vectors; v += MASK) ((uint4*)values[group])[v] = in[MASK / 16 + v];
        __syncthreads();
        __align__(16) T element[EACH];
#pragma unroll
        for (u32 i = 0; i < EACH; ++i) {
            element[i] = 0;
            if (mask >> i & 1) element[i] = values[group][slot++];
        }
        if (at + EACH <= elements) {
#pragma unroll
            for (u32 v = 0; v < EACH / Slot<T>::in_vector; ++v) {
                ((uint4*)(y + at))[v] = ((const uint4*)element)[v];
            }
        } else {
#pragma unroll
            for (u32 i = 0; i < EACH; ++i) {
                if (at + i < elements) y[at + i] = element[i];
            }
        }
        __syncthreads();
    }
}

#define PACK(NAME, T)                                                                                      \
    extern "C" __global__ void __launch_bounds__(GROUPS * MASK) NAME(const T* x, u64 elements, u8* to) {   \
        pack<T>(x, elements, to);                                                                          \
    }
#define UNPACK(NAME, T)                                                                                    \
    extern "C" __global__ void __launch_bounds__(GROUPS * MASK) NAME(const u8* from, u64 elements, T* y) { \
        unpack<T>(from, elements, y);                                                                      \
    }
