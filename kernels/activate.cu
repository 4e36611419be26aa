// out = act(gate) * up, or act(gate), element by element. The function that does nothing makes the operand of a product in
// another encoding.
#include "device.cuh"

struct ActivateParams {
    const float* gate;
    const float* up;  // or null
    void* out;
    uint64_t len;
    uint32_t function;
    uint32_t unused;
};

// Numbers of the functions, as in activate.rs.
constexpr uint32_t IDENTITY = 0;
constexpr uint32_t SILU = 1;
constexpr uint32_t GELU_TANH = 2;
constexpr uint32_t RELU_2 = 3;
constexpr uint32_t SIGMOID = 4;

template <uint32_t FUNCTION>
__device__ __forceinline__ float activated(float x) {
    if constexpr (FUNCTION == SILU) {
        return x / (1.0f + expf(-x));
    } else if constexpr (FUNCTION == GELU_TANH) {
        const float inner = 0.79788456080286536f * (x + 0.044715f * x * x * x);
        return 0.5f * x * (1.0f + tanhf(inner));
    } else if constexpr (FUNCTION == RELU_2) {
        const float positive = fmaxf(x, 0.0f);
        return positive * positive;
    } else if constexpr (FUNCTION == SIGMOID) {
        return 1.0f / (1.0f + expf(-x));
    } else {
        return x;
    }
}

template <uint32_t FUNCTION, bool GATED, typename Out>
__device__ __forceinline__ void activate(const ActivateParams& p) {
    const auto of = [](float gate, float up) {
        return GATED ? activated<FUNCTION>(gate) * up : activated<FUNCTION>(gate);
    };
    Out* out = static_cast<Out*>(p.out);
    const float* up_of = GATED ? p.up : p.gate;
    const uint64_t first = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    const uint64_t stride = uint64_t(gridDim.x) * blockDim.x;
    const bool wide = multiples(16, address(p.gate), address(up_of)) && multiples(4 * sizeof(Out), address(out));
    const uint64_t quads = wide ? p.len / 4 : 0;
    for (uint64_t i = first; i < quads; i += stride) {
        const float4 gate = load4(p.gate + 4 * i);
        const float4 up = GATED ? load4(up_of + 4 * i) : gate;
        store4(out + 4 * i, make_float4(of(gate.x, up.x), of(gate.y, up.y), of(gate.z, up.z), of(gate.w, up.w)));
    }
    for (uint64_t i = 4 * quads + first; i < p.len; i += stride) {
        out[i] = from_float<Out>(of(p.gate[i], up_of[i]));
    }
}

template <uint32_t FUNCTION, typename Out>
__device__ __forceinline__ void gated_or_not(const ActivateParams& p) {
    if (p.up != nullptr) {
        activate<FUNCTION, true, Out>(p);
    } else {
        activate<FUNCTION, false, Out>(p);
    }
}

template <typename Out>
__device__ __forceinline__ void by_function(const ActivateParams& p) {
    switch (p.function) {
        case SILU: return gated_or_not<SILU, Out>(p);
        case GELU_TANH: return gated_or_not<GELU_TANH, Out>(p);
        case RELU_2: return gated_or_not<RELU_2, Out>(p);
        case SIGMOID: return gated_or_not<SIGMOID, Out>(p);
        default: return gated_or_not<IDENTITY, Out>(p);
    }
}

KERNEL activate_f32(const ActivateParams p) { by_function<float>(p); }
KERNEL activate_f16(const ActivateParams p) { by_function<__half>(p); }
KERNEL activate_bf16(const ActivateParams p) { by_function<__nv_bfloat16>(p); }
