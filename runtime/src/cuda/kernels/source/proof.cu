// For tests of a plan's waits: delays whose lengths change without a new graph, and a
// comparison of what two courses of steps left; and a failure.
#include "common.cuh"

// Occupies its stream for as many nanoseconds as the word says.
extern "C" __global__ void spin_for(const u32* nanoseconds) {
    const u64 length = *(const volatile u32*)nanoseconds;
    u64 start, now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(start));
    do {
        asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    } while (now - start < length);
}

// Adds the number of words that differ.
extern "C" __global__ void __launch_bounds__(THREADS)
    count_different(const u32* a, const u32* b, u64 n, u32* found) {
    u32 mine = 0;
    const u64 stride = (u64)gridDim.x * THREADS;
    for (u64 i = (u64)blockIdx.x * THREADS + threadIdx.x; i < n; i += stride) mine += a[i] != b[i];
    if (mine) atomicAdd(found, mine);
}

// Fails.
extern "C" __global__ void trap() { __trap(); }
