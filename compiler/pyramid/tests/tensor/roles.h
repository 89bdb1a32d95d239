// What a stage's kernel takes of CUDA beyond other kernels, behind emulator.h.
static Chunk load16(const float* p) {
  if ((uintptr_t)p % 16) fail("load from an odd address");
  Chunk c;
  memcpy(&c, p, 16);
  return c;
}
static void store16(float* p, Chunk c) {
  if ((uintptr_t)p % 16) fail("store to an odd address");
  memcpy(p, &c, 16);
}
static int seen(const int* p) { return *p; }
static void announce(int* p) { ++*p; }
static void rest() { pause(); }
static void warp_meet() { wait_at(1000 + self->index.x / 32, 32); }
static bool all_of(int id, bool mine) {
  const int first = self->index.x / 128 * 128;
  self->sent = mine;
  wait_at(id, 128);
  bool all = true;
  for (int t = first; t < first + 128; ++t) all &= crew[t]->sent != 0;
  wait_at(id, 128);
  return all;
}
static void product_placed(float (&d)[32], u32 a, u32 b, int more) { product<64, 10>(d, a, b, more); }
// Rows from registers: lane i of four has terms i and i + 4 of two rows.
static void product_held(float (&d)[32], const u32* a, u32 b, int more) {
  const int t = self->index.x, warp = t / 32, row = t % 32 / 4, lane = t % 4;
  memcpy(self->fragments, a, 16);
  wait_at(1000 + warp, 32);
  for (int h = 0; h < 2; ++h)
    for (int j = 0; j < 8; ++j)
      for (int e = 0; e < 2; ++e) {
        float& sum = d[4 * j + 2 * h + e];
        if (!more) sum = 0.0f;
        for (int k = 0; k < 8; ++k) {
          const u32 x = crew[warp * 32 + row * 4 + k % 4]->fragments[k / 4 * 2 + h];
          sum += real_of(x & ~0x1fffu) * element((u64)8 << 32 | b, 8 * j + 2 * lane + e, k);
        }
      }
  wait_at(1000 + warp, 32);
}
