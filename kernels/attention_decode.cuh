// What the kernels of single rows share.
#pragma once

#include "attention.cuh"

// Positions of a split; its twin is `SPLIT` in the launcher.
constexpr int SPLIT = 256;

struct AttentionDecodeParams {
    const float* q;  // [n, kv_heads * group * head_dim]
    const KvRow* rows;
    float* sums;      // [n, heads, splits, head_dim]: values weighted with exponentials
    float2* softmax;  // [n, heads, splits]: the greatest score, and the sum of exponentials relative to it
    uint32_t kv_heads;
    uint32_t group;
    uint32_t head_dim;
    uint32_t layer;
    uint32_t window;  // no more positions than these
    uint32_t splits;  // room for as many in each row
    float scale;      // times log2(e): exponentials are powers of two here
    uint32_t reserved;
};
