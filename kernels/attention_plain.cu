// Attention for heads whose rows in the cache are no whole number of 16-byte words, which no model of note has: one
// warp for a query head of a row, passing over the cache with an online softmax (Milakov and Gimelshein 2018,
// arXiv:1805.02867). Correct, not fast.
#include "attention.cuh"

constexpr int PLAIN_WARPS = 4;
// Elements of a head that a lane holds: enough for 256.
constexpr int PLAIN_HELD = 8;

struct AttentionPlainParams {
    const float* q;  // [rows, heads * head_dim]
    const KvRow* rows;
    void* out;  // [rows, heads * head_dim]
    uint32_t heads;
    uint32_t kv_heads;
    uint32_t head_dim;
    uint32_t layer;
    uint32_t window;        // no more positions than these
    uint32_t out_encoding;  // 0 for f32, 1 for f16, 2 for bf16
    float scale;            // times log2(e): exponentials are powers of two here
    float cap;              // of scores, times log2(e), or 0
    const float* slopes;    // [heads], or null
};

__device__ __forceinline__ void store_one(void* out, uint32_t encoding, uint64_t at, float value) {
    if (encoding == 0) {
        static_cast<float*>(out)[at] = value;
    } else if (encoding == 1) {
        static_cast<__half*>(out)[at] = from_float<__half>(value);
    } else {
        static_cast<__nv_bfloat16*>(out)[at] = from_float<__nv_bfloat16>(value);
    }
}

// Blocks: (heads / PLAIN_WARPS, rows).
template <typename T>
__device__ __forceinline__ void attention_plain(const AttentionPlainParams& p) {
    const uint32_t head = blockIdx.x * PLAIN_WARPS + threadIdx.x / WARP;
    const uint32_t lane = threadIdx.x % WARP;
    // A whole warp leaves, and no barrier follows.
    if (head >= p.heads) {
        return;
    }
    const KvRow row = p.rows[blockIdx.y];
    const uint32_t kv_head = head / (p.heads / p.kv_heads);
    const T* keys = kv_keys<const T>(row, p.layer, p.kv_heads, p.head_dim, kv_head);
    const T* values = kv_values<const T>(row, p.layer, p.kv_heads, p.head_dim, kv_head);
    const uint64_t first = (uint64_t(blockIdx.y) * p.heads + head) * p.head_dim;

    float query[PLAIN_HELD];
    float sums[PLAIN_HELD];
#pragma unroll
    for (int i = 0; i < PLAIN_HELD; i++) {
        const uint32_t element = lane + i * WARP;
        query[i] = element < p.head_dim ? p.q[first + element] : 0.0f;
        sums[i] = 0.0f;
    }
    float greatest = -INFINITY;
    float weights = 0.0f;
    const bool bending = bends(p.cap, p.slopes);
    const float slope = p.slopes != nullptr ? p.slopes[head] : 0.0f;
    const Span span = span_of(row.position, row.capacity, p.window);
    for (uint32_t position = span.begin; position < span.end; position++) {
        const uint64_t at = uint64_t(position) * p.head_dim;
        float product = 0.0f;
#pragma unroll
        for (int i = 0; i < PLAIN_HELD; i++) {
            const uint32_t element = lane + i * WARP;
            if (element < p.head_dim) {
                product = fmaf(query[i], to_float(keys[at + element]), product);
            }
        }
        float score = warp_sum(product) * p.scale;
        if (bending) {
            score = bent(score, p.cap, slope, row.position - position);
        }
        const float next = fmaxf(greatest, score);
        // The first time nothing is to be scaled, and infinity minus infinity would be no number.
        const float before = greatest == next ? 1.0f : exp2f(greatest - next);
        const float weight = exp2f(score - next);
        weights = weights * before + weight;
#pragma unroll
        for (int i = 0; i < PLAIN_HELD; i++) {
            const uint32_t element = lane + i * WARP;
            if (element < p.head_dim) {
                sums[i] = fmaf(weight, to_float(values[at + element]), sums[i] * before);
            }
        }
        greatest = next;
    }
#pragma unroll
    for (int i = 0; i < PLAIN_HELD; i++) {
        const uint32_t element = lane + i * WARP;
        if (element < p.head_dim) {
            store_one(p.out, p.out_encoding, first + element, sums[i] / weights);
        }
    }
}

KERNEL attention_plain_f32(const AttentionPlainParams p) { attention_plain<float>(p); }
KERNEL attention_plain_f16(const AttentionPlainParams p) { attention_plain<__half>(p); }
KERNEL attention_plain_bf16(const AttentionPlainParams p) { attention_plain<__nv_bfloat16>(p); }
