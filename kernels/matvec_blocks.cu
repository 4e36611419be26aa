// One to eight rows of activations in bf16 times quantised weights: y[i, r] = sum over c of W[r, c] x[i, c].
//
// What counts here is how many instructions a weight takes: memory of 4.6 TB/s leaves a lane 3.9 for one of nf4 and
// 7.7 for one of q8 on a device of 132 multiprocessors at 1.98 GHz.
//
// - A warp takes R neighbouring rows of weights, a lane 16 bytes of codes of each at a time, and no warp waits for
//   another. What is loaded and decoded of the activations serves R times.
// - Codes are multiplied as they are, and the sum over the 16 bytes, which share a scale, by the scale.
// - Two codes of nf4 are looked up at once: shared memory holds the values of every byte, 16 times over, so that no
//   two lanes that read together read from one bank. It takes 32 KiB, which is why few large blocks stay on a
//   multiprocessor for as long as there are rows. Lookups are what bounds nf4: a multiprocessor reads 128 bytes of
//   shared memory in a clock, a weight for each lane of a warp, which on that device is 4.4 TB/s of codes and scales.
// - The rows of neighbouring warps are far from each other, so that the last ones are spread over the device.
//
// The order of each sum depends on the number of columns alone. Lane l adds up the 16 bytes of codes l, l + 32, ...
// of the row in order: of each, the products in order, and then these times the scale by one fma. Lanes are folded
// as by `warp_sum`. So a row of the result is the same bits with one row of activations and with eight, in any
// tiling of the weights, and where slow loads are needed.
#include "blocks.cuh"
#include "matvec.cuh"

// The codes of a chunk as numbers, STEP at a time.
struct Q8Codes {
    static constexpr int VALUES = Q8::VALUES;
    static __device__ __forceinline__ SharedAddress prepare(unsigned char*) { return 0; }
    template <int STEP>
    static __device__ __forceinline__ void decode(uint4 codes, int step, SharedAddress, float (&out)[STEP]) {
        const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
#pragma unroll
        for (int i = 0; i < STEP; i += 4) {
            numbers_of(words[(step * STEP + i) / 4], out + i);
        }
    }
};

struct Nf4Codes {
    static constexpr int VALUES = Nf4::VALUES;
    // As many lanes read eight bytes each in one clock.
    static constexpr uint32_t COPIES = 16;
    static constexpr uint32_t STRIDE = COPIES * sizeof(float2);

    // The two values of each byte, copy after copy. How much that is stands in the launcher as `TABLE`. Returns where
    // this lane's copy is.
    static __device__ __forceinline__ SharedAddress prepare(unsigned char* table) {
        for (uint32_t i = threadIdx.x; i < 256 * COPIES; i += blockDim.x) {
            const uint32_t byte = i / COPIES;
            reinterpret_cast<float2*>(table)[i] = make_float2(NF4_VALUES[byte >> 4], NF4_VALUES[byte & 15u]);
        }
        __syncthreads();
        return shared_address(table) + threadIdx.x % COPIES * sizeof(float2);
    }
    template <int STEP>
    static __device__ __forceinline__ void decode(uint4 codes, int step, SharedAddress table, float (&out)[STEP]) {
        const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
#pragma unroll
        for (int i = 0; i < STEP; i += 2) {
            const int byte = (step * STEP + i) / 2;
            // The upper four bits of a byte are the first of its two.
            const uint32_t index = __byte_perm(words[byte / 4], 0, 0x4440 | byte % 4);
            const float2 pair = load_shared_2(table + index * STRIDE);
            out[i] = pair.x;
            out[i + 1] = pair.y;
        }
    }
};

// Reads STEP activations from the one number `at` on. The last block of a row can have more weights than there are
// columns, and WIDE rows end at multiples of 8.
template <bool WIDE, int STEP>
__device__ __forceinline__ void inputs(const unsigned char* row, uint32_t at, uint32_t cols, float (&out)[STEP]) {
    static_assert(STEP == 4 || STEP == 8, "a load of 8 or of 16 bytes");
    uint32_t words[STEP / 2] = {};
    if (!WIDE) {
        const uint16_t* elements = reinterpret_cast<const uint16_t*>(row);
#pragma unroll
        for (uint32_t i = 0; i < STEP; ++i) {
            words[i / 2] |= at + i < cols ? uint32_t(elements[at + i]) << (i % 2 * 16) : 0;
        }
    } else if (at < cols) {
        const unsigned char* from = row + 2 * uint64_t(at);
        if (STEP == 8) {
            const uint4 loaded = __ldg(reinterpret_cast<const uint4*>(from));
            words[0] = loaded.x;
            words[1] = loaded.y;
            words[STEP / 2 - 2] = loaded.z;
            words[STEP / 2 - 1] = loaded.w;
        } else {
            const uint2 loaded = __ldg(reinterpret_cast<const uint2*>(from));
            words[0] = loaded.x;
            words[1] = loaded.y;
        }
    }
#pragma unroll
    for (int i = 0; i < STEP / 2; ++i) {
        out[2 * i] = __uint_as_float(words[i] << 16);
        out[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
}

// Adds the products of one chunk of R rows of weights and N rows of activations.
template <typename Codes, bool WIDE, int N, int R>
__device__ __forceinline__ void multiply(const MatvecParams& p, const uint4 (&codes)[R], const uint16_t (&scales)[R],
                                         SharedAddress table, uint32_t chunk, float (&sums)[N * R]) {
    // For many sums, fewer weights at a time: registers are what there is least of.
    constexpr int STEP = N >= 8 ? 4 : 8;
    float products[N * R];
#pragma unroll
    for (int step = 0; step < Codes::VALUES / STEP; ++step) {
        float w[R][STEP];
#pragma unroll
        for (int r = 0; r < R; ++r) {
            Codes::template decode<STEP>(codes[r], step, table, w[r]);
        }
#pragma unroll
        for (int i = 0; i < N; ++i) {
            float x[STEP];
            // Where there are fewer than N rows the last is computed several times over, and written once.
            inputs<WIDE, STEP>(p.x + min(uint32_t(i), p.n - 1) * p.x_bytes, chunk * Codes::VALUES + step * STEP,
                               p.cols, x);
#pragma unroll
            for (int e = 0; e < STEP; ++e) {
#pragma unroll
                for (int r = 0; r < R; ++r) {
                    float& product = products[i * R + r];
                    product = step + e == 0 ? w[r][e] * x[e] : fmaf(w[r][e], x[e], product);
                }
            }
        }
    }
#pragma unroll
    for (int r = 0; r < R; ++r) {
        const float scale = scale_of(scales[r]);
#pragma unroll
        for (int i = 0; i < N; ++i) {
            sums[i * R + r] = fmaf(scale, products[i * R + r], sums[i * R + r]);
        }
    }
}

// DEPTH chunks of each row are on their way at a time.
template <typename Codes, bool WIDE, int N, int R, int DEPTH>
__device__ __forceinline__ void matvec_blocks(const MatvecParams& p) {
    constexpr int V = N * R;
    // What the chunks of a warp and their scales take in a row.
    constexpr uint32_t STEP_BYTES = WARP / GROUP_CHUNKS * GROUP_BYTES;
    DYNAMIC_SHARED(unsigned char, shared);
    const SharedAddress table = Codes::prepare(shared);
    const uint32_t lane = threadIdx.x % WARP;
    const uint32_t chunks = (p.cols + Codes::VALUES - 1) / Codes::VALUES;
    const uint64_t stride = uint64_t(gridDim.x) * (blockDim.x / WARP) * R;
    for (uint64_t first = (uint64_t(threadIdx.x / WARP) * gridDim.x + blockIdx.x) * R; first < p.rows;
         first += stride) {
        const unsigned char* row = p.matrix + first * p.row_bytes;
        const unsigned char* codes_of = codes_at(row, lane);
        const unsigned char* scales_of = scale_address(row, lane);
        // Beyond the last row the last again, which is not written. The launcher sees to it that 32 bits do.
        uint32_t below[R];
#pragma unroll
        for (int r = 0; r < R; ++r) {
            below[r] = min(uint32_t(r), uint32_t(p.rows - 1 - first)) * uint32_t(p.row_bytes);
        }
        float sums[V];
#pragma unroll
        for (int k = 0; k < V; ++k) {
            sums[k] = 0.0f;
        }
        for (uint32_t chunk = lane; chunk < chunks; chunk += DEPTH * WARP) {
            uint4 codes[DEPTH][R];
            uint16_t scales[DEPTH][R];
#pragma unroll
            for (int d = 0; d < DEPTH; ++d) {
                if (d == 0 || chunk + d * WARP < chunks) {
#pragma unroll
                    for (int r = 0; r < R; ++r) {
                        codes[d][r] = load_once(codes_of + below[r] + d * STEP_BYTES);
                        scales[d][r] = __ldg(reinterpret_cast<const uint16_t*>(scales_of + below[r] + d * STEP_BYTES));
                    }
                }
            }
            codes_of += DEPTH * STEP_BYTES;
            scales_of += DEPTH * STEP_BYTES;
#pragma unroll
            for (int d = 0; d < DEPTH; ++d) {
                if (d == 0 || chunk + d * WARP < chunks) {
                    multiply<Codes, WIDE, N, R>(p, codes[d], scales[d], table, chunk + d * WARP, sums);
                }
            }
        }
        const float sum = fold(sums);
        constexpr uint32_t LANES = WARP / V;
        const uint32_t i = lane / LANES / R;
        const uint32_t r = lane / LANES % R;
        if (lane % LANES == 0 && i < p.n && first + r < p.rows) {
            p.y[i * p.stride + first + r] = sum;
        }
    }
}

// MATVEC(name, what codes are, whether activations start and end at multiples of 16 bytes, rows of activations, rows
// of weights, chunks of each on their way, threads, blocks that a multiprocessor holds at once). Its twin for the
// launcher is in matvec.rs.
#define MATVEC(name, Codes, WIDE, N, R, DEPTH, THREADS, BLOCKS) \
    KERNEL __launch_bounds__(THREADS, BLOCKS) name(const MatvecParams p) { \
        matvec_blocks<Codes, WIDE, N, R, DEPTH>(p); \
    }

MATVEC(matvec1_q8, Q8Codes, true, 1, 4, 2, 128, 7)
MATVEC(matvec2_q8, Q8Codes, true, 2, 4, 2, 128, 5)
MATVEC(matvec4_q8, Q8Codes, true, 4, 4, 1, 128, 4)
MATVEC(matvec8_q8, Q8Codes, true, 8, 4, 1, 128, 3)
MATVEC(matvec1_nf4, Nf4Codes, true, 1, 4, 1, 512, 2)
MATVEC(matvec2_nf4, Nf4Codes, true, 2, 4, 1, 512, 1)
MATVEC(matvec4_nf4, Nf4Codes, true, 4, 4, 1, 384, 1)
MATVEC(matvec8_nf4, Nf4Codes, true, 8, 4, 1, 320, 1)
// For matrices of few rows, which would leave multiprocessors without any.
MATVEC(matvec1_few_q8, Q8Codes, true, 1, 1, 8, 128, 7)
MATVEC(matvec2_few_q8, Q8Codes, true, 2, 1, 8, 128, 7)
MATVEC(matvec4_few_q8, Q8Codes, true, 4, 1, 4, 128, 5)
MATVEC(matvec8_few_q8, Q8Codes, true, 8, 1, 2, 128, 4)
MATVEC(matvec1_few_nf4, Nf4Codes, true, 1, 1, 4, 512, 2)
MATVEC(matvec2_few_nf4, Nf4Codes, true, 2, 1, 4, 512, 2)
MATVEC(matvec4_few_nf4, Nf4Codes, true, 4, 1, 4, 512, 1)
MATVEC(matvec8_few_nf4, Nf4Codes, true, 8, 1, 2, 320, 1)
// Activations that start anywhere: for one or for up to four rows at a time, which is right but not fast.
MATVEC(matvec1_any_q8, Q8Codes, false, 1, 2, 1, 128, 4)
MATVEC(matvec4_any_q8, Q8Codes, false, 4, 2, 1, 128, 4)
MATVEC(matvec1_any_nf4, Nf4Codes, false, 1, 2, 1, 512, 1)
MATVEC(matvec4_any_nf4, Nf4Codes, false, 4, 2, 1, 512, 1)
