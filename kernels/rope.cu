// Rotary position embedding: the halves (x1, x2) of each head become (x1 cos - x2 sin, x2 cos + x1 sin). Of some models
// only the first elements of a head turn, and of some neighbours are pairs rather than halves.
#include "device.cuh"

struct RopeParams {
    float* x;          // [n, heads * 2 * half], a row per blockIdx.x
    const float* cos;  // [n, half]
    const float* sin;
    uint32_t heads;
    uint32_t half;
};

// Without fused multiplication, so that the result does not depend on which product a compiler fuses.
__device__ __forceinline__ void rotate(float& x1, float& x2, float cos, float sin) {
    const float first = __fsub_rn(__fmul_rn(x1, cos), __fmul_rn(x2, sin));
    x2 = __fadd_rn(__fmul_rn(x2, cos), __fmul_rn(x1, sin));
    x1 = first;
}

KERNEL rope_f32(const RopeParams p) {
    const uint64_t row = blockIdx.x;
    float* x = p.x + row * p.heads * 2 * p.half;
    const float* cos = p.cos + row * p.half;
    const float* sin = p.sin + row * p.half;
    const uint32_t first = blockIdx.y * blockDim.x + threadIdx.x;
    const uint32_t stride = gridDim.y * blockDim.x;
    if (multiples(16, 4 * uint64_t(p.half), address(p.x), address(p.cos), address(p.sin))) {
        const uint32_t quads = p.half / 4;
        for (uint32_t i = first; i < p.heads * quads; i += stride) {
            const uint32_t k = i % quads * 4;
            float* at = x + i / quads * 2 * p.half + k;
            const float4 c = load4(cos + k);
            const float4 s = load4(sin + k);
            float4 x1 = load4(at);
            float4 x2 = load4(at + p.half);
            rotate(x1.x, x2.x, c.x, s.x);
            rotate(x1.y, x2.y, c.y, s.y);
            rotate(x1.z, x2.z, c.z, s.z);
            rotate(x1.w, x2.w, c.w, s.w);
            store4(at, x1);
            store4(at + p.half, x2);
        }
        return;
    }
    for (uint32_t i = first; i < p.heads * p.half; i += stride) {
        const uint32_t k = i % p.half;
        float* at = x + i / p.half * 2 * p.half + k;
        rotate(at[0], at[p.half], cos[k], sin[k]);
    }
}

struct RopeInPartParams {
    float* x;          // [n, heads * head_dim], a row per blockIdx.x
    const float* cos;  // [n, half]
    const float* sin;
    uint32_t heads;
    uint32_t head_dim;
    uint32_t half;        // of the elements that turn: the first 2 * half of a head
    uint32_t neighbours;  // whether pairs are neighbours
};

KERNEL rope_in_part_f32(const RopeInPartParams p) {
    const uint64_t row = blockIdx.x;
    float* x = p.x + row * p.heads * p.head_dim;
    const float* cos = p.cos + row * p.half;
    const float* sin = p.sin + row * p.half;
    const uint32_t stride = gridDim.y * blockDim.x;
    for (uint32_t i = blockIdx.y * blockDim.x + threadIdx.x; i < p.heads * p.half; i += stride) {
        const uint32_t k = i % p.half;
        float* head = x + uint64_t(i / p.half) * p.head_dim;
        float* one = head + (p.neighbours != 0 ? 2 * k : k);
        float* other = p.neighbours != 0 ? one + 1 : one + p.half;
        rotate(*one, *other, cos[k], sin[k]);
    }
}
