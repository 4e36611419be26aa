// Sums of activations.
#include "device.cuh"

struct AddParams {
    const float* a;
    float* x;
    uint64_t len;
};

// x += a, element by element.
KERNEL add_f32(const AddParams p) {
    const uint64_t first = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    const uint64_t stride = uint64_t(gridDim.x) * blockDim.x;
    const uint64_t quads = multiples(16, address(p.a), address(p.x)) ? p.len / 4 : 0;
    for (uint64_t i = first; i < quads; i += stride) {
        const float4 a = load4(p.a + 4 * i);
        const float4 x = load4(p.x + 4 * i);
        store4(p.x + 4 * i, make_float4(x.x + a.x, x.y + a.y, x.z + a.z, x.w + a.w));
    }
    for (uint64_t i = 4 * quads + first; i < p.len; i += stride) {
        p.x[i] += p.a[i];
    }
}

struct AddBiasParams {
    const float* bias;  // [cols]
    float* y;           // [n, cols], a row per blockIdx.x
    uint64_t cols;
};

// Adds the same vector to each row.
KERNEL add_bias_f32(const AddBiasParams p) {
    float* y = p.y + uint64_t(blockIdx.x) * p.cols;
    const uint64_t first = uint64_t(blockIdx.y) * blockDim.x + threadIdx.x;
    const uint64_t stride = uint64_t(gridDim.y) * blockDim.x;
    const uint64_t quads = multiples(16, address(p.bias), address(y)) ? p.cols / 4 : 0;
    for (uint64_t i = first; i < quads; i += stride) {
        const float4 bias = load4(p.bias + 4 * i);
        const float4 sum = load4(y + 4 * i);
        store4(y + 4 * i, make_float4(sum.x + bias.x, sum.y + bias.y, sum.z + bias.z, sum.w + bias.w));
    }
    for (uint64_t i = 4 * quads + first; i < p.cols; i += stride) {
        y[i] += p.bias[i];
    }
}
