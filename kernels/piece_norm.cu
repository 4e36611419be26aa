// Norms of pieces of rows: layer norms, and root-mean-square norms whose pieces have weights of their own. A block per
// piece. Each thread takes the elements that it has in turn, then lanes are folded, then warps: the order of a sum
// depends on the width of a piece alone.
#include "device.cuh"

struct PieceNormParams {
    const float* x;       // [n, piece], a piece per blockIdx.x
    const float* weight;  // [pieces, piece]: piece i has the weights of i % pieces
    const float* bias;    // [pieces, piece], or null
    float* out;           // [n, piece], perhaps x itself
    uint32_t piece;
    uint32_t pieces;
    float eps;
    uint32_t centred;  // whether the mean is taken off first
};

// The sum over a block, the same bits in every thread. `of_warps` may be used again at once.
__device__ __forceinline__ float block_sum(float sum, float* of_warps) {
    sum = warp_sum(sum);
    const uint32_t lane = threadIdx.x % WARP;
    if (lane == 0) {
        of_warps[threadIdx.x / WARP] = sum;
    }
    __syncthreads();
    sum = warp_sum(lane < blockDim.x / WARP ? of_warps[lane] : 0.0f);
    __syncthreads();
    return sum;
}

KERNEL __launch_bounds__(1024) piece_norm_f32(const PieceNormParams p) {
    __shared__ float of_warps[WARP];
    const uint64_t at = uint64_t(blockIdx.x) * p.piece;
    const uint64_t weights = uint64_t(blockIdx.x % p.pieces) * p.piece;
    const float* x = p.x + at;
    const float* weight = p.weight + weights;
    const float* bias = p.bias + (p.bias != nullptr ? weights : 0);
    float* out = p.out + at;

    float mean = 0.0f;
    if (p.centred != 0) {
        float sum = 0.0f;
        for (uint32_t i = threadIdx.x; i < p.piece; i += blockDim.x) {
            sum += x[i];
        }
        mean = block_sum(sum, of_warps) / float(p.piece);
    }
    // Of the distances from the mean, rather than the mean of squares less the square of the mean, which cancel.
    float squares = 0.0f;
    for (uint32_t i = threadIdx.x; i < p.piece; i += blockDim.x) {
        const float from_mean = x[i] - mean;
        squares = fmaf(from_mean, from_mean, squares);
    }
    const float factor = rsqrtf(block_sum(squares, of_warps) / float(p.piece) + p.eps);
    // A thread writes no element that another one reads: the result may lie where the operand does.
    for (uint32_t i = threadIdx.x; i < p.piece; i += blockDim.x) {
        const float normed = (x[i] - mean) * factor;
        out[i] = p.bias != nullptr ? fmaf(normed, weight[i], bias[i]) : normed * weight[i];
    }
}
