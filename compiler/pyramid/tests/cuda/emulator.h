// Enough of CUDA to run printed kernels on the CPU: a block's threads are threads.
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __restrict__
#define __shared__
#define __launch_bounds__(n)

struct Index { int x, y, z; };
static thread_local Index threadIdx, blockIdx;
extern float shared[];

// A barrier that all threads of a block reach before any leaves it.
static std::atomic<int> waiting, round_;
static int threads;
static void __syncthreads() {
  const int now = round_.load();
  if (waiting.fetch_add(1) + 1 == threads) {
    waiting.store(0);
    round_.fetch_add(1);
  } else {
    while (round_.load() == now) std::this_thread::yield();
  }
}
static float __int_as_float(uint32_t bits) { float x; std::memcpy(&x, &bits, 4); return x; }
static float __fmul_rn(float a, float b) { return a * b; }
static float __fadd_rn(float a, float b) { return a + b; }
