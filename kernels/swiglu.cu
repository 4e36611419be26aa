// out = silu(gate) * up, element by element.
#include "device.cuh"

struct SwigluParams {
    const float* gate;
    const float* up;
    void* out;
    uint64_t len;
};

template <typename Out>
__device__ __forceinline__ void swiglu(const SwigluParams& p) {
    Out* out = static_cast<Out*>(p.out);
    const uint64_t stride = uint64_t(gridDim.x) * blockDim.x;
    for (uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < p.len; i += stride) {
        const float gate = p.gate[i];
        out[i] = from_float<Out>(gate / (1.0f + expf(-gate)) * p.up[i]);
    }
}

KERNEL swiglu_f32(const SwigluParams p) { swiglu<float>(p); }
KERNEL swiglu_f16(const SwigluParams p) { swiglu<__half>(p); }
KERNEL swiglu_bf16(const SwigluParams p) { swiglu<__nv_bfloat16>(p); }
