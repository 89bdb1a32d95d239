// What the kernels of convolutions with packed weights share.
#pragma once
#include "planes.cuh"

// An entry of packed weights: its column, or one that no weight has.
struct Entry {
    i32 column, value;
};
__device__ __forceinline__ Entry entry(const i32* __restrict__ entries, i32 at, i32 end) {
    Entry e = {0x7fffffff, 0};
#ifdef VDNN_EMULATED
    if (at < end) e = {entries[2 * at], entries[2 * at + 1]};
#else
    // A branch would cost a point where lanes meet again.
    asm volatile(
        "{.reg .pred in; setp.lt.s32 in, %2, %3; @in ld.global.nc.b32 %0, [%4]; @in ld.global.nc.b32 %1, [%4 + 4];}"
        : "+r"(e.column), "+r"(e.value)
        : "r"(at), "r"(end), "l"(entries + 2 * (i64)at));
#endif
    return e;
}

// max(v, 0), and NaN of NaN.
__device__ __forceinline__ float positive(float v) { return v <= 0.0f ? 0.0f : v; }
