// Rows of the embedding table, as f32.
#include "device.cuh"

struct EmbedParams {
    const void* table;    // [table_rows, cols]
    const uint32_t* ids;  // [n], one per blockIdx.x
    float* x;             // [n, cols]
    uint64_t table_rows;
    uint64_t cols;
};

template <typename T>
__device__ __forceinline__ void embed(const EmbedParams& p) {
    const uint64_t id = p.ids[blockIdx.x];
    const T* from = static_cast<const T*>(p.table) + id * p.cols;
    float* x = p.x + uint64_t(blockIdx.x) * p.cols;
    const uint64_t stride = uint64_t(gridDim.y) * blockDim.x;
    for (uint64_t i = uint64_t(blockIdx.y) * blockDim.x + threadIdx.x; i < p.cols; i += stride) {
        // An id that is no row of the table reads nothing, and shows in whatever is computed from it.
        x[i] = id < p.table_rows ? to_float(from[i]) : __uint_as_float(0x7fc00000u);
    }
}

KERNEL embed_f32(const EmbedParams p) { embed<float>(p); }
KERNEL embed_f16(const EmbedParams p) { embed<__half>(p); }
KERNEL embed_bf16(const EmbedParams p) { embed<__nv_bfloat16>(p); }
