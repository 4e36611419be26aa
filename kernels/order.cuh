// Which of two scores comes first: the greater, NaN before every number, the lower index among equals.
#pragma once

#include "device.cuh"

// Scores and indices as numbers of which the greatest is the first. No two indices give the same key, and none
// gives 0.
__device__ __forceinline__ unsigned long long order_key(float score, uint32_t index) {
    uint32_t rank = 0xffffffffu;
    if (score == score) {
        // The bits of floats are ordered as the floats, the negative ones backwards; both zeros are one.
        const uint32_t bits = score == 0.0f ? 0u : __float_as_uint(score);
        rank = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
    }
    return static_cast<unsigned long long>(rank) << 32 | (0xffffffffu - index);
}

__device__ __forceinline__ uint32_t order_index(unsigned long long key) { return 0xffffffffu - uint32_t(key); }

// The greatest key of the block, in every thread. `keys` is shared memory for a key per warp.
__device__ __forceinline__ unsigned long long block_first(unsigned long long key, unsigned long long* keys) {
    const uint32_t lane = threadIdx.x % WARP;
#pragma unroll
    for (int offset = WARP / 2; offset > 0; offset /= 2) {
        const unsigned long long other = __shfl_xor_sync(ALL_LANES, key, offset);
        key = other > key ? other : key;
    }
    __syncthreads();  // until here somebody may still read what the last call left in `keys`
    if (lane == 0) {
        keys[threadIdx.x / WARP] = key;
    }
    __syncthreads();
    key = lane < blockDim.x / WARP ? keys[lane] : 0;
#pragma unroll
    for (int offset = WARP / 2; offset > 0; offset /= 2) {
        const unsigned long long other = __shfl_xor_sync(ALL_LANES, key, offset);
        key = other > key ? other : key;
    }
    return key;
}
