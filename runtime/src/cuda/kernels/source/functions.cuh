// Elementwise functions of one and two elements and their gradients.
#pragma once
#include "common.cuh"

#define FUNCTION(NAME, BODY)                                         \
    struct NAME {                                                    \
        float p, q;                                                  \
        __device__ __forceinline__ float operator()(float x) const { \
            BODY                                                     \
        }                                                            \
    };

// Limits x; keeps NaN.
__device__ __forceinline__ float limit(float x, float lo, float hi) { return x < lo ? lo : (x > hi ? hi : x); }

FUNCTION(Relu, return x <= 0.0f ? 0.0f : x;)
FUNCTION(LeakyRelu, return x < 0.0f ? p * x : x;)
FUNCTION(Clip, return limit(x, p, q);)
// The sum is one by itself, so that the bits are those of a program, where no sum takes a product.
FUNCTION(Sigmoid, return 1.0f / __fadd_rn(1.0f, expf(-x));)
FUNCTION(HardSigmoid, return limit(fmaf(p, x, q), 0.0f, 1.0f);)
FUNCTION(HardSwish, return x * limit(fmaf(x, 1.0f / 6.0f, 0.5f), 0.0f, 1.0f);)
FUNCTION(Tanh, return tanhf(x);)
FUNCTION(Elu, return x < 0.0f ? p * expm1f(x) : x;)
FUNCTION(Exp, return expf(x);)
FUNCTION(Log, return logf(x);)
FUNCTION(Sqrt, return sqrtf(x);)
FUNCTION(Neg, return -x;)
FUNCTION(Abs, return fabsf(x);)
FUNCTION(Reciprocal, return 1.0f / x;)
FUNCTION(Affine, return fmaf(p, x, q);)
FUNCTION(PowConst, return powf(x, p);)
FUNCTION(Square, return x * x;)

// Derivatives, of the saved operand. Where a function has a kink the slope is PyTorch's.
FUNCTION(ReluSlope, return x > 0.0f ? 1.0f : 0.0f;)
FUNCTION(LeakyReluSlope, return x > 0.0f ? 1.0f : p;)
FUNCTION(ClipSlope, return x >= p && x <= q ? 1.0f : 0.0f;)
FUNCTION(SigmoidSlope, return x * (1.0f - x);)
// In f64, where p*x + q is exact enough to tell on which side of a bound it lies.
FUNCTION(HardSigmoidSlope, const double t = (double)p * x + (double)q; return t >= 0.0 && t <= 1.0 ? p : 0.0f;)
FUNCTION(HardSwishSlope, if (x < -3.0f) return 0.0f; if (x > 3.0f) return 1.0f; return fmaf(x, 1.0f / 3.0f, 0.5f);)
FUNCTION(TanhSlope, return fmaf(-x, x, 1.0f);)
FUNCTION(EluSlope, return x > 0.0f ? 1.0f : p * expf(x);)
FUNCTION(ExpSlope, return x;)
FUNCTION(LogSlope, return 1.0f / x;)
FUNCTION(SqrtSlope, return 0.5f / x;)
FUNCTION(NegSlope, return -1.0f;)
FUNCTION(AbsSlope, return x > 0.0f ? 1.0f : (x < 0.0f ? -1.0f : x);)
FUNCTION(ReciprocalSlope, return -x * x;)
FUNCTION(AffineSlope, return p;)
FUNCTION(PowConstSlope, return p == 0.0f ? 0.0f : p * powf(x, p - 1.0f);)
FUNCTION(SquareSlope, return 2.0f * x;)

// A closed gate stops infinities too.
__device__ __forceinline__ float through(float dy, float slope) { return slope == 0.0f ? 0.0f : dy * slope; }

template <class F>
struct Gradient {
    F slope;
    __device__ __forceinline__ float operator()(float dy, float s) const { return through(dy, slope(s)); }
};

// ---- two operands --------------------------------------------------------------------

struct Add {
    template <class T>
    __device__ __forceinline__ T operator()(T a, T b) const {
        return a + b;
    }
};
struct Sub {
    template <class T>
    __device__ __forceinline__ T operator()(T a, T b) const {
        return a - b;
    }
};
struct Mul {
    template <class T>
    __device__ __forceinline__ T operator()(T a, T b) const {
        return a * b;
    }
};
struct Div {
    __device__ __forceinline__ float operator()(float a, float b) const { return a / b; }
    __device__ __forceinline__ double operator()(double a, double b) const { return a / b; }
    // Zero for a division by zero; -1 apart, as the quotient may wrap.
    __device__ __forceinline__ i64 operator()(i64 a, i64 b) const {
        if (b == 0) return 0;
        return b == -1 ? (i64)(0ull - (u64)a) : a / b;
    }
};
struct Pow {
    __device__ __forceinline__ float operator()(float a, float b) const { return powf(a, b); }
    __device__ __forceinline__ double operator()(double a, double b) const { return pow(a, b); }
    // Wraps; zero for a negative exponent.
    __device__ __forceinline__ i64 operator()(i64 a, i64 b) const {
        if (b < 0) return 0;
        u64 power = 1, base = (u64)a;
        for (u64 e = (u64)b; e > 0; e >>= 1) {
            if (e & 1) power *= base;
            base *= base;
        }
        return (i64)power;
    }
};
// NaN in either operand gives NaN.
struct Maximum {
    template <class T>
    __device__ __forceinline__ T operator()(T a, T b) const {
        return a > b || a != a ? a : b;
    }
};
struct Minimum {
    template <class T>
    __device__ __forceinline__ T operator()(T a, T b) const {
        return a < b || a != a ? a : b;
    }
};
struct PRelu {
    template <class T>
    __device__ __forceinline__ T operator()(T a, T b) const {
        return a < 0 ? a * b : a;
    }
};
struct Gate {
    template <class T>
    __device__ __forceinline__ T operator()(T a, T b) const {
        return b > 0 ? a : (T)0;
    }
};
