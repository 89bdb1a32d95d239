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

// Four bytes of a and b, numbered 0 to 3 and 4 to 7: the lowest digit of `which` names the lowest
// byte. A digit of 8 more gives eight copies of that byte's sign.
__device__ __forceinline__ u32 bytes(u32 a, u32 b, u32 which) {
#ifdef __CUDA_ARCH__
    u32 r;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(which));
    return r;
#else
    u32 r = 0;
    for (u32 i = 0; i < 4; i++) {
        const u32 digit = which >> 4 * i & 15, from = (digit & 4 ? b : a) >> 8 * (digit & 3) & 0xff;
        r |= (digit & 8 ? (from & 0x80 ? 0xff : 0) : from) << 8 * i;
    }
    return r;
#endif
}

// Of two bf16 each, one in the lower and one in the upper half of a word:
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
#define BF16X2(OP, A, B)                                            \
    u32 r;                                                          \
    asm(OP " %0, %1, %2;" : "=r"(r) : "r"(A), "r"(B));              \
    return r
#endif
// halves of two words with a function of them, for where there is no instruction for both;
template <class F>
__device__ __forceinline__ u32 halves(u32 a, u32 b, const F& f) {
    return f(a & 0xffff, b & 0xffff) | f(a >> 16, b >> 16) << 16;
}
__device__ __forceinline__ float widen(u32 half) { return __uint_as_float(half << 16); }
// the larger ones, NaN where one is;
__device__ __forceinline__ u32 larger2(u32 a, u32 b) {
#ifdef BF16X2
    BF16X2("max.NaN.bf16x2", a, b);
#else
    return halves(a, b, [](u32 x, u32 y) -> u32 {
        const float p = widen(x), q = widen(y);
        return p != p || q != q ? 0x7fff : p > q || (p == q && y & 0x8000) ? x : y;
    });
#endif
}
// all ones where a is larger than b;
__device__ __forceinline__ u32 above2(u32 a, u32 b) {
#if defined(BF16X2) && __CUDA_ARCH__ >= 900
    BF16X2("set.gt.u32.bf16x2", a, b);
#else
    return halves(a, b, [](u32 x, u32 y) -> u32 { return widen(x) > widen(y) ? 0xffff : 0; });
#endif
}
// all ones where the bits are equal, none of which may look like zeros or NaN of f16;
__device__ __forceinline__ u32 equal2(u32 a, u32 b) {
#ifdef BF16X2
    BF16X2("set.eq.u32.f16x2", a, b);
#else
    return halves(a, b, [](u32 x, u32 y) -> u32 { return x == y ? 0xffff : 0; });
#endif
}
// the sums;
__device__ __forceinline__ u32 add2(u32 a, u32 b) {
#ifdef BF16X2
    u32 r;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(0x3f803f80u), "r"(b));
    return r;
#else
    return halves(a, b, [](u32 x, u32 y) -> u32 { return narrow(widen(x) + widen(y), 0.0f); });
#endif
}
// the same numbers with one zero, the positive, and one NaN, 0x7fff;
__device__ __forceinline__ u32 plain2(u32 a) { return add2(a, 0); }
// a sum's bits other than signs are zero as long as all that it was given was finite.
__device__ __forceinline__ u32 times_zero2(u32 a, u32 sum) {
#ifdef BF16X2
    asm("fma.rn.bf16x2 %0, %1, %2, %0;" : "+r"(sum) : "r"(a), "r"(0u));
    return sum;
#else
    return halves(a, sum, [](u32 x, u32 y) -> u32 { return y | ((x & 0x7f80) == 0x7f80 ? 0x7fff : 0); });
#endif
}

// N bytes from an address that they divide.
template <u32 N>
struct Words {
    u32 w[(N + 3) / 4];
};
template <u32 N>
__device__ __forceinline__ Words<N> fetch_words(const void* from) {
    Words<N> r;
    if constexpr (N == 16) {
        const uint4 t = *reinterpret_cast<const uint4*>(from);
        r.w[0] = t.x, r.w[1] = t.y, r.w[2] = t.z, r.w[3] = t.w;
    } else if constexpr (N == 8) {
        const uint2 t = *reinterpret_cast<const uint2*>(from);
        r.w[0] = t.x, r.w[1] = t.y;
    } else if constexpr (N == 4) {
        r.w[0] = *reinterpret_cast<const u32*>(from);
    } else if constexpr (N == 2) {
        r.w[0] = *reinterpret_cast<const u16*>(from);
    } else {
        r.w[0] = *reinterpret_cast<const u8*>(from);
    }
    return r;
}
template <u32 N>
__device__ __forceinline__ void store_words(void* to, const Words<N>& r) {
    if constexpr (N == 16) {
        *reinterpret_cast<uint4*>(to) = make_uint4(r.w[0], r.w[1], r.w[2], r.w[3]);
    } else if constexpr (N == 8) {
        *reinterpret_cast<uint2*>(to) = make_uint2(r.w[0], r.w[1]);
    } else if constexpr (N == 4) {
        *reinterpret_cast<u32*>(to) = r.w[0];
    } else if constexpr (N == 2) {
        *reinterpret_cast<u16*>(to) = (u16)r.w[0];
    } else {
        *reinterpret_cast<u8*>(to) = (u8)r.w[0];
    }
}
