// Bytes and bf16 by the word: accesses of any width, and instructions for two numbers at once.
#pragma once
#include "common.cuh"

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
