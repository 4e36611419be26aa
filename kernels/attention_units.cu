// Attention of single rows in the matrix units, to the precision of float32: as attention_decode.cu, whose splits and
// whose second kernel it uses, for encodings of 16 bits.
//
// A matrix unit multiplies numbers of the cache's encoding exactly and adds them up in float32. A query and a weight
// of the softmax are sums of three such numbers, which have all bits of a float32 between them, and each of the three
// is multiplied by itself. Multiply-adds one by one would take longer than reading the cache: with eight heads to a
// key-value head there are eight for every number that is read.
//
// - A block has one split, a warp a quarter of its positions, 16 at a time. Nothing is shared until the end, when the
//   warps' softmaxes are brought to one maximum and their sums added up in order.
// - Keys and values come to registers as they lie in memory, 16 bytes of a position at a time. Where a matrix unit
//   wants columns of other places they are renumbered: in the dot product of a score, queries are read in the same
//   order; of the values, rows are dimensions in any order.
// - Scores come out of the matrix units as the weights go in: a lane has the positions 2t and 2t + 1 of head g, with
//   g = lane / 4 and t = lane % 4.
#include "attention_decode.cuh"

constexpr int UNITS_THREADS = 128;
constexpr int UNITS_WARPS = UNITS_THREADS / WARP;
// Heads of a block: as many columns as a matrix unit has.
constexpr int UNITS_HEADS = 8;
// Positions of a warp in a split, and of a step.
constexpr int WARP_POSITIONS = SPLIT / UNITS_WARPS;
constexpr int STEP = 16;

template <typename T>
__device__ __forceinline__ float low_of(uint32_t two);
template <>
__device__ __forceinline__ float low_of<__half>(uint32_t two) {
    return __half2float(__ushort_as_half(static_cast<unsigned short>(two)));
}
template <>
__device__ __forceinline__ float low_of<__nv_bfloat16>(uint32_t two) { return __uint_as_float(two << 16); }
template <typename T>
__device__ __forceinline__ float high_of(uint32_t two);
template <>
__device__ __forceinline__ float high_of<__half>(uint32_t two) {
    return __half2float(__ushort_as_half(static_cast<unsigned short>(two >> 16)));
}
template <>
__device__ __forceinline__ float high_of<__nv_bfloat16>(uint32_t two) { return __uint_as_float(two & 0xffff0000u); }

// How weights are multiplied before they are taken apart, so that what is left of them is no number below the least
// of T, and whether queries are brought near to one for the same reason.
template <typename T>
constexpr float WEIGHT_UNIT = 1.0f;
template <>
constexpr float WEIGHT_UNIT<__half> = 1024.0f;
template <typename T>
constexpr bool FEW_EXPONENTS = false;
template <>
constexpr bool FEW_EXPONENTS<__half> = true;

// Two numbers as sums of three of T, the greatest first. The differences are exact.
template <typename T>
__device__ __forceinline__ void split_two(float a, float b, uint32_t (&parts)[3]) {
#pragma unroll
    for (int i = 0; i < 3; ++i) {
        parts[i] = pack_two<T>(a, b);
        a -= low_of<T>(parts[i]);
        b -= high_of<T>(parts[i]);
    }
}

// Up to eight heads of a group. DIM is the head dimension, filled up with zeros.
template <typename T, int DIM>
__device__ __forceinline__ void attention_units(const AttentionDecodeParams& p) {
    // Words of 16 bytes that a lane has of a key, of which four lanes have one; and of a value, which eight have.
    constexpr int KEY_WORDS = DIM / 32;
    constexpr int VALUE_WORDS = DIM / 64;

    __shared__ float greatest_of[UNITS_WARPS][UNITS_HEADS];
    __shared__ float weight_of[UNITS_WARPS][UNITS_HEADS];
    __shared__ __align__(16) float sums_of[UNITS_WARPS][UNITS_HEADS][DIM];

    const DecodeBlock block = decode_block<UNITS_HEADS>(p);
    const KvRow row = block.row;
    const uint32_t begin = block.begin;
    const uint32_t end = block.end;
    if (begin >= end) {
        return;
    }
    const uint32_t kv_head = block.kv_head;
    const uint32_t first_head = block.first_head;
    const uint32_t heads = block.heads;

    const int warp = threadIdx.x / WARP;
    const uint32_t g = threadIdx.x % WARP / 4;
    const uint32_t t = threadIdx.x % 4;

    // Positions of this warp, from a multiple of a step on: which are computed together depends on where they lie.
    const uint32_t first = block.split * SPLIT + warp * WARP_POSITIONS;
    const uint32_t from = max(first, begin / STEP * STEP);
    const uint32_t to = min(first + WARP_POSITIONS, end);

    const T* keys = kv_keys<const T>(row, p.layer, p.kv_heads, p.head_dim, kv_head);
    const T* values = kv_values<const T>(row, p.layer, p.kv_heads, p.head_dim, kv_head);
    // Beyond the ends the nearest position that is attended to: what is there counts nothing, but may be read.
    const auto word = [&](const T* of, uint32_t position, uint32_t dim) {
        position = min(max(position, begin), end - 1);
        return dim < p.head_dim ? load_once(of + uint64_t(position) * p.head_dim + dim) : make_uint4(0, 0, 0, 0);
    };
    uint4 key[2][KEY_WORDS];
    const auto load_keys = [&](uint32_t at) {
#pragma unroll
        for (int u = 0; u < 2; ++u) {
#pragma unroll
            for (int s = 0; s < KEY_WORDS; ++s) {
                key[u][s] = word(keys, at + u * 8 + g, s * 32 + t * 8);
            }
        }
    };
    uint4 value[2][2][VALUE_WORDS];
    const auto load_values = [&](uint32_t at) {
#pragma unroll
        for (int u = 0; u < 2; ++u) {
#pragma unroll
            for (int v = 0; v < 2; ++v) {
#pragma unroll
                for (int s = 0; s < VALUE_WORDS; ++s) {
                    value[u][v][s] = word(values, at + u * 8 + t * 2 + v, s * 64 + g * 8);
                }
            }
        }
    };
    if (from < to) {
        load_keys(from);
        load_values(from);
    }

    // The first two parts of the queries are rows g and g + 8 of one matrix, the third is one by itself.
    uint32_t q[KEY_WORDS * 2][4];
    uint32_t q_last[KEY_WORDS * 2][2];
    const float* query =
        p.q + (uint64_t(blockIdx.z) * p.kv_heads * p.group + first_head + min(g, heads - 1)) * p.head_dim;
    const auto element = [&](uint32_t dim) { return dim < p.head_dim ? query[dim] * p.scale : 0.0f; };
    // Powers of two, which change no bit of a score.
    float unit = 1.0f;
    float of_unit = 1.0f;
    if constexpr (FEW_EXPONENTS<T>) {
        float most = 0.0f;
#pragma unroll
        for (int i = 0; i < KEY_WORDS * 8; ++i) {
            most = fmaxf(most, fabsf(element(i / 8 * 32 + t * 8 + i % 8)));
        }
        most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 1));
        most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 2));
        const uint32_t exponent = __float_as_uint(most) & 0x7f800000u;
        if (exponent != 0 && exponent < 0x7f000000u) {
            unit = __uint_as_float(0x7f000000u - exponent);
            of_unit = __uint_as_float(exponent);
        }
    }
#pragma unroll
    for (int i = 0; i < KEY_WORDS * 2; ++i) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const uint32_t dim = i / 2 * 32 + t * 8 + i % 2 * 4 + half * 2;
            uint32_t three[3];
            split_two<T>(element(dim) * unit, element(dim + 1) * unit, three);
            q[i][half * 2] = three[0];
            q[i][half * 2 + 1] = three[1];
            q_last[i][half] = three[2];
        }
    }

    float greatest = -INFINITY;
    float weights = 0.0f;
    float sums[DIM / 16][4] = {};
    for (uint32_t at = from; at < to; at += STEP) {
        float scores[2][2];
#pragma unroll
        for (int u = 0; u < 2; ++u) {
            float both[4] = {};
            float last[4] = {};
#pragma unroll
            for (int s = 0; s < KEY_WORDS; ++s) {
                const uint32_t words[4] = {key[u][s].x, key[u][s].y, key[u][s].z, key[u][s].w};
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const uint32_t b[2] = {words[half * 2], words[half * 2 + 1]};
                    const uint32_t third[4] = {q_last[s * 2 + half][0], 0, q_last[s * 2 + half][1], 0};
                    mma_16x8x16<T>(both, q[s * 2 + half], b);
                    mma_16x8x16<T>(last, third, b);
                }
            }
#pragma unroll
            for (int v = 0; v < 2; ++v) {
                const uint32_t position = at + u * 8 + t * 2 + v;
                const bool seen = position >= begin && position < end;
                scores[u][v] = seen ? (both[v] + (both[2 + v] + last[v])) * of_unit : -INFINITY;
            }
        }
        if (at + STEP < to) {
            load_keys(at + STEP);
        }

        float most = fmaxf(fmaxf(scores[0][0], scores[0][1]), fmaxf(scores[1][0], scores[1][1]));
        most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 1));
        most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 2));
        most = fmaxf(greatest, most);
        // Infinity less infinity would be no number.
        const float base = most == -INFINITY ? 0.0f : most;
        const float correction = exp2f(greatest - base);
        greatest = most;
        float weight[2][2];
        float sum = 0.0f;
#pragma unroll
        for (int u = 0; u < 2; ++u) {
#pragma unroll
            for (int v = 0; v < 2; ++v) {
                weight[u][v] = exp2f(scores[u][v] - base);
                sum += weight[u][v];
            }
        }
        weights = fmaf(weights, correction, sum);
        // Sums are of heads 2t and 2t + 1.
        const float first_correction = __shfl_sync(ALL_LANES, correction, t * 8);
        const float second_correction = __shfl_sync(ALL_LANES, correction, t * 8 + 4);
#pragma unroll
        for (int i = 0; i < DIM / 16; ++i) {
            sums[i][0] *= first_correction;
            sums[i][1] *= second_correction;
            sums[i][2] *= first_correction;
            sums[i][3] *= second_correction;
        }
        uint32_t low[3];
        uint32_t high[3];
        split_two<T>(weight[0][0] * WEIGHT_UNIT<T>, weight[0][1] * WEIGHT_UNIT<T>, low);
        split_two<T>(weight[1][0] * WEIGHT_UNIT<T>, weight[1][1] * WEIGHT_UNIT<T>, high);
#pragma unroll
        for (int s = 0; s < VALUE_WORDS; ++s) {
            const auto pair = [&](int u, int i, uint32_t select) {
                const uint4 one = value[u][0][s];
                const uint4 other = value[u][1][s];
                const uint32_t ones[4] = {one.x, one.y, one.z, one.w};
                const uint32_t others[4] = {other.x, other.y, other.z, other.w};
                return __byte_perm(ones[i], others[i], select);
            };
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                // Row g is dimension 64 s + 8 g + 2 i, row g + 8 the next.
                const uint32_t a[4] = {pair(0, i, 0x5410), pair(0, i, 0x7632), pair(1, i, 0x5410), pair(1, i, 0x7632)};
#pragma unroll
                for (int part = 0; part < 3; ++part) {
                    const uint32_t b[2] = {low[part], high[part]};
                    mma_16x8x16<T>(sums[s * 4 + i], a, b);
                }
            }
        }
        if (at + STEP < to) {
            load_values(at + STEP);
        }
    }

    weights += __shfl_xor_sync(ALL_LANES, weights, 1);
    weights += __shfl_xor_sync(ALL_LANES, weights, 2);
    if (t == 0) {
        greatest_of[warp][g] = greatest;
        weight_of[warp][g] = weights;
    }
    __syncthreads();
    const auto of_split = [&](uint32_t head) {
        float most = greatest_of[0][head];
#pragma unroll
        for (int w = 1; w < UNITS_WARPS; ++w) {
            most = fmaxf(most, greatest_of[w][head]);
        }
        return most;
    };
    // A warp without positions has a factor of 0; of a split without any number above infinity's negative all have.
    const auto factor_of = [&](int w, uint32_t head) {
        const float most = of_split(head);
        return exp2f(greatest_of[w][head] - (most == -INFINITY ? 0.0f : most));
    };
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const uint32_t head = t * 2 + i;
        const float factor = factor_of(warp, head) * (1.0f / WEIGHT_UNIT<T>);
#pragma unroll
        for (int tile = 0; tile < DIM / 16; ++tile) {
            const uint32_t dim = tile / 4 * 64 + g * 8 + tile % 4 * 2;
            *reinterpret_cast<float2*>(&sums_of[warp][head][dim]) =
                make_float2(sums[tile][i] * factor, sums[tile][2 + i] * factor);
        }
    }
    __syncthreads();

    const uint64_t first_part =
        (blockIdx.z * uint64_t(p.kv_heads) * p.group + first_head) * p.splits + blockIdx.x;
    if (threadIdx.x < heads) {
        float sum = 0.0f;
#pragma unroll
        for (int w = 0; w < UNITS_WARPS; ++w) {
            sum = fmaf(weight_of[w][threadIdx.x], factor_of(w, threadIdx.x), sum);
        }
        p.softmax[first_part + uint64_t(threadIdx.x) * p.splits] = make_float2(of_split(threadIdx.x), sum);
    }
    for (uint32_t i = threadIdx.x; i < heads * (DIM / 4); i += UNITS_THREADS) {
        const uint32_t head = i / (DIM / 4);
        const uint32_t dim = i % (DIM / 4) * 4;
        if (dim < p.head_dim) {
            float4 sum = load4(&sums_of[0][head][dim]);
#pragma unroll
            for (int w = 1; w < UNITS_WARPS; ++w) {
                const float4 other = load4(&sums_of[w][head][dim]);
                sum.x += other.x;
                sum.y += other.y;
                sum.z += other.z;
                sum.w += other.w;
            }
            store4(p.sums + (first_part + uint64_t(head) * p.splits) * p.head_dim + dim, sum);
        }
    }
}

// Where T has no matrix units the launcher takes the kernel without.
#define ATTENTION_UNITS(dim, encoding, T) \
    KERNEL __launch_bounds__(UNITS_THREADS, 2) attention_units_##dim##_##encoding(const AttentionDecodeParams p) { \
        if constexpr (HAS_MMA<T>) { \
            attention_units<T, dim>(p); \
        } \
    }

ATTENTION_UNITS(64, f16, __half)
ATTENTION_UNITS(64, bf16, __nv_bfloat16)
ATTENTION_UNITS(128, f16, __half)
ATTENTION_UNITS(128, bf16, __nv_bfloat16)
