// Quantised rows as numbers.
#include "blocks.cuh"

struct DequantiseParams {
    const unsigned char* rows;  // [rows, row_bytes]
    void* out;                  // [rows, cols], a row per blockIdx.x
    uint64_t row_bytes;
    uint64_t cols;
};

template <typename Encoding, typename Out>
__device__ __forceinline__ void dequantise(const DequantiseParams& p) {
    __shared__ float table[16];
    Encoding::fill(table);
    __syncthreads();
    const unsigned char* row = p.rows + blockIdx.x * p.row_bytes;
    Out* out = static_cast<Out*>(p.out) + blockIdx.x * p.cols;
    const bool wide = multiples(4 * sizeof(Out), address(out));
    const uint32_t stride = gridDim.y * blockDim.x;
    for (uint32_t chunk = blockIdx.y * blockDim.x + threadIdx.x; uint64_t(chunk) * Encoding::VALUES < p.cols;
         chunk += stride) {
        const uint4 codes = load_once(codes_at(row, chunk));
        const float scale = scale_of(scale_at(row, chunk));
#pragma unroll
        for (int part = 0; part < Encoding::VALUES / PART; ++part) {
            float values[PART];
            Encoding::decode(codes, part, scale, table, values);
            const uint64_t first = uint64_t(chunk) * Encoding::VALUES + part * PART;
            if (wide && first + PART <= p.cols) {
                store4(out + first, make_float4(values[0], values[1], values[2], values[3]));
                store4(out + first + 4, make_float4(values[4], values[5], values[6], values[7]));
            } else {
#pragma unroll
                for (int i = 0; i < PART; ++i) {
                    if (first + i < p.cols) {
                        out[first + i] = from_float<Out>(values[i]);
                    }
                }
            }
        }
    }
}

KERNEL dequantise_q8_f32(const DequantiseParams p) { dequantise<Q8, float>(p); }
KERNEL dequantise_q8_f16(const DequantiseParams p) { dequantise<Q8, __half>(p); }
KERNEL dequantise_q8_bf16(const DequantiseParams p) { dequantise<Q8, __nv_bfloat16>(p); }
KERNEL dequantise_nf4_f32(const DequantiseParams p) { dequantise<Nf4, float>(p); }
KERNEL dequantise_nf4_f16(const DequantiseParams p) { dequantise<Nf4, __half>(p); }
KERNEL dequantise_nf4_bf16(const DequantiseParams p) { dequantise<Nf4, __nv_bfloat16>(p); }
