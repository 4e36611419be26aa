// What looks at one number of the activations at a time: factors, caps, limits.
#include "device.cuh"

struct MapParams {
    float* x;
    uint64_t len;
    float by;  // a factor, a cap, or a limit
    uint32_t reserved;
};

template <typename F>
__device__ __forceinline__ void map(float* x, uint64_t len, const F& f) {
    const uint64_t first = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    const uint64_t stride = uint64_t(gridDim.x) * blockDim.x;
    const uint64_t quads = multiples(16, address(x)) ? len / 4 : 0;
    for (uint64_t i = first; i < quads; i += stride) {
        const float4 v = load4(x + 4 * i);
        store4(x + 4 * i, make_float4(f(v.x), f(v.y), f(v.z), f(v.w)));
    }
    for (uint64_t i = 4 * quads + first; i < len; i += stride) {
        x[i] = f(x[i]);
    }
}

KERNEL scale_f32(const MapParams p) {
    map(p.x, p.len, [&](float x) { return x * p.by; });
}

KERNEL softcap_f32(const MapParams p) {
    map(p.x, p.len, [&](float x) { return p.by * tanhf(x / p.by); });
}

KERNEL clamp_f32(const MapParams p) {
    // NaN is neither above nor below, and stays.
    map(p.x, p.len, [&](float x) { return x > p.by ? p.by : x < -p.by ? -p.by : x; });
}

struct MultiplyParams {
    const float* factors;  // [cols]
    float* x;              // [n, cols], a row per blockIdx.x
    uint64_t cols;
};

// Multiplies each row by the same vector.
KERNEL multiply_f32(const MultiplyParams p) {
    float* x = p.x + uint64_t(blockIdx.x) * p.cols;
    const uint64_t first = uint64_t(blockIdx.y) * blockDim.x + threadIdx.x;
    const uint64_t stride = uint64_t(gridDim.y) * blockDim.x;
    const uint64_t quads = multiples(16, address(p.factors), address(x)) ? p.cols / 4 : 0;
    for (uint64_t i = first; i < quads; i += stride) {
        const float4 by = load4(p.factors + 4 * i);
        const float4 v = load4(x + 4 * i);
        store4(x + 4 * i, make_float4(v.x * by.x, v.y * by.y, v.z * by.z, v.w * by.w));
    }
    for (uint64_t i = 4 * quads + first; i < p.cols; i += stride) {
        x[i] *= p.factors[i];
    }
}
