// Reads launches from standard input and answers with the memory they leave.
#include "emulator.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <vector>

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
unsigned char slots[MOST][16];
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
    }
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
            uint32_t shape[4];
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
