// Attention of many consecutive rows of one sequence in the matrix units: FlashAttention-2 (Dao 2023,
// arXiv:2307.08691). A block takes 64 queries, which are the heads that share a key-value head, of as many rows as
// that makes, and passes over the keys and values that they attend to once, in tiles at absolute positions: what a
// row gets depends on its position and window, not on the chunk that it came in.
#include "attention.cuh"
#include "device.cuh"

constexpr int PREFILL_QUERIES = 64;
constexpr int PREFILL_THREADS = PREFILL_QUERIES / 16 * WARP;

struct AttentionPrefillParams {
    const float* q;  // [count, kv_heads * group * head_dim]
    const KvRow* rows;
    void* out;  // [count, kv_heads * group * head_dim]
    uint32_t count;
    uint32_t kv_heads;
    uint32_t group;
    uint32_t head_dim;
    uint32_t layer;
    uint32_t window;        // no more positions than these
    uint32_t out_encoding;  // 0 for f32, 1 for f16, 2 for bf16
    float scale;            // times log2(e): exponentials are powers of two here
};

// Where a chunk of 16 bytes lies in a tile of rows of DIM elements. Chunks are exchanged so that the eight rows
// that a matrix load reads lie in different banks.
template <int DIM>
__device__ __forceinline__ int prefill_at(int row, int chunk) {
    return (row * (DIM / 8) + (chunk ^ (row % 8))) * 16;
}

__device__ __forceinline__ void store_two(void* out, uint32_t encoding, uint64_t at, float low, float high) {
    if (encoding == 0) {
        *reinterpret_cast<float2*>(static_cast<float*>(out) + at) = make_float2(low, high);
    } else {
        const uint32_t both =
            encoding == 1 ? pack_two<__half>(low, high) : pack_two<__nv_bfloat16>(low, high);
        *reinterpret_cast<uint32_t*>(static_cast<uint16_t*>(out) + at) = both;
    }
}

// DIM is the head dimension, filled up with zeros; KEYS is how many positions make a tile. Blocks: (tiles of
// queries, kv_heads).
template <typename T, int DIM, int KEYS>
__device__ __forceinline__ void attention_prefill(const AttentionPrefillParams& p) {
    constexpr int CHUNKS = DIM / 8;
    constexpr int SLICES = DIM / 16;
    // Where the sums of long heads take most registers, queries are fetched again for every tile.
    constexpr int HELD = DIM <= 128 ? SLICES : 1;

    DYNAMIC_SHARED(unsigned char, queries);
    unsigned char* keys = queries + PREFILL_QUERIES * DIM * 2;
    unsigned char* values = keys + KEYS * DIM * 2;

    const KvRow row = p.rows[0];
    const uint32_t kv_head = blockIdx.y;
    const uint32_t all = p.count * p.group;
    // The last tiles have the most to do and start first.
    const uint32_t first_query = (gridDim.x - 1 - blockIdx.x) * PREFILL_QUERIES;
    const uint32_t last_query = min(first_query + PREFILL_QUERIES, all) - 1;
    // Positions that the first and the last row attend to.
    const Span first_span = span_of(row.position + first_query / p.group, row.capacity, p.window);
    const Span last_span = span_of(row.position + last_query / p.group, row.capacity, p.window);
    const int first_tile = first_span.begin / KEYS;
    const int tiles = (last_span.end + KEYS - 1) / KEYS;

    const T* cached_keys = kv_keys<const T>(row, p.layer, p.kv_heads, p.head_dim, kv_head);
    const T* cached_values = kv_values<const T>(row, p.layer, p.kv_heads, p.head_dim, kv_head);
    int thread = threadIdx.x;
    const auto load = [&](unsigned char* to, const T* from, int tile) {
        static_assert(KEYS * CHUNKS % PREFILL_THREADS == 0, "every thread copies the same number of chunks");
#pragma unroll
        for (int i = 0; i < KEYS * CHUNKS / PREFILL_THREADS; ++i) {
            const int index = i * PREFILL_THREADS + thread;
            const uint32_t position = tile * KEYS + index / CHUNKS;
            const uint32_t col = index % CHUNKS * 8;
            // Positions after the last are not written yet, and columns after the last belong to the next.
            const bool inside = position < last_span.end && col < p.head_dim;
            cp_async_16(to + prefill_at<DIM>(index / CHUNKS, index % CHUNKS),
                        inside ? from + uint64_t(position) * p.head_dim + col : from, inside ? 16 : 0);
        }
        cp_async_commit();
    };

    load(keys, cached_keys, first_tile);
    const uint64_t row_width = uint64_t(p.kv_heads) * p.group * p.head_dim;
    // Where a query starts in q and its result in out.
    const auto query_at = [&](uint32_t query) {
        return query / p.group * row_width + (kv_head * p.group + query % p.group) * uint64_t(p.head_dim);
    };
    for (int index = threadIdx.x; index < PREFILL_QUERIES * CHUNKS; index += PREFILL_THREADS) {
        const int query = index / CHUNKS;
        const uint32_t col = index % CHUNKS * 8;
        uint4 chunk = make_uint4(0, 0, 0, 0);
        if (first_query + query <= last_query && col < p.head_dim) {
            const float* from = p.q + query_at(first_query + query) + col;
            chunk = make_uint4(pack_two<T>(from[0], from[1]), pack_two<T>(from[2], from[3]),
                               pack_two<T>(from[4], from[5]), pack_two<T>(from[6], from[7]));
        }
        *reinterpret_cast<uint4*>(queries + prefill_at<DIM>(query, index % CHUNKS)) = chunk;
    }

    int lane = threadIdx.x % WARP;
    const int warp_query = threadIdx.x / WARP * 16;
    // A thread has two queries: rows lane / 4 and lane / 4 + 8 of the warp's.
    Span spans[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const uint32_t query = min(first_query + warp_query + half * 8 + lane / 4, last_query);
        spans[half] = span_of(row.position + query / p.group, row.capacity, p.window);
    }
    float sums[DIM / 8][4] = {};
    float greatest[2] = {-INFINITY, -INFINITY}; // scores, already scaled
    float weights[2] = {0.0f, 0.0f};
    uint32_t q[HELD][4];

    for (int tile = first_tile; tile < tiles; ++tile) {
        // There are too many addresses in shared memory to keep them.
        forget(lane);
        forget(thread);
        cp_async_wait<0>();
        __syncthreads(); // the keys are here, and nobody needs the values before these
        load(values, cached_values, tile);
        if (HELD == SLICES && tile == first_tile) {
#pragma unroll
            for (int slice = 0; slice < HELD; ++slice) {
                ldmatrix_x4(q[slice], queries + prefill_at<DIM>(warp_query + lane % 16, slice * 2 + lane / 16));
            }
        }

        float scores[KEYS / 8][4] = {};
#pragma unroll
        for (int slice = 0; slice < SLICES; ++slice) {
            if (HELD != SLICES) {
                ldmatrix_x4(q[0], queries + prefill_at<DIM>(warp_query + lane % 16, slice * 2 + lane / 16));
            }
#pragma unroll
            for (int pair = 0; pair < KEYS / 8; pair += 2) {
                const int key = pair * 8 + lane / 16 * 8 + lane % 8;
                uint32_t k[4];
                ldmatrix_x4(k, keys + prefill_at<DIM>(key, slice * 2 + lane / 8 % 2));
                const uint32_t low[2] = {k[0], k[1]};
                const uint32_t high[2] = {k[2], k[3]};
                mma_16x8x16<T>(scores[pair], q[slice % HELD], low);
                mma_16x8x16<T>(scores[pair + 1], q[slice % HELD], high);
            }
        }

        // Only tiles at the ends of what is attended to hold positions that some row must not see.
        const uint32_t position = tile * KEYS;
        if (position + KEYS > first_span.end || position < last_span.begin) {
#pragma unroll
            for (int n = 0; n < KEYS / 8; ++n) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const uint32_t at = position + n * 8 + lane % 4 * 2 + i % 2;
                    if (at < spans[i / 2].begin || at >= spans[i / 2].end) {
                        scores[n][i] = -INFINITY;
                    }
                }
            }
        }

#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float most = -INFINITY;
#pragma unroll
            for (int n = 0; n < KEYS / 8; ++n) {
                most = fmaxf(most, fmaxf(scores[n][half * 2], scores[n][half * 2 + 1]));
            }
            most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 1));
            most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 2));
            // Rounded by itself, so that a tile that a row does not see corrects it by exactly one.
            most = fmaxf(greatest[half], __fmul_rn(most, p.scale));
            // A row that has seen nothing yet: infinity less infinity would be no number.
            const float base = most == -INFINITY ? 0.0f : most;
            const float correction = exp2f(greatest[half] - base);
            greatest[half] = most;
            float sum = 0.0f;
#pragma unroll
            for (int n = 0; n < KEYS / 8; ++n) {
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    float& score = scores[n][half * 2 + i];
                    score = exp2f(fmaf(score, p.scale, -base));
                    sum += score;
                }
            }
            weights[half] = fmaf(weights[half], correction, sum);
#pragma unroll
            for (int n = 0; n < DIM / 8; ++n) {
                sums[n][half * 2] *= correction;
                sums[n][half * 2 + 1] *= correction;
            }
        }

        cp_async_wait<0>();
        __syncthreads(); // the values are here, and nobody needs these keys any more
        if (tile + 1 < tiles) {
            load(keys, cached_keys, tile + 1);
        }
#pragma unroll
        for (int slice = 0; slice < KEYS / 16; ++slice) {
            const uint32_t weight[4] = {
                pack_two<T>(scores[slice * 2][0], scores[slice * 2][1]),
                pack_two<T>(scores[slice * 2][2], scores[slice * 2][3]),
                pack_two<T>(scores[slice * 2 + 1][0], scores[slice * 2 + 1][1]),
                pack_two<T>(scores[slice * 2 + 1][2], scores[slice * 2 + 1][3]),
            };
#pragma unroll
            for (int pair = 0; pair < DIM / 8; pair += 2) {
                uint32_t v[4];
                ldmatrix_x4_trans(v, values + prefill_at<DIM>(slice * 16 + lane % 16, pair + lane / 16));
                const uint32_t low[2] = {v[0], v[1]};
                const uint32_t high[2] = {v[2], v[3]};
                mma_16x8x16<T>(sums[pair], weight, low);
                mma_16x8x16<T>(sums[pair + 1], weight, high);
            }
        }
    }

#pragma unroll
    for (int half = 0; half < 2; ++half) {
        float sum = weights[half];
        sum += __shfl_xor_sync(ALL_LANES, sum, 1);
        sum += __shfl_xor_sync(ALL_LANES, sum, 2);
        const uint32_t query = first_query + warp_query + half * 8 + lane / 4;
        if (query <= last_query) {
            const uint64_t to = query_at(query);
#pragma unroll
            for (int n = 0; n < DIM / 8; ++n) {
                if (n * 8 < p.head_dim) {
                    store_two(p.out, p.out_encoding, to + n * 8 + lane % 4 * 2, sums[n][half * 2] / sum,
                              sums[n][half * 2 + 1] / sum);
                }
            }
        }
    }
}

// Where T has no matrix units the launcher takes the kernel for decoding.
#define ATTENTION_PREFILL(dim, keys, blocks, encoding, T) \
    KERNEL __launch_bounds__(PREFILL_THREADS, blocks) \
        attention_prefill_##dim##_##encoding(const AttentionPrefillParams p) { \
        if constexpr (HAS_MMA<T>) { \
            attention_prefill<T, dim, keys>(p); \
        } \
    }

ATTENTION_PREFILL(64, 64, 3, f16, __half)
ATTENTION_PREFILL(64, 64, 3, bf16, __nv_bfloat16)
ATTENTION_PREFILL(128, 64, 2, f16, __half)
ATTENTION_PREFILL(128, 64, 2, bf16, __nv_bfloat16)
ATTENTION_PREFILL(256, 32, 2, f16, __half)
ATTENTION_PREFILL(256, 32, 2, bf16, __nv_bfloat16)
