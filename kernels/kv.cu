// Writes the keys and values of new rows into the caches of their sequences.
#include "kv.cuh"

struct KvWriteParams {
    const float* k;  // [n, kv_heads * head_dim], a row per blockIdx.x
    const float* v;
    const KvRow* rows;  // [n]
    uint32_t kv_heads;
    uint32_t head_dim;
    uint32_t layer;
    uint32_t reserved;
};

template <typename T>
__device__ __forceinline__ void kv_write(const KvWriteParams& p) {
    const KvRow row = p.rows[blockIdx.x];
    // A cache that is full is left as it is: beyond it lies what belongs to somebody else.
    if (row.position >= row.capacity) {
        return;
    }
    const uint32_t width = p.kv_heads * p.head_dim;
    const float* k = p.k + uint64_t(blockIdx.x) * width;
    const float* v = p.v + uint64_t(blockIdx.x) * width;
    const uint32_t first = blockIdx.y * blockDim.x + threadIdx.x;
    const uint32_t stride = gridDim.y * blockDim.x;
    const uint64_t at = uint64_t(row.position) * p.head_dim;
    const bool wide = p.head_dim % 4 == 0 && multiples(16, address(p.k), address(p.v), row.base);
    const uint32_t unit = wide ? 4 : 1;
    for (uint32_t i = first * unit; i < width; i += stride * unit) {
        const uint32_t head = i / p.head_dim;
        T* key = kv_keys<T>(row, p.layer, p.kv_heads, p.head_dim, head) + at + i % p.head_dim;
        T* value = kv_values<T>(row, p.layer, p.kv_heads, p.head_dim, head) + at + i % p.head_dim;
        if (wide) {
            store4(key, load4(k + i));
            store4(value, load4(v + i));
        } else {
            *key = from_float<T>(k[i]);
            *value = from_float<T>(v[i]);
        }
    }
}

KERNEL kv_write_f32(const KvWriteParams p) { kv_write<float>(p); }
KERNEL kv_write_f16(const KvWriteParams p) { kv_write<__half>(p); }
KERNEL kv_write_bf16(const KvWriteParams p) { kv_write<__nv_bfloat16>(p); }
