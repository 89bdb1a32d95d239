// The sums of batch normalisation and its gradients over parts of the channels.
#include "batchnorm.cuh"
#include "pieces.cuh"

// What a pass over the tensors sums: x and x^2; or dy and dy (x - mean). With GATE 1 dy counts
// where `gate` (the output of a ReLU behind the normalisation) is positive, with GATE 2 where
// the recomputed output (x - mean) * scale * invstd + bias is.
template <class T>
struct Sources {
    const T *x, *dy, *gate;
    const float *mean, *scale, *invstd, *bias;  // per channel; the last three for GATE 2
};

// Independent accesses to each tensor: fewer where several are read, more where they are narrow.
template <class T, u32 V, bool GRAD>
constexpr u32 DEPTH = V == 4 ? (GRAD ? 8 : 16) / sizeof(T) : 4;

// Where a channel of x begins, and how many channels the tensor has that it lies in.
template <class T>
struct Channel {
    const T* x;
    u32 among;
};

// Channel c of a tensor, `size` elements behind the one before it.
template <class T>
__device__ __forceinline__ Channel<T> channel_of(const T* x, u32 channels, u32 c, u64 size) {
    return {x + c * size, channels};
}

// The same of several tensors joined; their runs count channels.
template <class T>
__device__ __forceinline__ Channel<T> channel_of(const Pieces& p, u32, u32 c, u64 size) {
    u32 start;
    const u32 k = piece_of(p, c, start);
    return {static_cast<const T*>(p.from[k]) + (c - start) * size, p.end[k] - start};
}

// One channel of the planes [images, channels, plane], `units` groups of V elements, by the
// blocks (channel, part). All parts run through the tensor side by side, so that at the end the
// cache holds the end of the tensor. partial[part * channels + c] takes both sums.
template <u32 V, bool GRAD, u32 GATE, class T, class X>
__device__ __forceinline__ void sums_of_planes(const Sources<T>& s, const X& tensor, double2* partial, u32 channels,
                                               Divisor plane, u32 units) {
    constexpr u32 I = DEPTH<T, V, GRAD>;
    const u32 c = blockIdx.x;
    const Channel<T> from = channel_of<T>(tensor, channels, c, (u64)plane.value * V);
    float mean = 0.0f, factor = 0.0f, bias = 0.0f;
    if constexpr (GRAD) mean = s.mean[c];
    if constexpr (GATE == 2) {
        factor = gain(s.scale[c], s.invstd[c]);
        bias = s.bias[c];
    }
    double first = 0.0, second = 0.0;
    for (u32 u = blockIdx.y * (THREADS * I) + threadIdx.x; u < units; u += gridDim.y * (THREADS * I)) {
        Pack<T, V> x[I], dy[I], gate[I];
#pragma unroll
        for (u32 j = 0; j < I; j++) {
            u32 image = u + j * THREADS;
            if (image < units) {
                const u32 at = plane.take(image);
                const u64 i = (((u64)image * channels + c) * plane.value + at) * V;
                x[j] = fetch<V>(from.x + ((u64)image * from.among * plane.value + at) * V);
                if constexpr (GRAD) dy[j] = fetch<V>(s.dy + i);
                if constexpr (GATE == 1) gate[j] = fetch<V>(s.gate + i);
            }
        }
#pragma unroll
        for (u32 j = 0; j < I; j++) {
            if (u + j * THREADS < units) {
#pragma unroll
                for (u32 e = 0; e < V; e++) {
                    if constexpr (GRAD) {
                        const float g = gated<GATE>(dy[j][e], x[j][e], GATE == 1 ? gate[j][e] : 0.0f, mean,
                                                    factor, bias);
                        first += (double)g;
                        second = fma((double)g, (double)x[j][e] - (double)mean, second);
                    } else {
                        const double v = (double)x[j][e];
                        first += v;
                        second = fma(v, v, second);
                    }
                }
            }
        }
    }
    first = block_reduce<Sum>(first);
    second = block_reduce<Sum>(second);
    if (threadIdx.x == 0) partial[(u64)blockIdx.y * channels + c] = make_double2(first, second);
}

// The same for rows of channels [rows, channels]: V channels a thread, `lanes` threads along
// them and THREADS / lanes along the rows. Block (group of lanes, part).
template <u32 V, bool GRAD, u32 GATE, class T, class X>
__device__ __forceinline__ void sums_of_rows(const Sources<T>& s, const X& tensor, double2* partial, u32 channels, u32 rows, u32 lanes) {
    constexpr u32 I = DEPTH<T, V, GRAD>;
    __shared__ double2 parts[THREADS * V];
    const u32 tx = threadIdx.x % lanes, ty = threadIdx.x / lanes, height = THREADS / lanes;
    const u32 c = (blockIdx.x * lanes + tx) * V;
    double first[V], second[V];
#pragma unroll
    for (u32 e = 0; e < V; e++) first[e] = second[e] = 0.0;
    if (c < channels) {
        const Channel<T> from = channel_of<T>(tensor, channels, c, 1);
        Vec<V> mean, factor, bias;
        if constexpr (GRAD) mean = load<V>(s.mean + c);
        if constexpr (GATE == 2) {
            const Vec<V> scale = load<V>(s.scale + c), invstd = load<V>(s.invstd + c);
#pragma unroll
            for (u32 e = 0; e < V; e++) factor.v[e] = gain(scale.v[e], invstd.v[e]);
            bias = load<V>(s.bias + c);
        }
        for (u32 row = blockIdx.y * height * I + ty; row < rows; row += gridDim.y * height * I) {
            Pack<T, V> x[I], dy[I], gate[I];
#pragma unroll
            for (u32 j = 0; j < I; j++) {
                if (row + j * height < rows) {
                    const u64 i = (u64)(row + j * height) * channels + c;
                    x[j] = fetch<V>(from.x + (u64)(row + j * height) * from.among);
                    if constexpr (GRAD) dy[j] = fetch<V>(s.dy + i);
                    if constexpr (GATE == 1) gate[j] = fetch<V>(s.gate + i);
                }
            }
#pragma unroll
            for (u32 j = 0; j < I; j++) {
                if (row + j * height < rows) {
#pragma unroll
                    for (u32 e = 0; e < V; e++) {
                        if constexpr (GRAD) {
                            const float g = gated<GATE>(dy[j][e], x[j][e], GATE == 1 ? gate[j][e] : 0.0f,
                                                        mean.v[e], GATE == 2 ? factor.v[e] : 0.0f,
                                                        GATE == 2 ? bias.v[e] : 0.0f);
                            first[e] += (double)g;
                            second[e] = fma((double)g, (double)x[j][e] - (double)mean.v[e], second[e]);
                        } else {
                            const double v = (double)x[j][e];
                            first[e] += v;
                            second[e] = fma(v, v, second[e]);
                        }
                    }
                }
            }
        }
    }
#pragma unroll
    for (u32 e = 0; e < V; e++) parts[e * THREADS + threadIdx.x] = make_double2(first[e], second[e]);
    __syncthreads();
    if (ty == 0 && c < channels) {
#pragma unroll
        for (u32 e = 0; e < V; e++) {
            double2 total = parts[e * THREADS + tx];
            for (u32 h = 1; h < height; h++) {
                const double2 t = parts[e * THREADS + h * lanes + tx];
                total.x += t.x;
                total.y += t.y;
            }
            partial[(u64)blockIdx.y * channels + c + e] = total;
        }
    }
}

// Four blocks a multiprocessor, which the number of parts counts on.
#define BN_SUMS_PLANES(NAME, T, V, GRAD, GATE)                                                    \
    extern "C" __global__ void __launch_bounds__(THREADS, 4)                                      \
        NAME(const Sources<T> s, double2* partial, u32 channels, Divisor plane, u32 units) {      \
        sums_of_planes<V, GRAD, GATE>(s, s.x, partial, channels, plane, units);                   \
    }
#define BN_SUMS_ROWS(NAME, T, V, GRAD, GATE)                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS, 4)                                      \
        NAME(const Sources<T> s, double2* partial, u32 channels, u32 rows, u32 lanes) {           \
        sums_of_rows<V, GRAD, GATE>(s, s.x, partial, channels, rows, lanes);                      \
    }

// Of several x joined.
#define BN_SUMS_PLANES_JOINED(NAME, T, V, GRAD, GATE)                                             \
    extern "C" __global__ void __launch_bounds__(THREADS, 4)                                      \
        NAME(const Sources<T> s, double2* partial, u32 channels, Divisor plane, u32 units,        \
             const __grid_constant__ Pieces p) {                                                  \
        sums_of_planes<V, GRAD, GATE>(s, p, partial, channels, plane, units);                     \
    }
#define BN_SUMS_ROWS_JOINED(NAME, T, V, GRAD, GATE)                                               \
    extern "C" __global__ void __launch_bounds__(THREADS, 4)                                      \
        NAME(const Sources<T> s, double2* partial, u32 channels, u32 rows, u32 lanes,             \
             const __grid_constant__ Pieces p) {                                                  \
        sums_of_rows<V, GRAD, GATE>(s, p, partial, channels, rows, lanes);                        \
    }
