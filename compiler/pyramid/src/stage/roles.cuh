// What the blocks of a stage's kernel do, beside the constants and the kernel itself, which are
// printed in front and behind: IMAGES, HEIGHT, WIDTH.
//
// Three warp groups of a block make tiles of 64 positions each, in the order of images and bands
// of eight rows. A product's terms are channels in an order of our own, so that what a thread has
// of a sum, four channels side by side of two positions, is also what it gives of a factor: a 1x1
// layer's result becomes the next one's input without leaving its registers, and every access to
// memory is of 16 bytes.
#define POSITIONS (HEIGHT * WIDTH)
#define ACROSS (WIDTH / 8)
#define BANDS (HEIGHT / 8)
#define TILES (ACROSS * BANDS)
#define MID 64
#define OUT 256
// Which warp of a group watches others, and which says what is done: each waits for memory.
#define WATCH 1
#define ANNOUNCE 2
#define WINDOW_SLOT (16 * 101 * 16)
#ifndef VDNN_EMULATED
extern __shared__ __align__(128) unsigned char shared[];
// Not by the first-level cache, which would not notice that a ring goes round.
__device__ __forceinline__ Chunk load16(const float* p) {
  Chunk c;
  asm volatile("ld.global.cg.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(c.x), "=r"(c.y), "=r"(c.z), "=r"(c.w) : "l"(p) : "memory");
  return c;
}
__device__ __forceinline__ void store16(float* p, Chunk c) {
  asm volatile("st.global.cg.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(c.x), "r"(c.y), "r"(c.z), "r"(c.w) : "memory");
}
__device__ __forceinline__ int seen(const int* p) {
  int n;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(n) : "l"(p) : "memory");
  return n;
}
__device__ __forceinline__ void announce(int* p) { asm volatile("red.release.gpu.global.add.s32 [%0], 1;" ::"l"(p) : "memory"); }
__device__ __forceinline__ void rest() { __nanosleep(20); }
__device__ __forceinline__ void warp_meet() { __syncwarp(); }
// Whether it is so for all threads of a warp group.
__device__ __forceinline__ bool all_of(int id, bool mine) {
  int all;
  asm volatile("{\n.reg .pred p, q;\nsetp.ne.b32 q, %2, 0;\nbar.red.and.pred p, %1, 128, q;\nselp.b32 %0, 1, 0, p;\n}\n"
               : "=r"(all) : "r"(id), "r"((int)mine) : "memory");
  return all;
}
#define SUMS(d) \
  "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), \
      "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), \
      "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
#define REGISTERS \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}"
// A product of 64 rows, 64 columns and 8 terms, the rows in registers.
__device__ __forceinline__ void product_held(float (&d)[32], const u32* a, u32 b, int more) {
  asm volatile("{\n.reg .pred p;\n.reg .b64 y;\nsetp.ne.b32 p, %38, 0;\nmov.b64 y, {%36, %37};\n"
               "wgmma.mma_async.sync.aligned.m64n64k8.f32.tf32.tf32 " REGISTERS ", {%32, %33, %34, %35}, y, p, 1, 1;\n}\n"
               : SUMS(d) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b), "n"(8), "r"(more));
}
// The same with rows in shared memory, eight of them ten positions from the next eight.
__device__ __forceinline__ void product_placed(float (&d)[32], u32 a, u32 b, int more) {
  asm volatile("{\n.reg .pred p;\n.reg .b64 x, y;\nsetp.ne.b32 p, %36, 0;\nmov.b64 x, {%32, %33};\nmov.b64 y, {%34, %35};\n"
               "wgmma.mma_async.sync.aligned.m64n64k8.f32.tf32.tf32 " REGISTERS ", x, y, p, 1, 1;\n}\n"
               : SUMS(d) : "r"(a), "n"(10), "r"(b), "n"(8), "r"(more));
}
#endif

// A role: its number, its blocks, and whom it waits for: of `from` it reads what is done; what of
// `back` is not done, so many images ago, is still read where it writes. Negative: of nobody.
struct Role { int number, first, blocks, from, back, images, other_back, other_images; };

// Some images after each other, again and again, of so many channels.
struct Ring { float* at; int images; };
template <int CHANNELS> __device__ __forceinline__ float* of_image(const Ring& ring, int image) {
  return ring.at + (u64)(image % ring.images) * (POSITIONS * CHANNELS);
}

// How many tiles of a band are done.
__device__ __forceinline__ int* band_of(int* done, int role, int image, int band) {
  return done + (role * IMAGES + image) * BANDS + band;
}
// What a thread of a warp watches for a tile: windows reach into the bands beside it.
__device__ __forceinline__ const int* watched(int* done, const Role& role, int reach, int tile, int lane) {
  const int image = tile / TILES, band = tile % TILES / ACROSS;
  if (lane < 3 && role.from >= 0) {
    const int b = band + lane - 1;
    if (b >= 0 && b < BANDS && (reach || lane == 1)) return band_of(done, role.from, image, b);
  } else if (lane >= 4 && lane < 11 && lane != 7) {
    const int who = lane < 7 ? role.back : role.other_back, before = image - (lane < 7 ? role.images : role.other_images);
    const int b = band + lane % 4 - 1;
    if (who >= 0 && before >= 0 && b >= 0 && b < BANDS) return band_of(done, who, before, b);
  }
  return nullptr;
}
__device__ __forceinline__ bool is_ready(const int* p) { return !p || seen(p) >= ACROSS; }
// A warp group waits until a tile can be made.
__device__ __forceinline__ void wait_for(int* done, const Role& role, int reach, int tile, int thread, int group) {
  if (thread / 32 == WATCH) {
    const int* p = watched(done, role, reach, tile, thread % 32);
    while (!is_ready(p)) rest();
    warp_meet();
  }
  meet<128>(1 + group);
}
// Says that a tile is done, which waits for its stores: while products are under way.
__device__ __forceinline__ void announce_last(int*& last) {
  if (last) announce(last);
  last = nullptr;
}

// The column of 64 in which an output's sums are.
__device__ __forceinline__ int column(int out) { return 8 * (out / 16 * 2 + out % 4 / 2) + out % 16 / 4 * 2 + out % 2; }
// Weights of a 1x1 convolution, [outs][ins], as products read them: OUTS to a term. Several are on
// their way at once.
template <int INS, int OUTS> __device__ __forceinline__ void keep_points(const float* w, u32 to) {
  constexpr int ALL = OUTS * INS / 16, EACH = (ALL + 383) / 384;
  Chunk c[EACH][4];
#pragma unroll
  for (int j = 0; j < EACH; ++j) {
    const int i = threadIdx.x + j * 384;
    const float* p = w + (i < ALL ? i / (INS / 16) * INS + i % (INS / 16) * 16 : 0);
#pragma unroll
    for (int k = 0; k < 4; ++k) c[j][k] = load16(p + 4 * k);
  }
#pragma unroll
  for (int j = 0; j < EACH; ++j) {
    const int i = threadIdx.x + j * 384, out = i / (INS / 16), part = i % (INS / 16);
    if (i >= ALL) break;
    const u32 at = to + (part * 4 * OUTS + out / 64 * 64 + column(out % 64)) * 16;
    put16(at, rounded(Chunk{c[j][0].x, c[j][1].x, c[j][2].x, c[j][3].x}));
    put16(at + OUTS * 16, rounded(Chunk{c[j][0].y, c[j][1].y, c[j][2].y, c[j][3].y}));
    put16(at + OUTS * 32, rounded(Chunk{c[j][0].z, c[j][1].z, c[j][2].z, c[j][3].z}));
    put16(at + OUTS * 48, rounded(Chunk{c[j][0].w, c[j][1].w, c[j][2].w, c[j][3].w}));
  }
}
// Weights of a 3x3 convolution, [outs][taps][ins].
__device__ __forceinline__ void keep_windows(const float* w, u32 to) {
#pragma unroll 1
  for (int i = threadIdx.x; i < MID * 9 * 16; i += 8 * 384) {
    Chunk c[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) c[j] = load16(w + (i + j * 384) * 4);
#pragma unroll
    for (int j = 0; j < 8; ++j) put16(to + ((i + j * 384) % 144 * 64 + column((i + j * 384) / 144)) * 16, rounded(c[j]));
  }
}

// Four channels behind bias, `r` and ReLU.
__device__ __forceinline__ Chunk finished(const float* sums, int half, Chunk bias, Chunk r) {
  const float* s = sums + 2 * half;
  return Chunk{bits(fmaxf(s[0] + real(bias.x) + real(r.x), 0.0f)), bits(fmaxf(s[1] + real(bias.y) + real(r.y), 0.0f)),
               bits(fmaxf(s[4] + real(bias.z) + real(r.z), 0.0f)), bits(fmaxf(s[5] + real(bias.w) + real(r.w), 0.0f))};
}
// 64 channels of two positions as factors, from memory.
__device__ __forceinline__ void fetch(u32 (&a)[32], const float* p) {
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    const Chunk v = load16(p + 16 * c), u = load16(p + 8 * MID + 16 * c);
    const u32 all[8] = {v.x, u.x, v.y, u.y, v.z, u.z, v.w, u.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) a[8 * c + i] = all[i];
  }
}
__device__ __forceinline__ void round_all(u32 (&a)[32]) {
#pragma unroll
  for (int i = 0; i < 32; ++i) a[i] = tf32(real(a[i]));
}
// 64 finished sums of two positions, rounded, as the next layer reads them.
__device__ __forceinline__ void put_mid(float* to, int step, const float (&sums)[32], const Chunk (&bias)[4]) {
#pragma unroll
  for (int c = 0; c < 4; ++c)
#pragma unroll
    for (int h = 0; h < 2; ++h) store16(to + h * step + 16 * c, rounded(finished(sums + 8 * c, h, bias[c], Chunk{0, 0, 0, 0})));
}

// The stage's input through a 1x1 convolution.
__device__ __forceinline__ void enter(const Role role, int* done, const float* x, const float* w, const float* b, const Ring to) {
  const int group = uniform(threadIdx.x / 128), thread = threadIdx.x % 128, lane = thread % 4;
  const int row = thread / 32 * 16 + thread % 32 / 4;
  const u32 weights = address(shared);
  keep_points<MID, MID>(w, weights);
  Chunk bias[4];
#pragma unroll
  for (int c = 0; c < 4; ++c) bias[c] = load16(b + 16 * c + 4 * lane);
  written();
  __syncthreads();
  for (int tile = (blockIdx.x - role.first) * 3 + group; tile < IMAGES * TILES; tile += role.blocks * 3) {
    const int image = tile / TILES, at = (tile % TILES * 64 + row) * MID + 4 * lane;
    u32 a[32];
    fetch(a, x + (u64)image * (POSITIONS * MID) + at);
    wait_for(done, role, 0, tile, thread, group);
    round_all(a);
    float sums[32];
    products_fence();
#pragma unroll
    for (int k = 0; k < 8; ++k) product_held(sums, a + 4 * k, (weights / 16 | MID << 16) + k * 2 * MID, k > 0);
    products_commit();
    products_wait();
    settled(sums);
    put_mid(of_image<MID>(to, image) + at, 8 * MID, sums, bias);
    meet<128>(1 + group);
    if (thread == 0) announce(band_of(done, role.number, image, tile % TILES / ACROSS));
  }
}

// Half the channels of a tile of 8x8 with its halo, zeros outside.
template <int HALF> __device__ __forceinline__ void bring(const Ring& from, u32 slot, int tile, int thread) {
  const int top = tile % TILES / ACROSS * 8 - 1, left = tile % ACROSS * 8 - 1;
  const float* image = of_image<MID>(from, tile / TILES) + HALF * 32;
#pragma unroll
  for (int i = 0; i < 7; ++i) {
    const int k = thread + i * 128, chunk = k % 8, p = k / 8, y = top + p / 10, x = left + p % 10;
    const bool in = (u32)y < HEIGHT && (u32)x < WIDTH;
    if (k < 800) copy16(slot + ((chunk + HALF * 8) * 101 + p) * 16, image + (in ? (y * WIDTH + x) * MID + chunk * 4 : 0), in);
  }
}
template <int HALF> __device__ __forceinline__ void multiply_windows(float (&sums)[32], u32 slot, u32 weights, int*& last) {
  const u32 a = slot / 16 | 101 << 16, b = weights / 16 | MID << 16;
  products_fence();
#pragma unroll
  for (int tap = 0; tap < 9; ++tap)
#pragma unroll
    for (int c = HALF * 8; c < HALF * 8 + 8; c += 2)
      product_placed(sums, a + c * 101 + tap / 3 * 10 + tap % 3, b + (tap * 16 + c) * MID, HALF + tap + c > 0);
  products_commit();
  announce_last(last);
  products_wait();
  settled(sums);
}
// The 3x3 convolution of a block. While one half of the channels is multiplied, the other is on
// its way, of the next tile if that can be made already.
__device__ __forceinline__ void window(const Role role, int* done, const Ring from, const float* w, const float* b, const Ring to) {
  const int group = uniform(threadIdx.x / 128), thread = threadIdx.x % 128, lane = thread % 4;
  const int row = thread / 32 * 16 + thread % 32 / 4;
  const u32 weights = address(shared), slot = weights + 9 * MID * MID * 4 + group * WINDOW_SLOT;
  keep_windows(w, weights);
  Chunk bias[4];
#pragma unroll
  for (int c = 0; c < 4; ++c) bias[c] = load16(b + 16 * c + 4 * lane);
  written();
  __syncthreads();
  bool loaded = false;
  int* last = nullptr;
  const int step = role.blocks * 3;
  for (int tile = (blockIdx.x - role.first) * 3 + group; tile < IMAGES * TILES; tile += step) {
    if (!loaded) {
      announce_last(last);
      wait_for(done, role, 1, tile, thread, group);
      bring<0>(from, slot, tile, thread);
      copies_commit();
      bring<1>(from, slot, tile, thread);
      copies_commit();
    }
    copies_wait<1>();
    written();
    meet<128>(1 + group);
    float sums[32];
    multiply_windows<0>(sums, slot, weights, last);
    const int next = tile + step;
    bool ready = next < IMAGES * TILES;
    if (ready && thread / 32 == WATCH) ready = is_ready(watched(done, role, 1, next, thread % 32));
    loaded = all_of(1 + group, ready);
    if (loaded) bring<0>(from, slot, next, thread);
    copies_commit();
    copies_wait<1>();
    written();
    meet<128>(1 + group);
    multiply_windows<1>(sums, slot, weights, last);
    meet<128>(1 + group);
    if (loaded) bring<1>(from, slot, next, thread);
    copies_commit();
    const int image = tile / TILES, y = tile % TILES / ACROSS * 8 + row / 8, x = tile % ACROSS * 8 + row % 8;
    put_mid(of_image<MID>(to, image) + (y * WIDTH + x) * MID + 4 * lane, WIDTH * MID, sums, bias);
    meet<128>(1 + group);
    if (thread == 32 * ANNOUNCE) last = band_of(done, role.number, image, y / 8);
  }
  announce_last(last);
}

// The last 1x1 convolution of a block with its residual, from a ring or, with SIDE, by a
// convolution of the stage's input, and the first of the next block, if there is one (NEXT). What
// comes from memory is on its way while the tile before is made.
template <bool SIDE, bool NEXT>
__device__ __forceinline__ void join(const Role role, int* done, const Ring from, const float* w, const float* b, const float* x,
                                     const float* side_w, const float* side_b, const Ring residual, const Ring to,
                                     const float* next_w, const float* next_b, const Ring next_to) {
  const int group = uniform(threadIdx.x / 128), thread = threadIdx.x % 128, lane = thread % 4;
  const int row = thread / 32 * 16 + thread % 32 / 4;
  const u32 base = address(shared), next_weights = base + (SIDE ? 2 : 1) * OUT * MID * 4;
  const u32 biases = next_weights + (NEXT ? OUT * MID * 4 : 0), own = biases + 2048 + group * 32768 + thread * 16;
  keep_points<MID, OUT>(w, base);
  if (SIDE) keep_points<MID, OUT>(side_w, base + OUT * MID * 4);
  if (NEXT) keep_points<OUT, MID>(next_w, next_weights);
  for (int i = threadIdx.x; i < OUT; i += 384) put4(biases + i * 4, bits(b[i] + (SIDE ? side_b[i] : 0.0f)));
  if (NEXT && threadIdx.x < MID) put4(biases + (OUT + threadIdx.x) * 4, bits(next_b[threadIdx.x]));
  written();
  __syncthreads();
  u32 a[32], s[SIDE ? 32 : 1];
  auto bring_factors = [&](int tile) {
    const int image = tile / TILES, at = (tile % TILES * 64 + row) * MID + 4 * lane;
    fetch(a, of_image<MID>(from, image) + at);
    if constexpr (SIDE) fetch(s, x + (u64)image * (POSITIONS * MID) + at);
  };
  auto bring_residual = [&](int tile, int c) {
    if constexpr (!SIDE) {
      const float* r = of_image<OUT>(residual, tile / TILES) + (tile % TILES * 64 + row) * OUT + 4 * lane + c * 64;
#pragma unroll
      for (int i = 0; i < 8; ++i) copy16(own + c % 2 * 16384 + i * 2048, r + i / 2 * 16 + i % 2 * 8 * OUT, true);
    }
    copies_commit();
  };
  bool loaded = false;
  int* last = nullptr;
  const int step = role.blocks * 3;
  for (int tile = (blockIdx.x - role.first) * 3 + group; tile < IMAGES * TILES; tile += step) {
    const int image = tile / TILES, position = tile % TILES * 64 + row, next = tile + step;
    if (!loaded) {
      announce_last(last);
      wait_for(done, role, 0, tile, thread, group);
      bring_factors(tile);
      bring_residual(tile, 0);
      bring_residual(tile, 1);
    }
    if constexpr (SIDE) round_all(s);
    float* y = of_image<OUT>(to, image) + position * OUT + 4 * lane;
    bool ready = next < IMAGES * TILES;
    float next_sums[32];
#pragma unroll 1
    for (int c = 0; c < 4; ++c) {
      float sums[32];
      const u32 at = (base / 16 + c * 64) | OUT << 16;
      products_fence();
#pragma unroll
      for (int k = 0; k < 8; ++k) product_held(sums, a + 4 * k, at + k * 2 * OUT, k > 0);
      if constexpr (SIDE) {
#pragma unroll
        for (int k = 0; k < 8; ++k) product_held(sums, s + 4 * k, at + (k + 8) * 2 * OUT, 1);
      }
      products_commit();
      announce_last(last);
      if (c == 1 && ready && thread / 32 == WATCH) ready = is_ready(watched(done, role, 0, next, thread % 32));
      if (c == 2) loaded = all_of(1 + group, ready);
      products_wait();
      settled(sums);
      Chunk r[SIDE ? 1 : 8];
      r[0] = Chunk{0, 0, 0, 0};
      if constexpr (!SIDE) {
        copies_wait<1>();
#pragma unroll
        for (int i = 0; i < 8; ++i) r[i] = get16(own + c % 2 * 16384 + i * 2048);
        if (c < 2) bring_residual(tile, c + 2);
        else if (loaded) bring_residual(next, c - 2);
        else copies_commit();
      }
      if (c == 3 && loaded) bring_factors(next);
      u32 z[32];
#pragma unroll
      for (int p = 0; p < 4; ++p) {
        const Chunk bias = get16(biases + (c * 64 + 16 * p + 4 * lane) * 4);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const Chunk v = finished(sums + 8 * p, h, bias, r[SIDE ? 0 : 2 * p + h]), t = rounded(v);
          store16(y + h * 8 * OUT + c * 64 + 16 * p, v);
          z[8 * p + h] = t.x; z[8 * p + 2 + h] = t.y; z[8 * p + 4 + h] = t.z; z[8 * p + 6 + h] = t.w;
        }
      }
      if constexpr (NEXT) {
        products_fence();
#pragma unroll
        for (int k = 0; k < 8; ++k) product_held(next_sums, z + 4 * k, (next_weights / 16 | MID << 16) + (c * 8 + k) * 2 * MID, c + k > 0);
        products_commit();
        products_wait();
        settled(next_sums);
      }
    }
    if constexpr (NEXT) {
      Chunk bias[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) bias[i] = get16(biases + (OUT + 16 * i + 4 * lane) * 4);
      put_mid(of_image<MID>(next_to, image) + position * MID + 4 * lane, 8 * MID, next_sums, bias);
    }
    meet<128>(1 + group);
    if (thread == 32 * ANNOUNCE) last = band_of(done, role.number, image, tile % TILES / ACROSS);
  }
  announce_last(last);
}
