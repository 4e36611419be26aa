// The index of the greatest element of each row.
#include "order.cuh"

struct ArgmaxParams {
    const float* logits;  // [n, cols], a row per blockIdx.x
    uint32_t* out;        // [n]
    uint32_t cols;
    uint32_t reserved;
};

KERNEL __launch_bounds__(1024) argmax_f32(const ArgmaxParams p) {
    __shared__ unsigned long long keys[WARP];
    const float* logits = p.logits + uint64_t(blockIdx.x) * p.cols;
    unsigned long long best = 0;
#pragma unroll 4
    for (uint32_t i = threadIdx.x; i < p.cols; i += blockDim.x) {
        const unsigned long long key = order_key(logits[i], i);
        best = key > best ? key : best;
    }
    best = block_first(best, keys);
    if (threadIdx.x == 0) {
        p.out[blockIdx.x] = order_index(best);
    }
}
