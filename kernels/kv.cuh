// Where the keys and values of a sequence lie.
#pragma once

#include "device.cuh"

// The twin of `KvRow` in kv.rs: what one row of a step knows of the cache of its sequence.
struct KvRow {
    uint64_t base;      // address of the cache
    uint32_t capacity;  // positions that it has room for
    uint32_t position;  // the row's own
};

// The keys of one head in one layer, [capacity, head_dim]. The cache is, for each layer, keys
// [kv_heads, capacity, head_dim] and then values of the same shape.
template <typename T>
__device__ __forceinline__ T* kv_keys(const KvRow& row, uint32_t layer, uint32_t kv_heads, uint32_t head_dim,
                                      uint32_t head) {
    const uint64_t plane = uint64_t(row.capacity) * head_dim;
    return reinterpret_cast<T*>(row.base) + (uint64_t(layer) * 2 * kv_heads + head) * plane;
}

// The values of one head in one layer, [capacity, head_dim].
template <typename T>
__device__ __forceinline__ T* kv_values(const KvRow& row, uint32_t layer, uint32_t kv_heads, uint32_t head_dim,
                                        uint32_t head) {
    const uint64_t plane = uint64_t(row.capacity) * head_dim;
    return reinterpret_cast<T*>(row.base) + ((uint64_t(layer) * 2 + 1) * kv_heads + head) * plane;
}
