// Rows of quantised weights, byte for byte as docs/FORMAT.md draws them: groups of eight blocks, 16 bytes of scales
// in front of 32 bytes of codes for each. Rows start at multiples of 16, and so do all codes.
#pragma once

#include "device.cuh"

// Sixteen bytes of codes are a chunk: half of a block. Sixteen chunks and the scales in front of them are a group.
constexpr uint32_t GROUP_CHUNKS = 16;
constexpr uint32_t GROUP_BYTES = 16 + 16 * GROUP_CHUNKS;

__device__ __forceinline__ const unsigned char* codes_at(const unsigned char* row, uint32_t chunk) {
    return row + uint64_t(chunk / GROUP_CHUNKS) * GROUP_BYTES + 16 + 16 * (chunk % GROUP_CHUNKS);
}

__device__ __forceinline__ const unsigned char* scale_address(const unsigned char* row, uint32_t chunk) {
    return row + uint64_t(chunk / GROUP_CHUNKS) * GROUP_BYTES + chunk % GROUP_CHUNKS / 2 * sizeof(uint16_t);
}

__device__ __forceinline__ uint16_t scale_at(const unsigned char* row, uint32_t chunk) {
    return __ldg(reinterpret_cast<const uint16_t*>(scale_address(row, chunk)));
}

__device__ __forceinline__ float scale_of(uint16_t bits) {
    __half_raw raw;
    raw.x = bits;
    return __half2float(__half(raw));
}

// Weights are decoded so many at a time.
constexpr int PART = 8;

// The values of the codes of nf4. Lanes look up different ones at a time, which memory of constants would serve one
// after the other: kernels copy them to shared memory.
__constant__ float NF4_VALUES[16] = {-1.0f,
                                     -0.6961928009986877f,
                                     -0.5250730514526367f,
                                     -0.39491748809814453f,
                                     -0.28444138169288635f,
                                     -0.18477343022823334f,
                                     -0.09105003625154495f,
                                     0.0f,
                                     0.07958029955625534f,
                                     0.16093020141124725f,
                                     0.24611230194568634f,
                                     0.33791524171829224f,
                                     0.44070982933044434f,
                                     0.5626170039176941f,
                                     0.7229568362236023f,
                                     1.0f};

// The signed bytes of `word` as numbers. Converting integers takes four times as long as adding: a byte becomes the
// last bits of 2^23 + 128 + byte instead, and the difference is exact.
__device__ __forceinline__ void numbers_of(uint32_t word, float* out) {
    word ^= 0x80808080u;
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
        out[i] = __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7440u | i)) - 8388736.0f;
    }
}

// An encoding says how many weights a chunk holds, and which eight are its part number `part`: code times scale.
struct Q8 {
    static constexpr int VALUES = 16;
    static __device__ __forceinline__ void fill(float*) {}
    static __device__ __forceinline__ void decode(uint4 codes, int part, float scale, const float*,
                                                  float (&out)[PART]) {
        const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
        numbers_of(words[2 * part], out);
        numbers_of(words[2 * part + 1], out + 4);
#pragma unroll
        for (int i = 0; i < PART; ++i) {
            out[i] *= scale;
        }
    }
};

struct Nf4 {
    static constexpr int VALUES = 32;
    // Each value in a bank of its own.
    static __device__ __forceinline__ void fill(float* table) {
        if (threadIdx.x < 16) {
            table[threadIdx.x] = NF4_VALUES[threadIdx.x];
        }
    }
    static __device__ __forceinline__ void decode(uint4 codes, int part, float scale, const float* table,
                                                  float (&out)[PART]) {
        const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
#pragma unroll
        for (int i = 0; i < PART; ++i) {
            // The upper four bits of a byte are the first of its two.
            out[i] = table[words[part] >> (8 * (i / 2) + 4 * (1 - i % 2)) & 15u] * scale;
        }
    }
};
