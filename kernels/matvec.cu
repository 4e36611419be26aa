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
#include "device.cuh"

struct MatvecParams {
    const unsigned char* matrix;  // [rows, cols]
    const unsigned char* x;       // [n, cols] in the same encoding
    float* y;                     // [n, stride], written from column 0 on
    uint64_t stride;
    uint64_t row_bytes;
    uint32_t rows;
    uint32_t cols;
    uint32_t n;
    uint32_t reserved;
};

constexpr int THREADS = 128;
constexpr int WARPS = THREADS / WARP;
// Loads of weights that a thread has under way.
constexpr int LOADS = 8;

// An encoding says how many numbers 16 bytes hold, and which.
struct F32 {
    using Element = uint32_t;
    static constexpr int VALUES = 4;
    static __device__ __forceinline__ void decode(uint4 bytes, float (&out)[VALUES]) {
        out[0] = __uint_as_float(bytes.x);
        out[1] = __uint_as_float(bytes.y);
        out[2] = __uint_as_float(bytes.z);
        out[3] = __uint_as_float(bytes.w);
    }
};

struct F16 {
    using Element = uint16_t;
    static constexpr int VALUES = 8;
    static __device__ __forceinline__ float number(uint32_t bits) {
        __half_raw raw;
        raw.x = static_cast<unsigned short>(bits);
        return __half2float(__half(raw));
    }
    static __device__ __forceinline__ void decode(uint4 bytes, float (&out)[VALUES]) {
        const uint32_t words[4] = {bytes.x, bytes.y, bytes.z, bytes.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            out[2 * i] = number(words[i] & 0xffffu);
            out[2 * i + 1] = number(words[i] >> 16);
        }
    }
};

struct Bf16 {
    using Element = uint16_t;
    static constexpr int VALUES = 8;
    static __device__ __forceinline__ void decode(uint4 bytes, float (&out)[VALUES]) {
        const uint32_t words[4] = {bytes.x, bytes.y, bytes.z, bytes.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            out[2 * i] = __uint_as_float(words[i] << 16);
            out[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
        }
    }
};

// The 16 bytes number `chunk` of a row that starts at no multiple of 16, or ends within them: element by element,
// zeros for what is beyond the last.
template <typename Encoding>
__device__ __forceinline__ uint4 gather(const unsigned char* row, uint32_t chunk, uint32_t cols) {
    using Element = typename Encoding::Element;
    constexpr uint32_t PER_WORD = sizeof(uint32_t) / sizeof(Element);
    const Element* elements = reinterpret_cast<const Element*>(row);
    uint32_t words[4];
#pragma unroll
    for (uint32_t w = 0; w < 4; ++w) {
        words[w] = 0;
#pragma unroll
        for (uint32_t e = 0; e < PER_WORD; ++e) {
            const uint64_t at = (uint64_t(chunk) * 4 + w) * PER_WORD + e;
            if (at < cols) {
                words[w] |= uint32_t(elements[at]) << (e * 16);
            }
        }
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
}

// WIDE: rows of weights and activations start and end at multiples of 16 bytes.
template <typename Encoding, bool WIDE>
__device__ __forceinline__ uint4 weights_at(const unsigned char* row, uint32_t chunk, uint32_t cols) {
    return WIDE ? load_once(row + uint64_t(chunk) * 16) : gather<Encoding>(row, chunk, cols);
}

template <typename Encoding, bool WIDE>
__device__ __forceinline__ uint4 inputs_at(const unsigned char* row, uint32_t chunk, uint32_t cols) {
    return WIDE ? __ldg(reinterpret_cast<const uint4*>(row + uint64_t(chunk) * 16))
                : gather<Encoding>(row, chunk, cols);
}

// Adds the products of one chunk of R rows of weights and N rows of activations.
template <typename Encoding, int N, int R, bool WIDE>
__device__ __forceinline__ void multiply(const MatvecParams& p, const uint4 (&weights)[R], uint32_t chunk,
                                         float (&sums)[N * R]) {
    constexpr int VALUES = Encoding::VALUES;
    float w[R][VALUES];
#pragma unroll
    for (int r = 0; r < R; ++r) {
        Encoding::decode(weights[r], w[r]);
    }
    const unsigned char* row = p.x;
#pragma unroll
    for (int i = 0; i < N; ++i) {
        float x[VALUES];
        Encoding::decode(inputs_at<Encoding, WIDE>(row, chunk, p.cols), x);
        // Where there are fewer than N rows the last is computed several times over, and written once.
        row += i + 1 < p.n ? p.row_bytes : 0;
#pragma unroll
        for (int e = 0; e < VALUES; ++e) {
#pragma unroll
            for (int r = 0; r < R; ++r) {
                sums[i * R + r] = fmaf(w[r][e], x[e], sums[i * R + r]);
            }
        }
    }
}

// The sums over the warp of V values at once: each exchange halves how many a lane still has. Value k ends up in
// the lanes from k * (32 / V) on. The tree is that of `warp_sum`, and so are the bits.
template <int V>
__device__ __forceinline__ float fold(float (&values)[V]) {
    const uint32_t lane = threadIdx.x % WARP;
    int offset = WARP / 2;
#pragma unroll
    for (int left = V; left > 1; left /= 2) {
        const bool upper = (lane & offset) != 0;
#pragma unroll
        for (int i = 0; i < left / 2; ++i) {
            const float give = upper ? values[i] : values[i + left / 2];
            const float keep = upper ? values[i + left / 2] : values[i];
            values[i] = keep + __shfl_xor_sync(ALL_LANES, give, offset);
        }
        offset /= 2;
    }
#pragma unroll
    for (; offset > 0; offset /= 2) {
        values[0] += __shfl_xor_sync(ALL_LANES, values[0], offset);
    }
    return values[0];
}

template <typename Encoding, int N, int R, bool WIDE>
__device__ __forceinline__ void matvec(const MatvecParams& p) {
    constexpr int DEPTH = WIDE ? LOADS / R : 1;
    constexpr int V = N * R;
    __shared__ float partial[WARPS][V];
    const uint32_t chunks = (p.cols + Encoding::VALUES - 1) / Encoding::VALUES;
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
                weights[d][r] = weights_at<Encoding, WIDE>(row[r], chunk + d * THREADS, p.cols);
            }
        }
#pragma unroll
        for (int d = 0; d < DEPTH; ++d) {
            multiply<Encoding, N, R, WIDE>(p, weights[d], chunk + d * THREADS, sums);
        }
    }
    if (DEPTH > 1) {
        uint4 weights[DEPTH][R];
#pragma unroll
        for (int d = 0; d < DEPTH - 1; ++d) {
#pragma unroll
            for (int r = 0; r < R; ++r) {
                if (chunk + d * THREADS < chunks) {
                    weights[d][r] = weights_at<Encoding, WIDE>(row[r], chunk + d * THREADS, p.cols);
                }
            }
        }
#pragma unroll
        for (int d = 0; d < DEPTH - 1; ++d) {
            if (chunk + d * THREADS < chunks) {
                multiply<Encoding, N, R, WIDE>(p, weights[d], chunk + d * THREADS, sums);
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

// MATVEC(encoding, rows of activations, rows of weights, WIDE). The second bound is of blocks that a multiprocessor
// holds at once: it limits registers.
#define MATVEC(name, Encoding, N, R, WIDE, BLOCKS) \
    KERNEL __launch_bounds__(THREADS, BLOCKS) name(const MatvecParams p) { matvec<Encoding, N, R, WIDE>(p); }

MATVEC(matvec1_f32, F32, 1, 2, true, 8)
MATVEC(matvec1_f16, F16, 1, 2, true, 8)
MATVEC(matvec1_bf16, Bf16, 1, 2, true, 8)
MATVEC(matvec2_f32, F32, 2, 2, true, 8)
MATVEC(matvec2_f16, F16, 2, 2, true, 8)
MATVEC(matvec2_bf16, Bf16, 2, 2, true, 8)
MATVEC(matvec4_f32, F32, 4, 4, true, 5)
MATVEC(matvec4_f16, F16, 4, 4, true, 5)
MATVEC(matvec4_bf16, Bf16, 4, 4, true, 5)
MATVEC(matvec8_f32, F32, 8, 4, true, 3)
MATVEC(matvec8_f16, F16, 8, 4, true, 3)
MATVEC(matvec8_bf16, Bf16, 8, 4, true, 3)
// Rows that start anywhere: for one or for up to four rows of activations at a time, which is right but not fast.
MATVEC(matvec1_any_f32, F32, 1, 2, false, 4)
MATVEC(matvec1_any_f16, F16, 1, 2, false, 4)
MATVEC(matvec1_any_bf16, Bf16, 1, 2, false, 4)
MATVEC(matvec4_any_f32, F32, 4, 2, false, 4)
MATVEC(matvec4_any_f16, F16, 4, 2, false, 4)
MATVEC(matvec4_any_bf16, Bf16, 4, 2, false, 4)
