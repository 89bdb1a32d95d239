// The geometry of pools. Gradients gather: each input position adds up, in a fixed order, what
// the windows over it send.
#pragma once
#include "common.cuh"

// Dimensions are depth, height, width; absent ones have extent 1.
struct Pool {
    u32 input[3], output[3], kernel[3], stride[3], before[3], after[3], dilation[3];
    u32 include_pad;
    Divisor in_height, in_width, in_depth, out_height, out_width, out_depth, channels;
    float full;  // 1 / positions of a window that lies within the input
};

constexpr u32 D = 0, H = 1, W = 2;

// The outputs lo..hi whose windows may cover input position i.
__device__ __forceinline__ void covering(u32 i, u32 output, u32 kernel, u32 stride, u32 before, u32 dilation, u32& lo,
                                         u32& hi) {
    const u32 at = i + before, span = (kernel - 1) * dilation;
    lo = at > span ? (at - span + stride - 1) / stride : 0;
    hi = min(at / stride + 1, output);
}

// How many taps of output o count in an average along one dimension.
__device__ __forceinline__ u32 taps(const Pool& p, u32 dim, u32 o) {
    const u32 start = o * p.stride[dim], d = p.dilation[dim];
    // Most windows lie within the input.
    if (start >= p.before[dim] && start + (p.kernel[dim] - 1) * d < p.before[dim] + p.input[dim]) return p.kernel[dim];
    const u32 from = p.include_pad ? 0 : p.before[dim];
    const u32 to = p.before[dim] + p.input[dim] + (p.include_pad ? p.after[dim] : 0);
    const u32 first = start < from ? (from - start + d - 1) / d : 0;
    const u32 last = start < to ? min((to - start + d - 1) / d, p.kernel[dim]) : 0;
    return last > first ? last - first : 0;
}

// The factor of a window's sum in the average, given the taps counted per dimension.
__device__ __forceinline__ float share(const Pool& p, u32 nd, u32 nh, u32 nw) {
    if (nd == p.kernel[D] && nh == p.kernel[H] && nw == p.kernel[W]) return p.full;
    return 1.0f / ((float)nd * (float)nh * (float)nw);
}
__device__ __forceinline__ float average(const Pool& p, u32 d, u32 h, u32 w) {
    return share(p, taps(p, D, d), taps(p, H, h), taps(p, W, w));
}

// The running maximum: the first of equals wins, NaN beats everything.
struct Best {
    float value;
    u32 tap;
    __device__ __forceinline__ void offer(float v, u32 t) {
        if (!(v <= value) && value == value) {
            value = v;
            tap = t;
        }
    }
};

// Nothing found yet in a window from h0, w0 on, both perhaps before the input; without dilation.
// Where all is negative infinity, the window's first tap within the input stays the maximum.
__device__ __forceinline__ Best no_best(u32 h0, u32 w0, u32 width) {
    const u32 first_h = (i32)h0 < 0 ? 0u - h0 : 0, first_w = (i32)w0 < 0 ? 0u - w0 : 0;
    return {-__int_as_float(0x7f800000), first_h * width + first_w};
}
