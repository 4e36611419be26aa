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
// bytes t, t + 128, ... of the row (of its codes, where it is one of blocks) in order, lanes are folded as by `warp_sum`, and the four warps as
// (0 + 1) + (2 + 3). So a row of the result is the same bits with one row of activations and with eight, in any
// tiling of the weights, and where slow loads are needed.
#include "blocks.cuh"

struct MatvecParams {
    const unsigned char* matrix;  // [rows, cols]
    const unsigned char* x;       // [n, cols] in the same encoding, or bf16 where that is one of blocks
    float* y;                     // [n, stride], written from column 0 on
    uint64_t stride;
    uint64_t row_bytes;
    uint64_t x_bytes;  // of a row
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

// What a thread loads and multiplies at a time, a chunk: of weights stored one by one. WIDE: rows of weights and
// activations start and end at multiples of 16 bytes.
template <typename Encoding, bool IS_WIDE>
struct Numbers {
    static constexpr bool WIDE = IS_WIDE;
    static constexpr int VALUES = Encoding::VALUES;
    // Values that are decoded at a time.
    static constexpr int STEP = VALUES;
    using Loaded = uint4;

    static __device__ __forceinline__ void prepare(float*) {}
    static __device__ __forceinline__ uint4 load(const unsigned char* row, uint32_t chunk, uint32_t cols) {
        return WIDE ? load_once(row + uint64_t(chunk) * 16) : gather<Encoding>(row, chunk, cols);
    }
    static __device__ __forceinline__ void decode(uint4 loaded, int, const float*, float (&out)[STEP]) {
        Encoding::decode(loaded, out);
    }
    static __device__ __forceinline__ void inputs(const unsigned char* row, uint32_t chunk, int, uint32_t cols,
                                                  float (&out)[STEP]) {
        Encoding::decode(WIDE ? __ldg(reinterpret_cast<const uint4*>(row + uint64_t(chunk) * 16))
                              : gather<Encoding>(row, chunk, cols),
                         out);
    }
};

// Of weights stored in blocks, which are always wide, and activations in bf16, which are so where WIDE.
template <typename Encoding, bool IS_WIDE>
struct Blocks {
    static constexpr bool WIDE = IS_WIDE;
    static constexpr int VALUES = Encoding::VALUES;
    static constexpr int STEP = PART;
    struct Loaded {
        uint4 codes;
        uint16_t scale;
    };

    static __device__ __forceinline__ void prepare(float* table) {
        Encoding::fill(table);
        __syncthreads();
    }
    static __device__ __forceinline__ Loaded load(const unsigned char* row, uint32_t chunk, uint32_t) {
        return Loaded{load_once(codes_at(row, chunk)), scale_at(row, chunk)};
    }
    static __device__ __forceinline__ void decode(const Loaded& loaded, int step, const float* table,
                                                  float (&out)[STEP]) {
        Encoding::decode(loaded.codes, step, scale_of(loaded.scale), table, out);
    }
    // The last block of a row can have more weights than there are columns.
    static __device__ __forceinline__ void inputs(const unsigned char* row, uint32_t chunk, int step, uint32_t cols,
                                                  float (&out)[STEP]) {
        const uint32_t eight = chunk * (VALUES / STEP) + step;
        uint4 bytes = make_uint4(0, 0, 0, 0);
        if (!WIDE) {
            bytes = gather<Bf16>(row, eight, cols);
        } else if (eight * STEP < cols) {
            bytes = __ldg(reinterpret_cast<const uint4*>(row) + eight);
        }
        Bf16::decode(bytes, out);
    }
};

// Adds the products of one chunk of R rows of weights and N rows of activations.
template <typename Stored, int N, int R>
__device__ __forceinline__ void multiply(const MatvecParams& p, const typename Stored::Loaded (&weights)[R],
                                         const float* table, uint32_t chunk, float (&sums)[N * R]) {
    constexpr int STEP = Stored::STEP;
#pragma unroll
    for (int step = 0; step < Stored::VALUES / STEP; ++step) {
        float w[R][STEP];
#pragma unroll
        for (int r = 0; r < R; ++r) {
            Stored::decode(weights[r], step, table, w[r]);
        }
        const unsigned char* row = p.x;
#pragma unroll
        for (int i = 0; i < N; ++i) {
            float x[STEP];
            Stored::inputs(row, chunk, step, p.cols, x);
            // Where there are fewer than N rows the last is computed several times over, and written once.
            row += i + 1 < p.n ? p.x_bytes : 0;
#pragma unroll
            for (int e = 0; e < STEP; ++e) {
#pragma unroll
                for (int r = 0; r < R; ++r) {
                    sums[i * R + r] = fmaf(w[r][e], x[e], sums[i * R + r]);
                }
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

template <typename Stored, int N, int R>
__device__ __forceinline__ void matvec(const MatvecParams& p) {
    constexpr int DEPTH = Stored::WIDE ? LOADS / R : 1;
    constexpr int V = N * R;
    __shared__ float partial[WARPS][V];
    __shared__ float table[16];
    Stored::prepare(table);
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
        typename Stored::Loaded weights[DEPTH][R];
#pragma unroll
        for (int d = 0; d < DEPTH; ++d) {
#pragma unroll
            for (int r = 0; r < R; ++r) {
                weights[d][r] = Stored::load(row[r], chunk + d * THREADS, p.cols);
            }
        }
#pragma unroll
        for (int d = 0; d < DEPTH; ++d) {
            multiply<Stored, N, R>(p, weights[d], table, chunk + d * THREADS, sums);
        }
    }
    if (DEPTH > 1) {
        typename Stored::Loaded weights[DEPTH][R];
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
                multiply<Stored, N, R>(p, weights[d], table, chunk + d * THREADS, sums);
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
using WideQ8 = Blocks<Q8, true>;
using WideNf4 = Blocks<Nf4, true>;
MATVEC(matvec1_f32, WideF32, 1, 2, 8)
MATVEC(matvec1_f16, WideF16, 1, 2, 8)
MATVEC(matvec1_bf16, WideBf16, 1, 2, 8)
MATVEC(matvec1_q8, WideQ8, 1, 2, 7)
MATVEC(matvec1_nf4, WideNf4, 1, 2, 7)
MATVEC(matvec2_f32, WideF32, 2, 2, 8)
MATVEC(matvec2_f16, WideF16, 2, 2, 8)
MATVEC(matvec2_bf16, WideBf16, 2, 2, 8)
MATVEC(matvec2_q8, WideQ8, 2, 2, 4)
MATVEC(matvec2_nf4, WideNf4, 2, 2, 4)
MATVEC(matvec4_f32, WideF32, 4, 4, 5)
MATVEC(matvec4_f16, WideF16, 4, 4, 5)
MATVEC(matvec4_bf16, WideBf16, 4, 4, 5)
MATVEC(matvec4_q8, WideQ8, 4, 4, 3)
MATVEC(matvec4_nf4, WideNf4, 4, 4, 3)
MATVEC(matvec8_f32, WideF32, 8, 4, 3)
MATVEC(matvec8_f16, WideF16, 8, 4, 3)
MATVEC(matvec8_bf16, WideBf16, 8, 4, 3)
// Rows that start anywhere: for one or for up to four rows of activations at a time, which is right but not fast.
using AnyF32 = Numbers<F32, false>;
using AnyF16 = Numbers<F16, false>;
using AnyBf16 = Numbers<Bf16, false>;
using AnyQ8 = Blocks<Q8, false>;
using AnyNf4 = Blocks<Nf4, false>;
MATVEC(matvec1_any_f32, AnyF32, 1, 2, 4)
MATVEC(matvec1_any_f16, AnyF16, 1, 2, 4)
MATVEC(matvec1_any_bf16, AnyBf16, 1, 2, 4)
MATVEC(matvec1_any_q8, AnyQ8, 1, 2, 4)
MATVEC(matvec1_any_nf4, AnyNf4, 1, 2, 4)
MATVEC(matvec4_any_f32, AnyF32, 4, 2, 4)
MATVEC(matvec4_any_f16, AnyF16, 4, 2, 4)
MATVEC(matvec4_any_bf16, AnyBf16, 4, 2, 4)
MATVEC(matvec4_any_q8, AnyQ8, 4, 2, 4)
MATVEC(matvec4_any_nf4, AnyNf4, 4, 2, 4)
