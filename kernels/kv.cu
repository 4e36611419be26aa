// Writes the keys and values of new rows into the caches of their sequences.
#include "kv.cuh"

struct KvWriteParams {
    const float* k;  // [n, kv_heads * head_dim]
    const float* v;
    const KvRow* rows;  // [n]
    uint64_t len;       // n * kv_heads * head_dim
    uint32_t kv_heads;
    uint32_t head_dim;
    uint32_t layer;
    uint32_t reserved;
};

template <typename T>
__device__ __forceinline__ void kv_write(const KvWriteParams& p) {
    const uint64_t width = uint64_t(p.kv_heads) * p.head_dim;
    const uint64_t stride = uint64_t(gridDim.x) * blockDim.x;
    for (uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < p.len; i += stride) {
        const KvRow row = p.rows[i / width];
        // A cache that is full is left as it is: beyond it lies what belongs to somebody else.
        if (row.position >= row.capacity) {
            continue;
        }
        const uint32_t column = uint32_t(i % width);
        const uint32_t head = column / p.head_dim;
        const uint64_t at = uint64_t(row.position) * p.head_dim + column % p.head_dim;
        kv_keys<T>(row, p.layer, p.kv_heads, p.head_dim, head)[at] = from_float<T>(p.k[i]);
        kv_values<T>(row, p.layer, p.kv_heads, p.head_dim, head)[at] = from_float<T>(p.v[i]);
    }
}

KERNEL kv_write_f32(const KvWriteParams p) { kv_write<float>(p); }
KERNEL kv_write_f16(const KvWriteParams p) { kv_write<__half>(p); }
KERNEL kv_write_bf16(const KvWriteParams p) { kv_write<__nv_bfloat16>(p); }
