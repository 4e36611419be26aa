// What bounds all other kernels: reads of memory, and multiply-adds in registers.
#include "device.cuh"

struct ReadParams {
    const unsigned char* from;  // `words` words of 16 bytes
    uint32_t* sums;             // one for each block
    uint64_t words;
    uint64_t piece;  // words of a block; the last blocks may have fewer
};

constexpr int READ_THREADS = 256;
constexpr int READ_WARPS = READ_THREADS / WARP;
// Loads that a thread has under way.
constexpr int LOADS = 8;

__device__ __forceinline__ uint32_t sum_of(uint4 v) { return v.x + v.y + v.z + v.w; }

__device__ __forceinline__ uint32_t warp_sum(uint32_t x) {
#pragma unroll
    for (int offset = WARP / 2; offset > 0; offset /= 2) {
        x += __shfl_xor_sync(ALL_LANES, x, offset);
    }
    return x;
}

// The sum of the 32-bit words of a block's piece, modulo 2^32: it is there so that nothing is left out.
KERNEL __launch_bounds__(READ_THREADS) read_sums(const ReadParams p) {
    __shared__ uint32_t parts[READ_WARPS];
    const uint64_t first = blockIdx.x * p.piece;
    const uint64_t last = first + p.piece;
    const uint64_t end = last < p.words ? last : p.words;
    uint64_t at = first + threadIdx.x;
    uint32_t sum = 0;
    for (; at + (LOADS - 1) * READ_THREADS < end; at += LOADS * READ_THREADS) {
        uint4 loaded[LOADS];
#pragma unroll
        for (int i = 0; i < LOADS; ++i) {
            loaded[i] = load_once(p.from + (at + i * READ_THREADS) * 16);
        }
#pragma unroll
        for (int i = 0; i < LOADS; ++i) {
            sum += sum_of(loaded[i]);
        }
    }
    for (; at < end; at += READ_THREADS) {
        sum += sum_of(load_once(p.from + at * 16));
    }
    sum = warp_sum(sum);
    if (threadIdx.x % WARP == 0) {
        parts[threadIdx.x / WARP] = sum;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        uint32_t all = 0;
#pragma unroll
        for (int i = 0; i < READ_WARPS; ++i) {
            all += parts[i];
        }
        p.sums[blockIdx.x] = all;
    }
}

struct MultiplyAddsParams {
    float* out;  // one for each thread
    float a;
    float b;
    uint32_t steps;
    uint32_t reserved;
};

constexpr int MULTIPLY_ADD_THREADS = 256;
// Sums that a thread, or a warp in the matrix units, has under way: more than it takes to begin one while another
// is not done. Their twins are in the launcher.
constexpr int CHAINS = 16;
constexpr int MATRIX_CHAINS = 8;

// Chains begin at different numbers: equal ones would be computed once.
KERNEL __launch_bounds__(MULTIPLY_ADD_THREADS) multiply_adds_f32(const MultiplyAddsParams p) {
    float sums[CHAINS];
#pragma unroll
    for (int c = 0; c < CHAINS; ++c) {
        sums[c] = float(c);
    }
#pragma unroll 1
    for (uint32_t step = 0; step < p.steps; ++step) {
#pragma unroll
        for (int c = 0; c < CHAINS; ++c) {
            sums[c] = fmaf(sums[c], p.a, p.b);
        }
    }
    float all = 0.0f;
#pragma unroll
    for (int c = 0; c < CHAINS; ++c) {
        all += sums[c];
    }
    p.out[blockIdx.x * MULTIPLY_ADD_THREADS + threadIdx.x] = all;
}

// Products of matrices of which all elements are a, and all are b: a chain grows by 16 a b in each step.
template <typename T>
__device__ __forceinline__ void matrix_multiply_adds(const MultiplyAddsParams& p) {
    const uint32_t two_a = pack_two<T>(p.a, p.a);
    const uint32_t two_b = pack_two<T>(p.b, p.b);
    const uint32_t a[4] = {two_a, two_a, two_a, two_a};
    const uint32_t b[2] = {two_b, two_b};
    float sums[MATRIX_CHAINS][4];
#pragma unroll
    for (int c = 0; c < MATRIX_CHAINS; ++c) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            sums[c][i] = float(4 * c + i);
        }
    }
#pragma unroll 1
    for (uint32_t step = 0; step < p.steps; ++step) {
#pragma unroll
        for (int c = 0; c < MATRIX_CHAINS; ++c) {
            mma_16x8x16<T>(sums[c], a, b);
        }
    }
    float all = 0.0f;
#pragma unroll
    for (int c = 0; c < MATRIX_CHAINS; ++c) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            all += sums[c][i];
        }
    }
    p.out[blockIdx.x * MULTIPLY_ADD_THREADS + threadIdx.x] = all;
}

// The launcher takes these only where there are matrix units for the encoding.
KERNEL __launch_bounds__(MULTIPLY_ADD_THREADS) multiply_adds_f16(const MultiplyAddsParams p) {
    matrix_multiply_adds<__half>(p);
}
KERNEL __launch_bounds__(MULTIPLY_ADD_THREADS) multiply_adds_bf16(const MultiplyAddsParams p) {
    matrix_multiply_adds<__nv_bfloat16>(p);
}
