// Tensors laid behind each other along an axis.
#pragma once
#include "common.cuh"

// Rows of the result are made of a run of each piece; all lengths count units of one access.
constexpr u32 MAX_PIECES = 64;
struct Pieces {
    const void* from[MAX_PIECES];
    u32 end[MAX_PIECES];  // where the run of each ends in a row; the largest number behind the last
    u64 stride, first;    // between rows of the result, and of the first run in them
    Divisor row;
    u32 unused;
};

// The piece that place `at` of a row lies in, and where its run starts.
__device__ __forceinline__ u32 piece_of(const Pieces& p, u32 at, u32& start) {
    u32 k = 0;
#pragma unroll
    for (u32 step = MAX_PIECES / 2; step > 0; step /= 2) {
        if (p.end[k + step - 1] <= at) k += step;
    }
    start = k ? p.end[k - 1] : 0;
    return k;
}

// Where unit i of the runs comes from: a piece and the unit in it. `at` is the place in the row.
__device__ __forceinline__ const void* source(const Pieces& p, u32 i, u32& row, u32& at, u64& unit) {
    row = i;
    at = p.row.take(row);
    u32 start;
    const u32 k = piece_of(p, at, start);
    unit = (u64)row * (p.end[k] - start) + (at - start);
    return p.from[k];
}

// The same, and where it goes.
__device__ __forceinline__ const void* source(const Pieces& p, u32 i, u32& at, u64& unit, u64& target) {
    u32 row;
    const void* from = source(p, i, row, at, unit);
    target = row * p.stride + p.first + at;
    return from;
}
