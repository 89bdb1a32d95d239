// Enough of CUDA and of its matrix instructions to run printed kernels on the CPU. A thread is a
// coroutine; which one goes on is drawn at random, and which block's where blocks wait for one
// another. What is asynchronous happens as late as it may, or at once.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <type_traits>
#include <ucontext.h>
#include <vector>

#define VDNN_EMULATED
#define __global__
#define __device__
#define __constant__ static const
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(...)

typedef uint32_t u32;
typedef unsigned long long u64;
typedef uint16_t bf16;
struct alignas(16) Chunk { u32 x, y, z, w; };
struct Pair { float x, y; };
struct Index { unsigned x, y, z; };

[[noreturn]] static void fail(const char* what) { fprintf(stderr, "emulator: %s\n", what); exit(3); }

// Of the block that is running.
static unsigned char* shared;
constexpr size_t most_shared = 227 << 10;
static u32 shared_bytes;
static bool is_bf16, late;

static void check(u32 at, u32 size) {
  if (at % size || at + size > shared_bytes) fail("shared memory address");
}
static u32 word(u32 at) { u32 x; memcpy(&x, shared + at, 4); return x; }
static float real_of(u32 x) { float f; memcpy(&f, &x, 4); return f; }
static u32 bits_of(float f) { u32 x; memcpy(&x, &f, 4); return x; }

struct Copy { u32 to; Chunk value; };
struct Work { float* d; int n; u64 a, b; bool more; };
struct Thread {
  ucontext_t context;
  Index index;
  bool done;
  std::vector<std::vector<Copy>> groups;
  std::vector<Copy> copies;
  std::vector<Work> work;
  u32 sent, fragments[6];
};
struct Barrier { int here = 0; long round = 0; };
struct Block {
  Index index;
  unsigned char* memory;
  std::vector<Thread> threads;
  std::vector<Thread*> crew;
  std::map<int, Barrier> barriers;
};
static Block* block;
static Thread* self;
static ucontext_t home;
#define crew (block->crew)
#define barriers (block->barriers)
#define blockIdx (block->index)
#define threadIdx (self->index)
static u64 seed = 1;
static u32 draw() { seed = seed * 6364136223846793005ull + 1442695040888963407ull; return seed >> 33; }

static void pause() { swapcontext(&self->context, &home); }

// Barriers: by number, and one for all, and one per warp.
static void wait_at(int id, int threads) {
  Barrier& b = barriers[id];
  const long round = b.round;
  if (++b.here == threads) { b.here = 0; ++b.round; return; }
  while (barriers[id].round == round) pause();
}
static void __syncthreads() { wait_at(0, crew.size()); }
template <int N> static void meet(int id) {
  if (id < 1 || id > 15) fail("barrier number");
  wait_at(id, N);
}
static u32 swap(u32 x, int with) {
  const int warp = self->index.x / 32;
  self->sent = x;
  wait_at(1000 + warp, 32);
  const u32 got = crew[self->index.x ^ with]->sent;
  wait_at(1000 + warp, 32);
  return got;
}

static int uniform(int x) { return x; }
static int again(int x) { return x; }
static u32 address(const void* p) { return (const unsigned char*)p - shared; }
static void store(const Copy& c) { memcpy(shared + c.to, &c.value, 16); }
static void copy16(u32 to, const void* from, bool in) {
  check(to, 16);
  if ((uintptr_t)from % 16) fail("copy from an odd address");
  Copy c{to, {0, 0, 0, 0}};
  if (in) memcpy(&c.value, from, 16);
  if (late) {
    const Chunk none{0x7fc00000, 0x7fc00000, 0x7fc00000, 0x7fc00000};
    store(Copy{to, none});
    self->copies.push_back(c);
  } else {
    store(c);
  }
}
static void copies_commit() { self->groups.push_back(self->copies); self->copies.clear(); }
template <int N> static void copies_wait() {
  while (self->groups.size() > N) {
    for (const Copy& c : self->groups[0]) store(c);
    self->groups.erase(self->groups.begin());
  }
}
static void put16(u32 to, Chunk c) { check(to, 16); memcpy(shared + to, &c, 16); }
static void put8(u32 to, u32 a, u32 b) { check(to, 8); memcpy(shared + to, &a, 4); memcpy(shared + to + 4, &b, 4); }
static void put4(u32 to, u32 a) { check(to, 4); memcpy(shared + to, &a, 4); }
static Chunk get16(u32 at) { check(at, 16); Chunk c; memcpy(&c, shared + at, 16); return c; }
static Pair get_pair(u32 at) { check(at, 8); return Pair{real_of(word(at)), real_of(word(at + 4))}; }
static u32 tf32(float x) {
  const u32 b = bits_of(x);
  return std::isfinite(x) ? (b + 0x1000) & ~0x1fffu : b;
}
static u32 half_of(float x) {
  const u32 b = bits_of(x);
  return std::isnan(x) ? 0x7fff : (b + 0x7fff + (b >> 16 & 1)) >> 16;
}
static u32 bf16x2(float lo, float hi) { return half_of(lo) | half_of(hi) << 16; }
static u32 max_bf16x2(u32 a, u32 b) {
  const u32 lo = bits_of(fmaxf(real_of(a << 16), real_of(b << 16))) >> 16;
  return lo | (bits_of(fmaxf(real_of(a & 0xffff0000u), real_of(b & 0xffff0000u))) & 0xffff0000u);
}
static void written() {}
static void products_fence() {}
static void products_commit() {}

// Rows of eight times 16 bytes: the matrix a descriptor describes, without swizzle.
static float element(u64 d, int row, int k) {
  const u32 start = (d & 0x3fff) * 16, lead = (d >> 16 & 0x3fff) * 16, stride = (d >> 32 & 0x3fff) * 16;
  if (d >> 46) fail("descriptor");
  const int per = is_bf16 ? 8 : 4;
  const u32 at = start + row / 8 * stride + row % 8 * 16 + k / per * lead;
  check(at, 16);
  // The units drop what is behind the tenth bit.
  if (!is_bf16) return real_of(word(at + k % per * 4) & ~0x1fffu);
  uint16_t h;
  memcpy(&h, shared + at + k % per * 2, 2);
  return real_of((u32)h << 16);
}
static void run(const Work& w) {
  const int t = self->index.x % 128, warp = t / 32, row = t % 32 / 4, lane = t % 4, depth = is_bf16 ? 16 : 8;
  for (int h = 0; h < 2; ++h) {
    float a[16];
    for (int k = 0; k < depth; ++k) a[k] = element(w.a, warp * 16 + row + 8 * h, k);
    for (int j = 0; j < w.n / 8; ++j)
      for (int e = 0; e < 2; ++e) {
        float& d = w.d[4 * j + 2 * h + e];
        float sum = w.more ? d : 0.0f;
        for (int k = 0; k < depth; ++k) sum += a[k] * element(w.b, 8 * j + 2 * lane + e, k);
        d = sum;
      }
  }
}
// As a warp group does it.
template <int N, int ROWS> static void product(float (&d)[N / 2], u32 a, u32 b, int more) {
  const Work w{d, N, (u64)ROWS << 32 | a, (u64)8 << 32 | b, more != 0};
  if (late) self->work.push_back(w); else run(w);
}
// As the lanes of a warp do it: matrices of 8 rows of 16 bytes, each lane has the address of a row.
static void read4(u32 (&r)[4], u32 at) {
  check(at, 16);
  const int t = self->index.x, warp = t / 32;
  self->sent = at;
  wait_at(1000 + warp, 32);
  for (int i = 0; i < 4; ++i) r[i] = word(crew[warp * 32 + i * 8 + t % 32 / 4]->sent + t % 4 * 4);
  wait_at(1000 + warp, 32);
}
// D[16,8] += A[16,k] B[k,8], by the fragments of mma.m16n8k8 for tf32 and mma.m16n8k16 for bf16.
static void multiply(float* d, const u32 (&a)[4], u32 x, u32 y) {
  const int t = self->index.x, warp = t / 32, row = t % 32 / 4, lane = t % 4;
  memcpy(self->fragments, a, 16);
  self->fragments[4] = x;
  self->fragments[5] = y;
  wait_at(1000 + warp, 32);
  const int per = is_bf16 ? 2 : 1;
  auto value = [&](u32 w, int k) { return is_bf16 ? real_of(k % 2 ? w & 0xffff0000u : w << 16) : real_of(w & ~0x1fffu); };
  for (int h = 0; h < 2; ++h)
    for (int e = 0; e < 2; ++e)
      for (int k = 0; k < 8 * per; ++k) {
        const int half = k / (4 * per), from = k / per % 4;
        const u32 p = crew[warp * 32 + row * 4 + from]->fragments[2 * half + h];
        const u32 q = crew[warp * 32 + (2 * lane + e) * 4 + from]->fragments[4 + half];
        d[2 * h + e] += value(p, k) * value(q, k);
      }
  wait_at(1000 + warp, 32);
}
static void products_wait() {
  for (const Work& w : self->work) run(w);
  self->work.clear();
}
template <int N> static void settled(float (&)[N]) {}
static u32 __float_as_uint(float x) { return bits_of(x); }
static float __uint_as_float(u32 x) { return real_of(x); }
static float __int_as_float(u32 x) { return real_of(x); }

static std::function<void()> body;
static void start() { body(); self->done = true; for (;;) pause(); }

constexpr size_t stack = 64 << 10;

// Some blocks until all are done, a thread of each in turn.
static void run_blocks(std::vector<Block>& all, int threads) {
  std::vector<char> stacks(all.size() * threads * stack);
  size_t place = 0;
  for (Block& b : all) {
    block = &b;
    b.memory = (unsigned char*)aligned_alloc(128, most_shared);
    memset(b.memory, 0xff, most_shared);
    b.threads = std::vector<Thread>(threads);
    for (int t = 0; t < threads; ++t) {
      Thread& x = b.threads[t];
      x.index = {(unsigned)t, 0, 0};
      x.done = false;
      getcontext(&x.context);
      x.context.uc_stack.ss_sp = &stacks[place++ * stack];
      x.context.uc_stack.ss_size = stack;
      x.context.uc_link = &home;
      makecontext(&x.context, start, 0);
      crew.push_back(&x);
    }
  }
  for (int left = 1; left;) {
    left = 0;
    const int first = draw() % all.size();
    for (size_t i = 0; i < all.size(); ++i) {
      block = &all[(first + i) % all.size()];
      shared = block->memory;
      const int from = draw() % threads, step = draw() % 2 ? 1 : threads - 1;
      for (int i = 0; i < threads; ++i) {
        Thread* t = crew[(from + (long)i * step) % threads];
        if (t->done) continue;
        ++left;
        self = t;
        swapcontext(&home, &t->context);
      }
    }
  }
  for (Block& b : all) free(b.memory);
}

// Blocks one after the other, or all of them at once.
static void launch(int blocks, int threads, u32 bytes, std::function<void()> kernel, bool at_once = false) {
  shared_bytes = bytes;
  body = kernel;
  for (int first = 0; first < blocks;) {
    std::vector<Block> all(at_once ? blocks : 1);
    for (Block& b : all) b.index = {(unsigned)first++, 0, 0};
    run_blocks(all, threads);
  }
}
