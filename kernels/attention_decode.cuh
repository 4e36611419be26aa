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
    uint32_t window;      // no more positions than these
    uint32_t splits;      // room for as many in each row
    float scale;          // times log2(e): exponentials are powers of two here
    float cap;            // of scores, times log2(e), or 0
    const float* slopes;  // [kv_heads * group], or null
};

// What a block has of a row: positions of one split, and query heads that share a key-value head.
struct DecodeBlock {
    KvRow row;
    uint32_t split;
    uint32_t begin;  // to `end`, exclusively; none where it is no less
    uint32_t end;
    uint32_t kv_head;
    uint32_t first_head;
    uint32_t heads;
};

// Up to HEADS heads. Blocks: (splits, kv_heads * groups of HEADS heads, n).
template <int HEADS>
__device__ __forceinline__ DecodeBlock decode_block(const AttentionDecodeParams& p) {
    DecodeBlock block;
    block.row = p.rows[blockIdx.z];
    const Span span = span_of(block.row.position, block.row.capacity, p.window);
    block.split = span.begin / SPLIT + blockIdx.x;
    block.begin = max(span.begin, block.split * SPLIT);
    block.end = min(span.end, (block.split + 1) * SPLIT);
    const uint32_t parts = (p.group + HEADS - 1) / HEADS;
    const uint32_t first_in_group = blockIdx.y % parts * HEADS;
    block.kv_head = blockIdx.y / parts;
    block.first_head = block.kv_head * p.group + first_in_group;
    block.heads = min(uint32_t(HEADS), p.group - first_in_group);
    return block;
}
