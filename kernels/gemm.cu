// y[r, i] = sum over c of weights[i, c] * x[r, c], for many rows of x.
//
// A block computes a tile of y from tiles of the weights and of x that pass through shared memory in stages.
// Each element of y is one chain of sums over the columns, 16 at a time in the matrix units, one at a time
// without them: the same chain in every tile shape, which is why the launcher may choose the shape freely.
//
// Quantised weights are decoded on their way to shared memory, rounded to bf16, which is what x is in then: the
// products are those of a matrix that was decoded to bf16 before, bit for bit, and no such matrix is anywhere.
#include "blocks.cuh"

struct GemmParams {
    const void* weights;  // [rows, cols]
    const void* x;        // [n, cols]
    float* y;             // [n, stride], from the first column that is written
    uint64_t stride;
    uint64_t row_bytes;  // of the weights
    uint32_t rows;
    uint32_t cols;
    uint32_t n;
    uint32_t reserved;
};

// The shape of a block's tile: rows of the weights times rows of x, each warp a part of WARP_WEIGHTS x WARP_X,
// CHUNKS * 16 bytes of the columns in a stage. Its twin is `Tile` in the launcher.
template <int WEIGHTS_, int X_, int WARP_WEIGHTS_, int WARP_X_, int CHUNKS_, int STAGES_>
struct Tile {
    static constexpr int WEIGHTS = WEIGHTS_;
    static constexpr int X = X_;
    static constexpr int WARP_WEIGHTS = WARP_WEIGHTS_;
    static constexpr int WARP_X = WARP_X_;
    static constexpr int CHUNKS = CHUNKS_;
    // Where copies are not asynchronous, one stage is filled while the other is used.
    static constexpr int STAGES = NARROWS_ARCH >= 80 ? STAGES_ : 2;
    static constexpr int WARPS_WEIGHTS = WEIGHTS / WARP_WEIGHTS;
    static constexpr int THREADS = WARPS_WEIGHTS * (X / WARP_X) * WARP;
    // That a multiprocessor has registers for: of few rows two, since one alone leaves it waiting.
    static constexpr int BLOCKS = WEIGHTS * X <= 64 * 64 ? 2 : 1;
    static constexpr int WEIGHTS_BYTES = WEIGHTS * CHUNKS * 16;
    static constexpr int STAGE_BYTES = (WEIGHTS + X) * CHUNKS * 16;

    // Where a chunk of a row lies in a tile. Chunks are exchanged so that the eight rows that a matrix load reads
    // lie in different banks, and so do the eight chunks that neighbouring threads of `Decoded` write.
    static __device__ __forceinline__ int at(int row, int chunk) {
        const int turn = CHUNKS == 4 ? row / 2 % 4 : row % 8 ^ chunk / 8 % 2 * 2 ^ chunk / 16 % 2;
        return (row * CHUNKS + (chunk ^ turn)) * 16;
    }
};

// How a tile of numbers comes to shared memory as it is. Rows beyond the last repeat it, and what they give is not
// stored; columns beyond the last are zeros.

// By asynchronous copies of 16 bytes, which rows of whole multiples of 16 bytes allow.
template <typename T>
struct Aligned {
    static constexpr int BLOCKS = 2;
    static __device__ __forceinline__ void chunk(unsigned char* to, const T* row, uint32_t col, uint32_t cols) {
        const bool inside = col < cols;
        cp_async_16(to, row + (inside ? col : 0), inside ? 16 : 0);
    }
};

// Element by element, for all other rows.
template <typename T>
struct Unaligned {
    // It takes many registers.
    static constexpr int BLOCKS = 1;
    static __device__ __forceinline__ void chunk(unsigned char* to, const T* row, uint32_t col, uint32_t cols) {
        constexpr int ELEMENTS = 16 / sizeof(T);
#pragma unroll
        for (int i = 0; i < ELEMENTS; ++i) {
            reinterpret_cast<T*>(to)[i] = col + i < cols ? row[col + i] : from_float<T>(0.0f);
        }
    }
};

template <typename T, typename Shape, typename Loader, int ROWS>
__device__ __forceinline__ void load_tile(unsigned char* to, const T* matrix, uint32_t first, uint32_t rows,
                                          uint32_t col, uint32_t cols) {
    constexpr int PASS = Shape::THREADS / Shape::CHUNKS;
    static_assert(ROWS % PASS == 0, "every thread copies the same number of chunks");
    const int chunk = threadIdx.x % Shape::CHUNKS;
    const int row = threadIdx.x / Shape::CHUNKS;
#pragma unroll
    for (int i = 0; i < ROWS; i += PASS) {
        const uint32_t source = min(first + row + i, rows - 1);
        Loader::chunk(to + Shape::at(row + i, chunk), matrix + uint64_t(source) * cols,
                      col + chunk * (16 / int(sizeof(T))), cols);
    }
}

// How the weights of a stage come to shared memory, in two steps that have a stage of products between them: what
// `fetch` reads from memory, `put` leaves in shared memory.

// As they are stored, which is a copy that needs no registers in between.
template <typename T, typename Loader>
struct Verbatim {
    struct Held {};
    static __device__ __forceinline__ void prepare(float*) {}
    template <typename Shape>
    static __device__ __forceinline__ void fetch(Held&, const GemmParams&, uint32_t, int) {}
    template <typename Shape>
    static __device__ __forceinline__ void put(unsigned char* to, const Held&, const GemmParams& p, uint32_t first,
                                               int step, const float*) {
        load_tile<T, Shape, Loader, Shape::WEIGHTS>(to, static_cast<const T*>(p.weights), first, p.rows,
                                                    step * Shape::CHUNKS * (16 / int(sizeof(T))), p.cols);
    }
};

// From codes and scales to bf16. A thread has 32 weights of one row: a block of q8, half of one of nf4.
template <typename Encoding>
struct Decoded {
    static constexpr int LOADS = 32 / Encoding::VALUES;
    struct Held {
        uint4 codes[LOADS];
        uint16_t scale;
    };
    static __device__ __forceinline__ void prepare(float* table) {
        Encoding::fill(table);
        __syncthreads();
    }
    template <typename Shape>
    static __device__ __forceinline__ void fetch(Held& held, const GemmParams& p, uint32_t first, int step) {
        constexpr int PER_ROW = Shape::CHUNKS / 4;
        static_assert(Shape::THREADS == PER_ROW * Shape::WEIGHTS, "every thread decodes 32 weights");
        const uint32_t row = min(first + threadIdx.x / PER_ROW, p.rows - 1);
        const uint32_t piece = step * PER_ROW + threadIdx.x % PER_ROW;
        const unsigned char* from = static_cast<const unsigned char*>(p.weights) + row * p.row_bytes;
        // What is beyond the last column is multiplied with zeros, and is not to be read.
        const bool inside = piece * 32 < p.cols;
        held.scale = inside ? scale_at(from, piece * LOADS) : uint16_t(0);
#pragma unroll
        for (int i = 0; i < LOADS; ++i) {
            held.codes[i] = inside ? __ldg(reinterpret_cast<const uint4*>(codes_at(from, piece * LOADS + i)))
                                   : make_uint4(0, 0, 0, 0);
        }
    }
    template <typename Shape>
    static __device__ __forceinline__ void put(unsigned char* to, const Held& held, const GemmParams&, uint32_t, int,
                                               const float* table) {
        constexpr int PER_ROW = Shape::CHUNKS / 4;
        constexpr int PARTS = Encoding::VALUES / PART;
        const int row = threadIdx.x / PER_ROW;
        const int chunk = threadIdx.x % PER_ROW * 4;
        const float scale = scale_of(held.scale);
#pragma unroll
        for (int i = 0; i < LOADS; ++i) {
#pragma unroll
            for (int part = 0; part < PARTS; ++part) {
                float w[PART];
                Encoding::decode(held.codes[i], part, scale, table, w);
                *reinterpret_cast<uint4*>(to + Shape::at(row, chunk + i * PARTS + part)) = make_uint4(
                    pack_two<__nv_bfloat16>(w[0], w[1]), pack_two<__nv_bfloat16>(w[2], w[3]),
                    pack_two<__nv_bfloat16>(w[4], w[5]), pack_two<__nv_bfloat16>(w[6], w[7]));
            }
        }
    }
};

__device__ __forceinline__ float2 two(const float* from) { return *reinterpret_cast<const float2*>(from); }
__device__ __forceinline__ float2 two(const __half* from) {
    return __half22float2(*reinterpret_cast<const __half2*>(from));
}
__device__ __forceinline__ float2 two(const __nv_bfloat16* from) {
    return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(from));
}

template <typename T, typename Shape, typename Weights, typename Loader>
__device__ __forceinline__ void gemm(const GemmParams& p) {
    constexpr int ELEMENTS = 16 / sizeof(T);
    constexpr int DEPTH = Shape::CHUNKS * ELEMENTS;
    constexpr int MS = Shape::WARP_WEIGHTS / 16;
    constexpr int NS = Shape::WARP_X / 8;

    DYNAMIC_SHARED(unsigned char, shared);
    __shared__ float table[16];
    Weights::prepare(table);
    const T* x = static_cast<const T*>(p.x);
    // Blocks of one tile of weights follow each other, so that it comes from memory once.
    const uint32_t first_x = blockIdx.x * Shape::X;
    const uint32_t first_weight = blockIdx.y * Shape::WEIGHTS;
    const int lane = threadIdx.x % WARP;
    const int warp = threadIdx.x / WARP;
    const int warp_weight = warp % Shape::WARPS_WEIGHTS * Shape::WARP_WEIGHTS;
    const int warp_x = warp / Shape::WARPS_WEIGHTS * Shape::WARP_X;
    const int steps = (p.cols + DEPTH - 1) / DEPTH;

    typename Weights::Held held;
    const auto fetch = [&](int step) {
        if (step < steps) {
            Weights::template fetch<Shape>(held, p, first_weight, step);
        }
    };
    const auto load = [&](int step) {
        if (step < steps) {
            unsigned char* stage = shared + step % Shape::STAGES * Shape::STAGE_BYTES;
            Weights::template put<Shape>(stage, held, p, first_weight, step, table);
            load_tile<T, Shape, Loader, Shape::X>(stage + Shape::WEIGHTS_BYTES, x, first_x, p.n, step * DEPTH,
                                                  p.cols);
        }
        cp_async_commit(); // also where nothing was loaded: waits count groups
        fetch(step + 1);
    };

    float sums[MS][NS][4] = {};
    fetch(0);
#pragma unroll
    for (int step = 0; step < Shape::STAGES - 1; ++step) {
        load(step);
    }
    cp_async_wait<Shape::STAGES - 2>();
    __syncthreads();

    if constexpr (HAS_MMA<T>) {
        constexpr int SLICES = DEPTH / 16;
        static_assert(SLICES % 2 == 0, "the fragments of two slices take turns");
        // Of eight rows of x a load brings two slices.
        constexpr int TURNS = NS == 1 ? 4 : 2;
        static_assert(SLICES % TURNS == 0, "the first slice of a stage has the first turn");
        uint32_t a[2][MS][4];
        uint32_t b[TURNS][NS][2];
        const auto fragments = [&](int step, auto slice) {
            constexpr int SLICE = decltype(slice)::VALUE;
            const unsigned char* stage = shared + step % Shape::STAGES * Shape::STAGE_BYTES;
            constexpr int TURN = SLICE % TURNS;
#pragma unroll
            for (int m = 0; m < MS; ++m) {
                const int row = warp_weight + m * 16 + lane % 16;
                ldmatrix_x4(a[SLICE % 2][m], stage + Shape::at(row, SLICE * 2 + lane / 16));
            }
            stage += Shape::WEIGHTS_BYTES;
            if constexpr (NS > 1) {
#pragma unroll
                for (int pair = 0; pair < NS; pair += 2) {
                    const int row = warp_x + pair * 8 + lane / 16 * 8 + lane % 8;
                    uint32_t r[4];
                    ldmatrix_x4(r, stage + Shape::at(row, SLICE * 2 + lane / 8 % 2));
                    b[TURN][pair][0] = r[0];
                    b[TURN][pair][1] = r[1];
                    b[TURN][pair + 1][0] = r[2];
                    b[TURN][pair + 1][1] = r[3];
                }
            } else if constexpr (SLICE % 2 == 0) {
                uint32_t r[4];
                ldmatrix_x4(r, stage + Shape::at(warp_x + lane % 8, SLICE * 2 + lane / 8));
                b[TURN][0][0] = r[0];
                b[TURN][0][1] = r[1];
                b[TURN + 1][0][0] = r[2];
                b[TURN + 1][0][1] = r[3];
            }
        };
        fragments(0, Constant<0>());
        for (int step = 0; step < steps; ++step) {
            for_each_constant<SLICES>([&](auto slice) {
                constexpr int SLICE = decltype(slice)::VALUE;
                // The next slice is on its way to registers while this one is multiplied, across stages too.
                if constexpr (SLICE + 1 < SLICES) {
                    fragments(step, Constant<SLICE + 1>());
                } else if (step + 1 < steps) {
                    cp_async_wait<Shape::STAGES - 2>();
                    __syncthreads();
                    fragments(step + 1, Constant<0>());
                }
                if constexpr (SLICE == 0) {
                    // Into the stage that was used before: all have left it at the barrier that led here.
                    load(step + Shape::STAGES - 1);
                }
#pragma unroll
                for (int m = 0; m < MS; ++m) {
#pragma unroll
                    for (int n = 0; n < NS; ++n) {
                        mma_16x8x16<T>(sums[m][n], a[SLICE % 2][m], b[SLICE % TURNS][n]);
                    }
                }
            });
        }
    } else {
        for (int step = 0; step < steps; ++step) {
            if (step > 0) {
                cp_async_wait<Shape::STAGES - 2>();
                __syncthreads();
            }
            load(step + Shape::STAGES - 1);
            const unsigned char* stage = shared + step % Shape::STAGES * Shape::STAGE_BYTES;
            const auto element = [&](int row, int col) {
                return reinterpret_cast<const T*>(stage + Shape::at(row, col / ELEMENTS)) + col % ELEMENTS;
            };
            // Two columns at a time: more would not leave the registers for the sums.
#pragma unroll 1
            for (int col = 0; col < DEPTH; col += 2) {
                float2 b[NS][2];
#pragma unroll
                for (int n = 0; n < NS; ++n) {
                    const int row = Shape::WEIGHTS + warp_x + n * 8 + lane % 4 * 2;
                    b[n][0] = two(element(row, col));
                    b[n][1] = two(element(row + 1, col));
                }
#pragma unroll
                for (int m = 0; m < MS; ++m) {
#pragma unroll
                    for (int half = 0; half < 2; ++half) {
                        const float2 a = two(element(warp_weight + m * 16 + half * 8 + lane / 4, col));
#pragma unroll
                        for (int n = 0; n < NS; ++n) {
#pragma unroll
                            for (int i = 0; i < 2; ++i) {
                                float& sum = sums[m][n][half * 2 + i];
                                sum = fmaf(a.x, b[n][i].x, sum);
                                sum = fmaf(a.y, b[n][i].y, sum);
                            }
                        }
                    }
                }
            }
        }
    }

#pragma unroll
    for (int m = 0; m < MS; ++m) {
#pragma unroll
        for (int n = 0; n < NS; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const uint32_t weight = first_weight + warp_weight + m * 16 + i / 2 * 8 + lane / 4;
                const uint32_t row = first_x + warp_x + n * 8 + lane % 4 * 2 + i % 2;
                if (weight < p.rows && row < p.n) {
                    p.y[row * p.stride + weight] = sums[m][n][i];
                }
            }
        }
    }
}

// The twins of all shapes are in the launcher.
#if NARROWS_ARCH >= 80
// For a batch that decodes: narrow, so that a matrix makes many blocks, and with long rows in a stage, since it is the
// weights' way from memory that takes the time, and what a stage costs besides. Two fit into a multiprocessor.
using Narrow = Tile<64, 32, 16, 16, 16, 4>;
// For matrices of few rows. Decoding takes more threads for a weight than copying.
using Thin = Tile<32, 32, 16, 8, 16, 6>;
using ThinDecoded = Tile<32, 32, 16, 8, 32, 3>;
using Small = Tile<64, 64, 16, 32, 16, 3>;
#else
// Two stages of these are what 64 KiB of shared memory hold beside a table.
using Narrow = Tile<64, 32, 16, 32, 8, 2>;
using Thin = Narrow;
using ThinDecoded = Narrow;
using Small = Tile<64, 64, 32, 32, 8, 2>;
#endif
// For prompts: warps of 64x64, below which shared memory is slower than the matrix units.
using Large = Tile<128, 128, 64, 64, 4, 3>;
using Huge = Tile<256, 128, 64, 64, 4, 4>;

constexpr int min_blocks(int a, int b) { return a < b ? a : b; }

#define GEMM(shape, Shape, Loader, encoding, T, ...) \
    KERNEL __launch_bounds__(Shape::THREADS, min_blocks(Shape::BLOCKS, Loader<T>::BLOCKS)) \
        gemm_##shape##_##encoding(const GemmParams p) { \
        gemm<T, Shape, __VA_ARGS__, Loader<T>>(p); \
    }
// Every encoding of weights in one shape, Decoded_ where it is quantised, with x loaded by Loader.
#define ENCODINGS(shape, Shape, Decoded_, Loader) \
    GEMM(shape, Shape, Loader, f32, float, Verbatim<float, Loader<float>>) \
    GEMM(shape, Shape, Loader, f16, __half, Verbatim<__half, Loader<__half>>) \
    GEMM(shape, Shape, Loader, bf16, __nv_bfloat16, Verbatim<__nv_bfloat16, Loader<__nv_bfloat16>>) \
    GEMM(shape, Decoded_, Loader, q8, __nv_bfloat16, Decoded<Q8>) \
    GEMM(shape, Decoded_, Loader, nf4, __nv_bfloat16, Decoded<Nf4>)

ENCODINGS(narrow, Narrow, Narrow, Aligned)
ENCODINGS(thin, Thin, ThinDecoded, Aligned)
ENCODINGS(small, Small, Small, Aligned)
ENCODINGS(large, Large, Large, Aligned)
ENCODINGS(huge, Huge, Huge, Aligned)
ENCODINGS(unaligned, Small, Small, Unaligned)
