// Attention of single rows over long caches: Flash-Decoding (Dao et al. 2023,
// https://crfm.stanford.edu/2023/10/12/flashdecoding.html). The positions are split at multiples of SPLIT; a
// block serves one split and the query heads that share a key-value head, and a second kernel combines the
// splits in their order. What a row gets depends on its position and window alone, not on what else is in the
// batch.
#include "attention_decode.cuh"

constexpr int DECODE_THREADS = 256;
// Blocks that a multiprocessor is to have room for. The oldest get more registers instead.
constexpr int DECODE_BLOCKS = NARROWS_ARCH >= 80 ? 2 : 1;
constexpr int DECODE_WARPS = DECODE_THREADS / WARP;
constexpr int COMBINE_THREADS = 256;
// The largest head, which with 8 elements per lane takes a whole warp.
constexpr int MAX_HEAD_DIM = 256;

// Eight neighbours as they are stored.
template <typename T>
struct Eight {
    static constexpr int WORDS = 8 * sizeof(T) / 16;
    uint4 words[WORDS];

    __device__ __forceinline__ void load(const T* from) {
#pragma unroll
        for (int i = 0; i < WORDS; ++i) {
            words[i] = load_once(reinterpret_cast<const uint4*>(from) + i);
        }
    }
    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int i = 0; i < WORDS; ++i) {
            words[i] = make_uint4(0, 0, 0, 0);
        }
    }
    __device__ __forceinline__ void floats(float (&to)[8]) const;
};

template <>
__device__ __forceinline__ void Eight<float>::floats(float (&to)[8]) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        to[4 * i] = __uint_as_float(words[i].x);
        to[4 * i + 1] = __uint_as_float(words[i].y);
        to[4 * i + 2] = __uint_as_float(words[i].z);
        to[4 * i + 3] = __uint_as_float(words[i].w);
    }
}
template <>
__device__ __forceinline__ void Eight<__half>::floats(float (&to)[8]) const {
    const uint32_t from[4] = {words[0].x, words[0].y, words[0].z, words[0].w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        to[2 * i] = __half2float(__ushort_as_half(static_cast<unsigned short>(from[i])));
        to[2 * i + 1] = __half2float(__ushort_as_half(static_cast<unsigned short>(from[i] >> 16)));
    }
}
template <>
__device__ __forceinline__ void Eight<__nv_bfloat16>::floats(float (&to)[8]) const {
    const uint32_t from[4] = {words[0].x, words[0].y, words[0].z, words[0].w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        // A bf16 is the upper half of a float.
        to[2 * i] = __uint_as_float(from[i] << 16);
        to[2 * i + 1] = __uint_as_float(from[i] & 0xffff0000u);
    }
}

// Lanes that share a position: each has 8 elements of the head, some perhaps none. At least 8, so that the
// sums of 8 heads can be shared out among them.
__device__ __forceinline__ int lanes_of(uint32_t head_dim) { return head_dim <= 64 ? 8 : head_dim <= 128 ? 16 : 32; }

// GROUP heads, of which the group may use fewer.
template <typename T, int GROUP>
__device__ __forceinline__ void attention_decode(const AttentionDecodeParams& p) {
    // Loads that a thread has under way while it computes on as many.
    constexpr int AHEAD = 4 / Eight<T>::WORDS;

    __shared__ __align__(16) float scores[SPLIT * GROUP];
    __shared__ float of_warps[2][DECODE_WARPS][GROUP];
    __shared__ __align__(16) float sums[DECODE_WARPS / 2][GROUP * MAX_HEAD_DIM];

    const DecodeBlock block = decode_block<GROUP>(p);
    const KvRow row = block.row;
    const uint32_t begin = block.begin;
    const uint32_t end = block.end;
    if (begin >= end) {
        return;
    }
    const int count = end - begin;
    const uint32_t kv_head = block.kv_head;
    const uint32_t first_head = block.first_head;
    const int heads = block.heads;

    const int lanes = lanes_of(p.head_dim);
    const int teams = DECODE_THREADS / lanes;
    const int team = threadIdx.x / lanes;
    const int lane = threadIdx.x % lanes;
    const bool active = lane * 8 < p.head_dim;
    const int passes = (count + teams * AHEAD - 1) / (teams * AHEAD);

    const uint64_t offset = uint64_t(begin) * p.head_dim + (active ? lane * 8 : 0);
    const T* keys = kv_keys<const T>(row, p.layer, p.kv_heads, p.head_dim, kv_head) + offset;
    const T* values = kv_values<const T>(row, p.layer, p.kv_heads, p.head_dim, kv_head) + offset;

    const auto load = [&](Eight<T>(&to)[AHEAD], const T* from, int pass) {
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) {
            // Beyond the end the last position again: what is there counts nothing, but may be read.
            const int at = min((pass * AHEAD + i) * teams + team, count - 1);
            if (active) {
                to[i].load(from + uint64_t(at) * p.head_dim);
            } else {
                to[i].clear();
            }
        }
    };

    Eight<T> next[AHEAD];
    load(next, keys, 0);
    {
        float q[GROUP][8];
        const uint64_t heads_of_row = uint64_t(p.kv_heads) * p.group;
        const float* from = p.q + (blockIdx.z * heads_of_row + first_head) * p.head_dim + lane * 8;
#pragma unroll
        for (int h = 0; h < GROUP; ++h) {
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                q[h][i] = active && h < heads ? from[h * p.head_dim + i] * p.scale : 0.0f;
            }
        }
        for (int pass = 0; pass < passes; ++pass) {
            Eight<T> now[AHEAD];
#pragma unroll
            for (int i = 0; i < AHEAD; ++i) {
                now[i] = next[i];
            }
            // The first values come while the softmax is computed.
            if (pass + 1 < passes) {
                load(next, keys, pass + 1);
            } else {
                load(next, values, 0);
            }
#pragma unroll
            for (int i = 0; i < AHEAD; ++i) {
                float key[8];
                now[i].floats(key);
                float dots[GROUP];
#pragma unroll
                for (int h = 0; h < GROUP; ++h) {
                    float dot = 0.0f;
#pragma unroll
                    for (int j = 0; j < 8; ++j) {
                        dot = fmaf(q[h][j], key[j], dot);
                    }
                    dots[h] = dot;
                }
                // Sums over the lanes of a team. While there are several heads, each half of the lanes keeps
                // half of them.
                int distance = lanes / 2;
                int head = 0;
#pragma unroll
                for (int kept = GROUP / 2; kept > 0; kept /= 2) {
                    const bool upper = lane & distance;
                    head += upper ? kept : 0;
#pragma unroll
                    for (int h = 0; h < kept; ++h) {
                        const float given = upper ? dots[h] : dots[h + kept];
                        const float mine = upper ? dots[h + kept] : dots[h];
                        dots[h] = mine + __shfl_xor_sync(ALL_LANES, given, distance);
                    }
                    distance /= 2;
                }
                const bool writes = lane % (lanes / GROUP) == 0;
                for (; distance > 0; distance /= 2) {
                    dots[0] += __shfl_xor_sync(ALL_LANES, dots[0], distance);
                }
                const int at = (pass * AHEAD + i) * teams + team;
                if (writes && at < count) {
                    scores[at * GROUP + head] = dots[0];
                }
            }
        }
    }
    __syncthreads();

    // Threads of a head: every GROUP-th.
    const int head = threadIdx.x % GROUP;
    const int warp = threadIdx.x / WARP;
    float greatest = -INFINITY;
    if (bends(p.cap, p.slopes)) {
        const float slope = p.slopes != nullptr && head < heads ? p.slopes[first_head + head] : 0.0f;
        // Fetched again rather than kept in a register since the beginning.
        const uint32_t position = p.rows[blockIdx.z].position;
        for (int at = threadIdx.x / GROUP; at < count; at += DECODE_THREADS / GROUP) {
            float& score = scores[at * GROUP + head];
            score = bent(score, p.cap, slope, position - (begin + at));
        }
    }
    for (int at = threadIdx.x / GROUP; at < count; at += DECODE_THREADS / GROUP) {
        greatest = fmaxf(greatest, scores[at * GROUP + head]);
    }
#pragma unroll
    for (int distance = WARP / 2; distance >= GROUP; distance /= 2) {
        greatest = fmaxf(greatest, __shfl_xor_sync(ALL_LANES, greatest, distance));
    }
    if (threadIdx.x % WARP < GROUP) {
        of_warps[0][warp][head] = greatest;
    }
    __syncthreads();
#pragma unroll
    for (int w = 0; w < DECODE_WARPS; ++w) {
        greatest = fmaxf(greatest, of_warps[0][w][head]);
    }
    float sum = 0.0f;
    for (int at = threadIdx.x / GROUP; at < count; at += DECODE_THREADS / GROUP) {
        const float weight = exp2f(scores[at * GROUP + head] - greatest);
        scores[at * GROUP + head] = weight;
        sum += weight;
    }
#pragma unroll
    for (int distance = WARP / 2; distance >= GROUP; distance /= 2) {
        sum += __shfl_xor_sync(ALL_LANES, sum, distance);
    }
    if (threadIdx.x % WARP < GROUP) {
        of_warps[1][warp][head] = sum;
    }
    __syncthreads();

    const uint64_t first_part =
        (blockIdx.z * uint64_t(p.kv_heads) * p.group + first_head) * p.splits + blockIdx.x;
    if (threadIdx.x < heads) {
        sum = 0.0f;
#pragma unroll
        for (int w = 0; w < DECODE_WARPS; ++w) {
            sum += of_warps[1][w][head];
        }
        p.softmax[first_part + uint64_t(head) * p.splits] = make_float2(greatest, sum);
    }

    float out[GROUP][8] = {};
    for (int pass = 0; pass < passes; ++pass) {
        Eight<T> now[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) {
            now[i] = next[i];
        }
        if (pass + 1 < passes) {
            load(next, values, pass + 1);
        }
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) {
            const int at = (pass * AHEAD + i) * teams + team;
            if (at < count) {
                float value[8];
                now[i].floats(value);
#pragma unroll
                for (int h = 0; h < GROUP; ++h) {
                    const float weight = scores[at * GROUP + h];
#pragma unroll
                    for (int j = 0; j < 8; ++j) {
                        out[h][j] = fmaf(weight, value[j], out[h][j]);
                    }
                }
            }
        }
    }

    // The teams of a warp, then the warps, the upper half given to the lower until one is left.
    for (int distance = WARP / 2; distance >= lanes; distance /= 2) {
#pragma unroll
        for (int h = 0; h < GROUP; ++h) {
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                out[h][j] += __shfl_xor_sync(ALL_LANES, out[h][j], distance);
            }
        }
    }
    const bool first_team = threadIdx.x % WARP < lanes && active;
    for (int half = DECODE_WARPS / 2; half > 0; half /= 2) {
        if (first_team && warp >= half && warp < 2 * half) {
#pragma unroll
            for (int h = 0; h < GROUP; ++h) {
#pragma unroll
                for (int j = 0; j < 8; ++j) {
                    sums[warp - half][(h * 8 + j) * WARP + lane] = out[h][j];
                }
            }
        }
        __syncthreads();
        if (first_team && warp < half) {
#pragma unroll
            for (int h = 0; h < GROUP; ++h) {
#pragma unroll
                for (int j = 0; j < 8; ++j) {
                    out[h][j] += sums[warp][(h * 8 + j) * WARP + lane];
                }
            }
        }
        __syncthreads();
    }
    if (first_team && warp == 0) {
#pragma unroll
        for (int h = 0; h < GROUP; ++h) {
            if (h < heads) {
                float* to = p.sums + (first_part + uint64_t(h) * p.splits) * p.head_dim + lane * 8;
                store4(to, make_float4(out[h][0], out[h][1], out[h][2], out[h][3]));
                store4(to + 4, make_float4(out[h][4], out[h][5], out[h][6], out[h][7]));
            }
        }
    }
}

#define ATTENTION_DECODE(group, encoding, T) \
    KERNEL __launch_bounds__(DECODE_THREADS, DECODE_BLOCKS) \
        attention_decode_##group##_##encoding(const AttentionDecodeParams p) { \
        attention_decode<T, group>(p); \
    }

ATTENTION_DECODE(1, f32, float)
ATTENTION_DECODE(1, f16, __half)
ATTENTION_DECODE(1, bf16, __nv_bfloat16)
ATTENTION_DECODE(4, f32, float)
ATTENTION_DECODE(4, f16, __half)
ATTENTION_DECODE(4, bf16, __nv_bfloat16)
ATTENTION_DECODE(8, f32, float)
ATTENTION_DECODE(8, f16, __half)
ATTENTION_DECODE(8, bf16, __nv_bfloat16)

struct AttentionCombineParams {
    const float* sums;
    const float2* softmax;
    const KvRow* rows;
    void* out;  // [n, heads, head_dim]
    uint32_t head_dim;
    uint32_t window;
    uint32_t splits;
    uint32_t reserved;
};

// Blocks: (heads, n). Teams of a quarter as many threads as the head has elements take the splits in turn.
template <typename Out>
__device__ __forceinline__ void attention_combine(const AttentionCombineParams& p) {
    __shared__ __align__(16) float4 of_teams[COMBINE_THREADS];
    __shared__ float of_weights[COMBINE_THREADS];

    const KvRow row = p.rows[blockIdx.y];
    const Span span = span_of(row.position, row.capacity, p.window);
    const int splits = (span.end - 1) / SPLIT - span.begin / SPLIT + 1;
    const uint64_t head = uint64_t(blockIdx.y) * gridDim.x + blockIdx.x;
    const float2* softmax = p.softmax + head * p.splits;

    const int lanes = p.head_dim / 4;
    const int teams = COMBINE_THREADS / lanes;
    const int team = threadIdx.x / lanes;
    const int lane = threadIdx.x % lanes;
    if (team < teams) {
        float greatest = -INFINITY;
        for (int split = 0; split < splits; ++split) {
            greatest = fmaxf(greatest, softmax[split].x);
        }
        const float4* sums = reinterpret_cast<const float4*>(p.sums + head * p.splits * p.head_dim) + lane;
        float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        float weights = 0.0f;
#pragma unroll 4
        for (int split = team; split < splits; split += teams) {
            const float2 part = softmax[split];
            const float weight = exp2f(part.x - greatest);
            const float4 value = sums[uint64_t(split) * lanes];
            weights = fmaf(weight, part.y, weights);
            sum.x = fmaf(weight, value.x, sum.x);
            sum.y = fmaf(weight, value.y, sum.y);
            sum.z = fmaf(weight, value.z, sum.z);
            sum.w = fmaf(weight, value.w, sum.w);
        }
        of_teams[threadIdx.x] = sum;
        of_weights[threadIdx.x] = weights;
    }
    __syncthreads();
    if (team == 0) {
        float4 sum = of_teams[lane];
        float weights = of_weights[lane];
        for (int other = 1; other < min(teams, splits); ++other) {
            const float4 value = of_teams[other * lanes + lane];
            sum.x += value.x;
            sum.y += value.y;
            sum.z += value.z;
            sum.w += value.w;
            weights += of_weights[other * lanes + lane];
        }
        sum.x /= weights;
        sum.y /= weights;
        sum.z /= weights;
        sum.w /= weights;
        store4(static_cast<Out*>(p.out) + head * p.head_dim + lane * 4, sum);
    }
}

KERNEL __launch_bounds__(COMBINE_THREADS) attention_combine_f32(const AttentionCombineParams p) {
    attention_combine<float>(p);
}
KERNEL __launch_bounds__(COMBINE_THREADS) attention_combine_f16(const AttentionCombineParams p) {
    attention_combine<__half>(p);
}
KERNEL __launch_bounds__(COMBINE_THREADS) attention_combine_bf16(const AttentionCombineParams p) {
    attention_combine<__nv_bfloat16>(p);
}
