// One to eight rows of activations times stored weights: y[i, r] = sum over c of W[r, c] x[i, c].
//
// The time is that of reading the weights once, so everything here is about keeping reads under way.
//
// - A block of four warps takes a few neighbouring rows of weights, R. Of each row its threads read 16 bytes each,
//   2 KiB in all, then the next 2 KiB. A thread has eight such loads under way before it uses the first, which is
//   16 KiB per block. Memory of 3.35 TB/s that answers within a microsecond wants some 25 KiB under way in each
//   of 132 multiprocessors; eight blocks fit into one, so that half of them can be in their first or last steps.
// - Blocks are many and short rather than few and resident: those that are done early are replaced by the
//   hardware, and at the end of a matrix no multiprocessor is left with more than the few KiB of a block.
// - A matrix of 1024 rows still gives 512 blocks, which is why a row is not left to a single warp.
// - Activations are a thousandth of the weights and are read by every block. They come through the nearest cache,
//   which the weights pass by (`load_once`). To copy them to shared memory first would put a load, a barrier and
//   a wait in front of every block, and bound the columns.
// - R is larger for more rows of activations, so that what a thread loads of them is used R times. For eight rows
//   and R = 4 that keeps the nearest cache at a fourth, and the multipliers at half, of what they can do on an
//   H100 while memory is at its limit.
//
// The order of each sum depends on the number of columns alone. Thread t of 128 adds up the products of the 16
// bytes t, t + 128, ... of the row in order, lanes are folded as by `warp_sum`, and the four warps as
// (0 + 1) + (2 + 3). So a row of the result is the same bits with one row of activations and with eight, in any
// tiling of the weights, and where slow loads are needed.
#include "matvec.cuh"

constexpr int THREADS = 128;
constexpr int WARPS = THREADS / WARP;
// Loads of weights that a thread has under way.
constexpr int LOADS = 8;

// What a thread loads and multiplies at a time, a chunk: of weights stored one by one. WIDE: rows of weights and
// activations start and end at multiples of 16 bytes.
template <typename Encoding, bool IS_WIDE>
struct Numbers {
    static constexpr bool WIDE = IS_WIDE;
    static constexpr int VALUES = Encoding::VALUES;

    static __device__ __forceinline__ uint4 load(const unsigned char* row, uint32_t chunk, uint32_t cols) {
        return WIDE ? load_once(row + uint64_t(chunk) * 16) : gather<Encoding>(row, chunk, cols);
    }
    static __device__ __forceinline__ void decode(uint4 loaded, float (&out)[VALUES]) {
        Encoding::decode(loaded, out);
    }
    static __device__ __forceinline__ void inputs(const unsigned char* row, uint32_t chunk, uint32_t cols,
                                                  float (&out)[VALUES]) {
        Encoding::decode(WIDE ? __ldg(reinterpret_cast<const uint4*>(row + uint64_t(chunk) * 16))
                              : gather<Encoding>(row, chunk, cols),
                         out);
    }
};

// Adds the products of one chunk of R rows of weights and N rows of activations.
template <typename Stored, int N, int R>
__device__ __forceinline__ void multiply(const MatvecParams& p, const uint4 (&weights)[R], uint32_t chunk,
                                         float (&sums)[N * R]) {
    float w[R][Stored::VALUES];
#pragma unroll
    for (int r = 0; r < R; ++r) {
        Stored::decode(weights[r], w[r]);
    }
#pragma unroll
    for (int i = 0; i < N; ++i) {
        float x[Stored::VALUES];
        // Where there are fewer than N rows the last is computed several times over, and written once.
        Stored::inputs(p.x + min(uint32_t(i), p.n - 1) * p.x_bytes, chunk, p.cols, x);
#pragma unroll
        for (int e = 0; e < Stored::VALUES; ++e) {
#pragma unroll
            for (int r = 0; r < R; ++r) {
                sums[i * R + r] = fmaf(w[r][e], x[e], sums[i * R + r]);
            }
        }
    }
}

template <typename Stored, int N, int R>
__device__ __forceinline__ void matvec(const MatvecParams& p) {
    constexpr int DEPTH = Stored::WIDE ? LOADS / R : 1;
    constexpr int V = N * R;
    __shared__ float partial[WARPS][V];
    const uint32_t chunks = (p.cols + Stored::VALUES - 1) / Stored::VALUES;
    const uint32_t first = blockIdx.x * R;
    const unsigned char* row[R];
#pragma unroll
    for (int r = 0; r < R; ++r) {
        row[r] = p.matrix + min(first + r, p.rows - 1) * p.row_bytes;
    }
    float sums[V];
#pragma unroll
    for (int k = 0; k < V; ++k) {
        sums[k] = 0.0f;
    }

    uint32_t chunk = threadIdx.x;
    for (; chunk + (DEPTH - 1) * THREADS < chunks; chunk += DEPTH * THREADS) {
        uint4 weights[DEPTH][R];
#pragma unroll
        for (int d = 0; d < DEPTH; ++d) {
#pragma unroll
            for (int r = 0; r < R; ++r) {
                weights[d][r] = Stored::load(row[r], chunk + d * THREADS, p.cols);
            }
        }
#pragma unroll
        for (int d = 0; d < DEPTH; ++d) {
            multiply<Stored, N, R>(p, weights[d], chunk + d * THREADS, sums);
        }
    }
    if (DEPTH > 1) {
        uint4 weights[DEPTH][R];
#pragma unroll
        for (int d = 0; d < DEPTH - 1; ++d) {
#pragma unroll
            for (int r = 0; r < R; ++r) {
                if (chunk + d * THREADS < chunks) {
                    weights[d][r] = Stored::load(row[r], chunk + d * THREADS, p.cols);
                }
            }
        }
#pragma unroll
        for (int d = 0; d < DEPTH - 1; ++d) {
            if (chunk + d * THREADS < chunks) {
                multiply<Stored, N, R>(p, weights[d], chunk + d * THREADS, sums);
            }
        }
    }

    const uint32_t lane = threadIdx.x % WARP;
    const float folded = fold(sums);
    if (lane % (WARP / V) == 0) {
        partial[threadIdx.x / WARP][lane / (WARP / V)] = folded;
    }
    __syncthreads();
    if (threadIdx.x < V) {
        const uint32_t i = threadIdx.x / R;
        const uint32_t r = threadIdx.x % R;
        const float sum = (partial[0][threadIdx.x] + partial[1][threadIdx.x]) +
                          (partial[2][threadIdx.x] + partial[3][threadIdx.x]);
        if (i < p.n && first + r < p.rows) {
            p.y[i * p.stride + first + r] = sum;
        }
    }
}

// MATVEC(name, what is stored how, rows of activations, rows of weights, blocks). The last is of blocks that a
// multiprocessor holds at once: it limits registers.
#define MATVEC(name, Stored, N, R, BLOCKS) \
    KERNEL __launch_bounds__(THREADS, BLOCKS) name(const MatvecParams p) { matvec<Stored, N, R>(p); }

using WideF32 = Numbers<F32, true>;
using WideF16 = Numbers<F16, true>;
using WideBf16 = Numbers<Bf16, true>;
MATVEC(matvec1_f32, WideF32, 1, 2, 8)
MATVEC(matvec1_f16, WideF16, 1, 2, 8)
MATVEC(matvec1_bf16, WideBf16, 1, 2, 8)
MATVEC(matvec2_f32, WideF32, 2, 2, 8)
MATVEC(matvec2_f16, WideF16, 2, 2, 8)
MATVEC(matvec2_bf16, WideBf16, 2, 2, 8)
MATVEC(matvec4_f32, WideF32, 4, 4, 5)
MATVEC(matvec4_f16, WideF16, 4, 4, 5)
MATVEC(matvec4_bf16, WideBf16, 4, 4, 5)
MATVEC(matvec8_f32, WideF32, 8, 4, 3)
MATVEC(matvec8_f16, WideF16, 8, 4, 3)
MATVEC(matvec8_bf16, WideBf16, 8, 4, 3)
// Rows that start anywhere: for one or for up to four rows of activations at a time, which is right but not fast.
using AnyF32 = Numbers<F32, false>;
using AnyF16 = Numbers<F16, false>;
using AnyBf16 = Numbers<Bf16, false>;
MATVEC(matvec1_any_f32, AnyF32, 1, 2, 4)
MATVEC(matvec1_any_f16, AnyF16, 1, 2, 4)
MATVEC(matvec1_any_bf16, AnyBf16, 1, 2, 4)
MATVEC(matvec4_any_f32, AnyF32, 4, 2, 4)
MATVEC(matvec4_any_f16, AnyF16, 4, 2, 4)
MATVEC(matvec4_any_bf16, AnyBf16, 4, 2, 4)
