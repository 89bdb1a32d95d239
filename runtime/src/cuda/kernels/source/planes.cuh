// What kernels that leave out zeros share: extents of a convolution, and copies to shared memory that
// are asynchronous.
#pragma once
#include "common.cuh"

// Extents of a convolution, the same for all blocks of threads.
struct Convolution {
    u32 channels, height, width, filters, out_height, out_width;
    i32 top, left;
};

#ifndef VDNN_EMULATED
extern __shared__ __align__(128) u8 dynamic_shared[];
__device__ __forceinline__ u32 address(const void* p) { return (u32)__cvta_generic_to_shared(p); }
// Copies an element, or writes zero.
__device__ __forceinline__ void copy4(float* to, const float* from, bool in) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(address(to)), "l"(from), "r"(in ? 4 : 0)
                 : "memory");
}
// Copies 16 bytes, or writes zeros.
__device__ __forceinline__ void copy16(u32 to, const void* from, bool in) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(in ? 16 : 0)
                 : "memory");
}
__device__ __forceinline__ void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
__device__ __forceinline__ void copies_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}
#endif
