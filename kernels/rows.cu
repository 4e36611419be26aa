// Rows of activations taken together and added back: how a mixture hands rows to an expert and sums up what comes
// back.
#include "device.cuh"

struct GatherRowsParams {
    const unsigned char* x;  // [x_rows, row_bytes]
    const uint32_t* rows;    // [m], one per blockIdx.x
    unsigned char* out;      // [m, row_bytes]
    uint64_t x_rows;
    uint64_t row_bytes;
};

// Copies this block's part of a row in units of T; zeros where there is no such row.
template <typename T>
__device__ __forceinline__ void copy_row(const unsigned char* from, unsigned char* to, uint64_t bytes, bool inside) {
    const uint64_t stride = uint64_t(gridDim.y) * blockDim.x;
    for (uint64_t i = uint64_t(blockIdx.y) * blockDim.x + threadIdx.x; i < bytes / sizeof(T); i += stride) {
        T unit = {};
        if (inside) {
            unit = reinterpret_cast<const T*>(from)[i];
        }
        reinterpret_cast<T*>(to)[i] = unit;
    }
}

// out[i, :] = x[rows[i], :], bit by bit, in any encoding of two or four bytes.
KERNEL gather_rows(const GatherRowsParams p) {
    const uint64_t row = p.rows[blockIdx.x];
    const unsigned char* from = p.x + row * p.row_bytes;
    unsigned char* to = p.out + uint64_t(blockIdx.x) * p.row_bytes;
    if (multiples(16, address(p.x), address(p.out), p.row_bytes)) {
        copy_row<uint4>(from, to, p.row_bytes, row < p.x_rows);
    } else {
        copy_row<uint16_t>(from, to, p.row_bytes, row < p.x_rows);
    }
}

struct ScatterAddParams {
    const float* y;        // [m, cols], a row per blockIdx.x
    const uint32_t* rows;  // [m], all different
    const float* weights;  // [m]
    float* out;            // [out_rows, cols]
    uint64_t out_rows;
    uint64_t cols;
};

// out[rows[i], :] += weights[i] * y[i, :], rounded once. No element of `out` belongs to two threads, as no row is
// named twice.
KERNEL scatter_add_f32(const ScatterAddParams p) {
    const uint64_t row = p.rows[blockIdx.x];
    if (row >= p.out_rows) {
        return;
    }
    const float weight = p.weights[blockIdx.x];
    const float* y = p.y + uint64_t(blockIdx.x) * p.cols;
    float* out = p.out + row * p.cols;
    const uint64_t first = uint64_t(blockIdx.y) * blockDim.x + threadIdx.x;
    const uint64_t stride = uint64_t(gridDim.y) * blockDim.x;
    const uint64_t quads = multiples(16, address(y), address(out)) ? p.cols / 4 : 0;
    for (uint64_t i = first; i < quads; i += stride) {
        const float4 a = load4(y + 4 * i);
        const float4 sum = load4(out + 4 * i);
        store4(out + 4 * i, make_float4(fmaf(weight, a.x, sum.x), fmaf(weight, a.y, sum.y),
                                        fmaf(weight, a.z, sum.z), fmaf(weight, a.w, sum.w)));
    }
    for (uint64_t i = 4 * quads + first; i < p.cols; i += stride) {
        out[i] = fmaf(weight, y[i], out[i]);
    }
}
