// out = silu(gate) * up, element by element.
#include "device.cuh"

struct SwigluParams {
    const float* gate;
    const float* up;
    void* out;
    uint64_t len;
};

__device__ __forceinline__ float swiglu_of(float gate, float up) { return gate / (1.0f + expf(-gate)) * up; }

template <typename Out>
__device__ __forceinline__ void swiglu(const SwigluParams& p) {
    Out* out = static_cast<Out*>(p.out);
    const uint64_t first = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    const uint64_t stride = uint64_t(gridDim.x) * blockDim.x;
    const bool wide = multiples(16, address(p.gate), address(p.up)) && multiples(4 * sizeof(Out), address(out));
    const uint64_t quads = wide ? p.len / 4 : 0;
    for (uint64_t i = first; i < quads; i += stride) {
        const float4 gate = load4(p.gate + 4 * i);
        const float4 up = load4(p.up + 4 * i);
        store4(out + 4 * i, make_float4(swiglu_of(gate.x, up.x), swiglu_of(gate.y, up.y),
                                        swiglu_of(gate.z, up.z), swiglu_of(gate.w, up.w)));
    }
    for (uint64_t i = 4 * quads + first; i < p.len; i += stride) {
        out[i] = from_float<Out>(swiglu_of(p.gate[i], p.up[i]));
    }
}

KERNEL swiglu_f32(const SwigluParams p) { swiglu<float>(p); }
KERNEL swiglu_f16(const SwigluParams p) { swiglu<__half>(p); }
KERNEL swiglu_bf16(const SwigluParams p) { swiglu<__nv_bfloat16>(p); }
