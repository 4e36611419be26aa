// Reductions, shuffles, matrix fragments.
#include "device.cuh"

struct SumParams {
    const float* x;
    float* sums;
    unsigned n;
    unsigned reserved;
};

extern "C" __global__ void __launch_bounds__(256) softgpu_block_sum(const SumParams p) {
    __shared__ float partial[8];
    float sum = 0.0f;
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < p.n; i += gridDim.x * blockDim.x) sum += p.x[i];
    for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        float total = 0.0f;
        for (unsigned i = 0; i < blockDim.x / 32; ++i) total += partial[i];
        atomicAdd(p.sums, total);
    }
}

struct ShuffleParams {
    int* out;  // [8, 32]
};

extern "C" __global__ void softgpu_shuffles(const ShuffleParams p) {
    int lane = int(threadIdx.x);
    int* out = p.out + lane;
    out[0] = __shfl_sync(0xffffffffu, lane * 10, 5);
    out[32] = __shfl_sync(0xffffffffu, lane * 10, 3, 8);
    out[64] = __shfl_up_sync(0xffffffffu, lane, 2);
    out[96] = __shfl_down_sync(0xffffffffu, lane, 3, 16);
    out[128] = __shfl_xor_sync(0xffffffffu, lane, 7);
    out[160] = int(__ballot_sync(0xffffffffu, lane % 3 == 0));
    out[192] = __all_sync(0xffffffffu, lane < 32) + 2 * __any_sync(0xffffffffu, lane == 40);
    out[224] = __syncthreads_count(lane < 7);
    // Halves of a warp may go different ways, each with its own mask.
    if (lane < 16)
        out[256] = __shfl_xor_sync(0x0000ffffu, lane, 1);
    else
        out[256] = __shfl_xor_sync(0xffff0000u, lane, 2);
}

struct MmaParams {
    const uint32_t* a;  // [32, 4]
    const uint32_t* b;  // [32, 2]
    float* d;           // [32, 4], read as c
    unsigned kind;
};

extern "C" __global__ void softgpu_mma(const MmaParams p) {
    unsigned lane = threadIdx.x;
    uint32_t a[4], b[2];
    float c[4], d[4];
    for (int i = 0; i < 4; ++i) a[i] = p.a[lane * 4 + i];
    for (int i = 0; i < 2; ++i) b[i] = p.b[lane * 2 + i];
    for (int i = 0; i < 4; ++i) c[i] = p.d[lane * 4 + i];
    if (p.kind == 0) {
        uint32_t a2[2] = {a[0], a[1]}, b1[1] = {b[0]};
        softgpu::mma_m16n8k8_f16(d, a2, b1, c);
    } else if (p.kind == 1) {
        softgpu::mma_m16n8k16_f16(d, a, b, c);
    } else {
        softgpu::mma_m16n8k16_bf16(d, a, b, c);
    }
    for (int i = 0; i < 4; ++i) p.d[lane * 4 + i] = d[i];
}

struct LdmatrixParams {
    const uint32_t* rows;  // four matrices of 8 rows of 8 halves
    uint32_t* r;           // [4, 32, 4]
};

extern "C" __global__ void softgpu_ldmatrix(const LdmatrixParams p) {
    __shared__ __align__(16) uint32_t tile[128];
    unsigned lane = threadIdx.x;
    for (int i = 0; i < 4; ++i) tile[lane * 4 + i] = p.rows[lane * 4 + i];
    __syncwarp();
    uint32_t r4[4], r2[2];
    softgpu::ldmatrix_x4(r4, tile + lane * 4);
    for (int i = 0; i < 4; ++i) p.r[lane * 4 + i] = r4[i];
    softgpu::ldmatrix_x4_trans(r4, tile + lane * 4);
    for (int i = 0; i < 4; ++i) p.r[128 + lane * 4 + i] = r4[i];
    softgpu::ldmatrix_x2(r2, tile + lane % 16 * 4);
    for (int i = 0; i < 2; ++i) p.r[256 + lane * 4 + i] = r2[i];
    softgpu::ldmatrix_x2_trans(r2, tile + lane % 16 * 4);
    for (int i = 0; i < 2; ++i) p.r[384 + lane * 4 + i] = r2[i];
}

struct ReadParams {
    const uint4* x;
    unsigned* out;
    unsigned n;
    unsigned repeat;
};

template <typename T>
__device__ unsigned fold(const T* x, unsigned n) {
    unsigned sum = 0;
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        uint4 v = __ldg(x + i);
        sum ^= v.x ^ v.y ^ v.z ^ v.w;
    }
    return sum;
}

extern "C" __global__ void softgpu_read_vectors(const ReadParams p) {
    unsigned sum = 0;
    for (unsigned i = 0; i < p.repeat; ++i) sum += fold(p.x, p.n);
    p.out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

extern "C" __global__ void softgpu_atomics(const ReadParams p) {
    atomicAdd(p.out, 1u);
    atomicMax(p.out + 1, threadIdx.x);
    atomicMin(p.out + 2, threadIdx.x);
    atomicCAS(p.out + 3, 7u, 9u);
    __shared__ unsigned count;
    if (threadIdx.x == 0) count = 0;
    __syncthreads();
    atomicAdd(&count, 2u);
    __syncthreads();
    if (threadIdx.x == 0) p.out[4] = count;
}

__constant__ float softgpu_table[4] = {1.0f, 2.0f, 4.0f, 8.0f};

extern "C" __global__ void softgpu_constants(const SumParams p) {
    constexpr float scale[2] = {0.5f, 3.0f};
    p.sums[threadIdx.x] = softgpu_table[threadIdx.x % 4] * scale[p.n % 2] + __half2float(__float2half_rn(p.x[0]));
}
