// Reads launches from standard input and answers with the memory they leave.
#include "emulator.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <vector>

alignas(128) unsigned char dynamic_shared[227 << 10];
Index threadIdx, blockIdx, blockDim, gridDim;

std::map<std::string, Call>& kernels() {
    static std::map<std::string, Call> all;
    return all;
}

namespace {

enum State { READY, AT_BARRIER, AT_SHUFFLE, AT_SHUFFLE_END, AT_WARP, DONE };
constexpr size_t STACK = 128 << 10, MOST = 1024;

ucontext_t scheduler, contexts[MOST];
State states[MOST];
unsigned char slots[MOST][32];
unsigned shared_bytes;
struct Copy { unsigned to, size; unsigned char bytes[16]; };
std::vector<std::vector<Copy>> copies[MOST];
unsigned current;
Call running;
void** arguments;

[[noreturn]] void die(const char* what) {
    fprintf(stderr, "emulator: %s\n", what);
    exit(3);
}

void wait(State state) {
    states[current] = state;
    swapcontext(&contexts[current], &scheduler);
}

void body() {
    running(arguments);
    states[current] = DONE;
    swapcontext(&contexts[current], &scheduler);
}

// Lets all threads lo..hi go on if all of them wait in this state.
bool release(unsigned lo, unsigned hi, State from) {
    unsigned waiting = 0, done = 0;
    for (unsigned t = lo; t < hi; t++) {
        waiting += states[t] == from;
        done += states[t] == DONE;
    }
    if (waiting == 0) return false;
    if (done > 0 && waiting + done == hi - lo) die("threads wait for others that have ended");
    if (waiting < hi - lo) return false;
    for (unsigned t = lo; t < hi; t++) states[t] = READY;
    return true;
}

void run_block(unsigned threads, bool backwards) {
    static std::vector<char> stacks(MOST * STACK);
    for (unsigned t = 0; t < threads; t++) {
        getcontext(&contexts[t]);
        contexts[t].uc_stack.ss_sp = &stacks[t * STACK];
        contexts[t].uc_stack.ss_size = STACK;
        contexts[t].uc_link = nullptr;
        makecontext(&contexts[t], body, 0);
        states[t] = READY;
        copies[t].assign(1, {});
    }
    memset(dynamic_shared, 0xff, shared_bytes);
    for (;;) {
        bool progress = false;
        unsigned done = 0;
        for (unsigned i = 0; i < threads; i++) {
            const unsigned t = backwards ? threads - 1 - i : i;
            if (states[t] == READY) {
                current = t;
                threadIdx = {t, 0, 0};
                swapcontext(&scheduler, &contexts[t]);
                progress = true;
            }
            done += states[t] == DONE;
        }
        if (done == threads) return;
        progress |= release(0, threads, AT_BARRIER);
        for (unsigned warp = 0; warp < threads; warp += 32) {
            for (State s : {AT_SHUFFLE, AT_SHUFFLE_END, AT_WARP}) progress |= release(warp, std::min(warp + 32, threads), s);
        }
        if (!progress) die("threads wait at different places");
    }
}

void take(void* to, size_t n) {
    if (fread(to, 1, n, stdin) != n) exit(0);
}
uint32_t take32() {
    uint32_t v;
    take(&v, 4);
    return v;
}

}  // namespace

void __syncthreads() { wait(AT_BARRIER); }
void __syncwarp() { wait(AT_WARP); }

void exchange(const void* value, void* result, size_t size, unsigned mask) {
    const unsigned me = current;
    memcpy(slots[me], value, size);
    wait(AT_SHUFFLE);
    memcpy(result, slots[me ^ mask], size);
    wait(AT_SHUFFLE_END);
}

namespace {

// The values of all lanes of the warp.
void gather(const void* value, size_t size, unsigned char (*all)[32]) {
    const unsigned me = current;
    memcpy(slots[me], value, size);
    wait(AT_SHUFFLE);
    memcpy(all, slots[me / 32 * 32], sizeof slots[0] * 32);
    wait(AT_SHUFFLE_END);
}

void in_shared(unsigned at) {
    if (at % 16 != 0 || at + 16 > shared_bytes) die("no address of 16 bytes of shared memory");
}

// Until a copy is waited for, nothing can be known of its place.
void start_copy(unsigned to, unsigned size, const void* from, bool in) {
    Copy c{to, size, {}};
    if (in) memcpy(c.bytes, from, size);
    memset(dynamic_shared + to, 0xff, size);
    copies[current].back().push_back(c);
}

// D[16,8] += A[16,k] B[k,8]: words of `a` and `b` with `per` numbers each.
template <class V>
void multiply(float (&d)[4], const uint4& a, unsigned x, unsigned y, unsigned per, V value) {
    const unsigned mine[6] = {a.x, a.y, a.z, a.w, x, y}, lane = current % 32;
    unsigned char all[32][32];
    gather(mine, sizeof mine, all);
    auto word = [&](unsigned from, unsigned i) { unsigned w; memcpy(&w, all[from] + 4 * i, 4); return w; };
    for (unsigned h = 0; h < 2; ++h) {
        for (unsigned e = 0; e < 2; ++e) {
            for (unsigned k = 0; k < 8 * per; ++k) {
                const unsigned second = k / (4 * per), from = k / per % 4;
                const unsigned p = word(lane / 4 * 4 + from, 2 * second + h);
                const unsigned q = word((lane % 4 * 2 + e) * 4 + from, 4 + second);
                d[2 * h + e] += value(p, k) * value(q, k);
            }
        }
    }
}

}  // namespace

void copy16(unsigned to, const void* from, bool in) {
    in_shared(to);
    if ((uintptr_t)from % 16 != 0) die("a copy from an odd address");
    start_copy(to, 16, from, in);
}

void copy4(float* to, const float* from, bool in) {
    const unsigned at = address(to);
    if (at % 4 != 0 || at + 4 > shared_bytes) die("no address of an element of shared memory");
    start_copy(at, 4, from, in);
}

void copies_commit() { copies[current].emplace_back(); }

void copies_wait_for_all_but(size_t left) {
    auto& groups = copies[current];
    // The last is not yet committed.
    while (groups.size() > left + 1) {
        for (const Copy& c : groups[0]) memcpy(dynamic_shared + c.to, c.bytes, c.size);
        groups.erase(groups.begin());
    }
}

void read_matrices(unsigned (&r)[4], unsigned at) {
    in_shared(at);
    unsigned char all[32][32];
    const unsigned lane = current % 32;
    gather(&at, 4, all);
    for (unsigned i = 0; i < 4; ++i) {
        unsigned row;
        memcpy(&row, all[8 * i + lane / 4], 4);
        memcpy(&r[i], dynamic_shared + row + lane % 4 * 4, 4);
    }
}

void multiply_tf32(float (&d)[4], const uint4& a, unsigned x, unsigned y) {
    // The units drop what is behind the tenth bit.
    multiply(d, a, x, y, 1, [](unsigned w, unsigned) { return __uint_as_float(w & ~0x1fffu); });
}

void multiply_bf16(float (&d)[4], const uint4& a, unsigned x, unsigned y) {
    multiply(d, a, x, y, 2, [](unsigned w, unsigned k) { return __uint_as_float(k % 2 ? w & 0xffff0000u : w << 16); });
}

// D[16,8] += A[16,32] B[32,8] with two of every four of A's columns, in the layout of
// mma.sp.m16n8k32 with the first two lanes of four saying which.
void multiply_two_four(float (&d)[4], const uint4& a, const unsigned (&b)[4], unsigned kept) {
    const unsigned weights[5] = {a.x, a.y, a.z, a.w, kept}, lane = current % 32;
    unsigned char of_a[32][32], of_b[32][32];
    gather(weights, sizeof weights, of_a);
    gather(b, sizeof b, of_b);
    auto word = [](unsigned char (*all)[32], unsigned from, unsigned i) {
        unsigned w;
        memcpy(&w, all[from] + 4 * i, 4);
        return w;
    };
    auto half = [](unsigned w, unsigned i) { return __uint_as_float(i % 2 ? w & 0xffff0000u : w << 16); };
    for (unsigned h = 0; h < 2; ++h) {
        for (unsigned e = 0; e < 2; ++e) {
            for (unsigned four = 0; four < 8; ++four) {
                const unsigned first = lane / 4 * 4;
                const unsigned values = word(of_a, first + four % 4, four / 4 * 2 + h);
                const unsigned places = word(of_a, first + four / 4, 4) >> (16 * h + 4 * (four % 4)) & 15;
                if (places % 4 >= places / 4) die("two of four in no order");
                for (unsigned i = 0; i < 2; ++i) {
                    const unsigned k = 4 * four + (i == 0 ? places % 4 : places / 4);
                    const unsigned from = (lane % 4 * 2 + e) * 4 + k % 8 / 2;
                    d[2 * h + e] += half(values, i) * half(word(of_b, from, k / 8), k);
                }
            }
        }
    }
}

int main() {
    for (;;) {
        uint64_t base, bytes;
        take(&base, 8);
        take(&bytes, 8);
        // Inaccessible pages around it.
        char* arena = (char*)mmap((void*)base, bytes, PROT_READ | PROT_WRITE,
                                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
        if (arena != (char*)base) die("cannot map the arena");
        take(arena, bytes);
        const uint32_t backwards = take32();
        for (uint32_t steps = take32(); steps > 0; steps--) {
            std::string name(take32(), ' ');
            take(name.data(), name.size());
            uint32_t shape[5];
            take(shape, sizeof shape);
            std::vector<std::vector<uint64_t>> words(take32());
            std::vector<void*> pointers;
            for (auto& w : words) {
                w.resize(take32());
                take(w.data(), 8 * w.size());
                pointers.push_back(w.data());
            }
            if (!kernels().count(name)) die(("no kernel " + name).c_str());
            running = kernels()[name];
            arguments = pointers.data();
            gridDim = {shape[0], shape[1], shape[2]};
            blockDim = {shape[3], 1, 1};
            shared_bytes = shape[4];
            if (shared_bytes > sizeof dynamic_shared) die("more shared memory than a block has");
            const uint64_t blocks = (uint64_t)shape[0] * shape[1] * shape[2];
            for (uint64_t i = 0; i < blocks; i++) {
                const uint64_t b = backwards ? blocks - 1 - i : i;
                blockIdx = {(unsigned)(b % shape[0]), (unsigned)(b / shape[0] % shape[1]),
                            (unsigned)(b / shape[0] / shape[1])};
                run_block(shape[3], backwards);
            }
        }
        fwrite(arena, 1, bytes, stdout);
        fflush(stdout);
        munmap(arena, bytes);
    }
}
