// What both kernels of few rows of activations share: parameters, numbers in 16 bytes, sums over a warp.
#pragma once

#include "device.cuh"

struct MatvecParams {
    const unsigned char* matrix;  // [rows, cols]
    const unsigned char* x;       // [n, cols] in the same encoding, or bf16 where that is one of blocks
    float* y;                     // [n, stride], written from column 0 on
    uint64_t stride;
    uint64_t row_bytes;
    uint64_t x_bytes;  // of a row
    uint32_t rows;
    uint32_t cols;
    uint32_t n;
    uint32_t reserved;
};

// An encoding says how many numbers 16 bytes hold, and which.
struct F32 {
    using Element = uint32_t;
    static constexpr int VALUES = 4;
    static __device__ __forceinline__ void decode(uint4 bytes, float (&out)[VALUES]) {
        out[0] = __uint_as_float(bytes.x);
        out[1] = __uint_as_float(bytes.y);
        out[2] = __uint_as_float(bytes.z);
        out[3] = __uint_as_float(bytes.w);
    }
};

struct F16 {
    using Element = uint16_t;
    static constexpr int VALUES = 8;
    static __device__ __forceinline__ float number(uint32_t bits) {
        __half_raw raw;
        raw.x = static_cast<unsigned short>(bits);
        return __half2float(__half(raw));
    }
    static __device__ __forceinline__ void decode(uint4 bytes, float (&out)[VALUES]) {
        const uint32_t words[4] = {bytes.x, bytes.y, bytes.z, bytes.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            out[2 * i] = number(words[i] & 0xffffu);
            out[2 * i + 1] = number(words[i] >> 16);
        }
    }
};

struct Bf16 {
    using Element = uint16_t;
    static constexpr int VALUES = 8;
    static __device__ __forceinline__ void decode(uint4 bytes, float (&out)[VALUES]) {
        const uint32_t words[4] = {bytes.x, bytes.y, bytes.z, bytes.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            out[2 * i] = __uint_as_float(words[i] << 16);
            out[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
        }
    }
};

// The 16 bytes number `chunk` of a row that starts at no multiple of 16, or ends within them: element by element,
// zeros for what is beyond the last.
template <typename Encoding>
__device__ __forceinline__ uint4 gather(const unsigned char* row, uint32_t chunk, uint32_t cols) {
    using Element = typename Encoding::Element;
    constexpr uint32_t PER_WORD = sizeof(uint32_t) / sizeof(Element);
    const Element* elements = reinterpret_cast<const Element*>(row);
    uint32_t words[4];
#pragma unroll
    for (uint32_t w = 0; w < 4; ++w) {
        words[w] = 0;
#pragma unroll
        for (uint32_t e = 0; e < PER_WORD; ++e) {
            const uint64_t at = (uint64_t(chunk) * 4 + w) * PER_WORD + e;
            if (at < cols) {
                words[w] |= uint32_t(elements[at]) << (e * 16);
            }
        }
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
}

// One exchange of `fold`: of LEFT values a lane keeps half. A function of its own for each, so that all indices are
// constant and the values stay in registers.
template <int LEFT, int V>
__device__ __forceinline__ void fold_halves(float (&values)[V]) {
    if constexpr (LEFT > 1) {
        constexpr int OFFSET = WARP / 2 * LEFT / V;
        const bool upper = (threadIdx.x & OFFSET) != 0;
#pragma unroll
        for (int i = 0; i < LEFT / 2; ++i) {
            const float give = upper ? values[i] : values[i + LEFT / 2];
            const float keep = upper ? values[i + LEFT / 2] : values[i];
            values[i] = keep + __shfl_xor_sync(ALL_LANES, give, OFFSET);
        }
        fold_halves<LEFT / 2>(values);
    }
}

// The sums over the warp of V values at once: each exchange halves how many a lane still has. Value k ends up in
// the lanes from k * (32 / V) on. The tree is that of `warp_sum`, and so are the bits.
template <int V>
__device__ __forceinline__ float fold(float (&values)[V]) {
    fold_halves<V>(values);
    float sum = values[0];
#pragma unroll
    for (int offset = WARP / 2 / V; offset > 0; offset /= 2) {
        sum += __shfl_xor_sync(ALL_LANES, sum, offset);
    }
    return sum;
}
