// The k greatest elements of each row, in descending order.
#include "order.cuh"

struct TopKParams {
    const float* logits;  // [n, cols], a row per blockIdx.x
    float* values;        // [n, k]
    uint32_t* indices;    // [n, k]
    uint32_t cols;
    uint32_t k;
};

// The greatest key below `limit` of those that this thread looks after.
__device__ __forceinline__ unsigned long long own_first(const TopKParams& p, const float* logits,
                                                        unsigned long long limit) {
    unsigned long long best = 0;
#pragma unroll 4
    for (uint32_t i = threadIdx.x; i < p.cols; i += blockDim.x) {
        const unsigned long long key = order_key(logits[i], i);
        best = key < limit && key > best ? key : best;
    }
    return best;
}

// One after the other: the first of all threads' firsts is taken, and only the thread that had it looks for its
// next.
KERNEL __launch_bounds__(1024) top_k_f32(const TopKParams p) {
    __shared__ unsigned long long keys[WARP];
    const float* logits = p.logits + uint64_t(blockIdx.x) * p.cols;
    const uint64_t at = uint64_t(blockIdx.x) * p.k;
    unsigned long long own = own_first(p, logits, ~0ull);
    for (uint32_t i = 0; i < p.k; ++i) {
        const unsigned long long first = block_first(own, keys);
        if (own == first) {
            const uint32_t index = order_index(first);
            p.indices[at + i] = index;
            p.values[at + i] = logits[index];
            own = own_first(p, logits, first);
        }
    }
}
