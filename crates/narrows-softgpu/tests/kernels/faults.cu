// One fault each, and where `fault` is 0 the same kernel without it.
#include "device.cuh"

struct FaultParams {
    float* data;
    float* out;
    unsigned n;
    unsigned fault;
};

extern "C" __global__ void softgpu_read_past_end(const FaultParams p) {
    unsigned i = threadIdx.x;
    if (i < p.n) p.out[i] = p.data[i + (p.fault ? 1 : 0)];
}

extern "C" __global__ void softgpu_write_past_end(const FaultParams p) {
    unsigned i = threadIdx.x;
    if (i < p.n) p.out[i + (p.fault ? 1 : 0)] = p.data[i];
}

extern "C" __global__ void softgpu_misaligned(const FaultParams p) {
    if (threadIdx.x == 0) {
        uint4 v = *reinterpret_cast<const uint4*>(p.data + (p.fault ? 1 : 0));
        *reinterpret_cast<uint4*>(p.out) = v;
    }
}

extern "C" __global__ void softgpu_host_pointer(const FaultParams p) {
    __shared__ float local[1];
    if (threadIdx.x == 0) {
        local[0] = p.data[0];
        const float* from = p.fault ? reinterpret_cast<const float*>(uintptr_t(p.out) ^ (uint64_t(1) << 46)) : local;
        p.out[0] = *from;
    }
}

extern "C" __global__ void softgpu_missing_barrier(const FaultParams p) {
    __shared__ float values[256];
    values[threadIdx.x] = 0.0f;
    __syncthreads();
    values[threadIdx.x] = p.data[threadIdx.x];
    if (!p.fault) __syncthreads();
    p.out[threadIdx.x] = values[(threadIdx.x + 64) % blockDim.x];
}

extern "C" __global__ void softgpu_missing_syncwarp(const FaultParams p) {
    __shared__ float values[32];
    values[threadIdx.x] = 0.0f;
    __syncwarp();
    values[threadIdx.x] = p.data[threadIdx.x];
    if (!p.fault) __syncwarp();
    p.out[threadIdx.x] = values[31 - threadIdx.x];
}

extern "C" __global__ void softgpu_overwritten_too_early(const FaultParams p) {
    __shared__ float values[256];
    for (int round = 0; round < 2; ++round) {
        values[threadIdx.x] = p.data[threadIdx.x] + float(round);
        __syncthreads();
        p.out[threadIdx.x] = values[(threadIdx.x + 64) % blockDim.x];
        if (!p.fault) __syncthreads();
    }
}

extern "C" __global__ void softgpu_unwritten_shared(const FaultParams p) {
    __shared__ float values[64];
    if (threadIdx.x < 32 || !p.fault) values[threadIdx.x] = p.data[threadIdx.x];
    __syncthreads();
    p.out[threadIdx.x] = values[threadIdx.x];
}

extern "C" __global__ void softgpu_dynamic_shared_end(const FaultParams p) {
    float* values = static_cast<float*>(softgpu::dynamic_shared());
    values[threadIdx.x + (p.fault ? 1 : 0)] = 1.0f;
    __syncthreads();
    p.out[threadIdx.x] = values[threadIdx.x + (p.fault ? 1 : 0)];
}

extern "C" __global__ void softgpu_divergent_barrier(const FaultParams p) {
    if (p.fault && threadIdx.x >= 48) return;
    __syncthreads();
    p.out[threadIdx.x] = 1.0f;
}

extern "C" __global__ void softgpu_two_barriers(const FaultParams p) {
    if (p.fault && threadIdx.x >= 32) {
        __syncthreads();
    } else {
        __syncthreads();
    }
    p.out[threadIdx.x] = 1.0f;
}

extern "C" __global__ void softgpu_missing_lanes(const FaultParams p) {
    float value = p.data[threadIdx.x];
    if (!p.fault || threadIdx.x < 16) value = __shfl_xor_sync(0xffffffffu, value, 1);
    p.out[threadIdx.x] = value;
}

extern "C" __global__ void softgpu_missing_wait(const FaultParams p) {
    __shared__ __align__(16) float values[128];
    softgpu::cp_async_16(values + threadIdx.x * 4, p.data + threadIdx.x * 4, 16);
    softgpu::cp_async_commit();
    if (!p.fault) softgpu::cp_async_wait<0>();
    __syncthreads();
    for (int i = 0; i < 4; ++i) p.out[threadIdx.x + i * 32] = values[threadIdx.x + i * 32];
}

extern "C" __global__ void softgpu_assertion(const FaultParams p) {
    assert(!p.fault);
    p.out[threadIdx.x] = 1.0f;
}

extern "C" __global__ void softgpu_static_and_dynamic(const FaultParams p) {
    float* dynamic = static_cast<float*>(softgpu::dynamic_shared());
    __shared__ float own[64];
    dynamic[threadIdx.x] = p.data[threadIdx.x];
    if (p.fault) own[threadIdx.x] = dynamic[threadIdx.x];
    __syncthreads();
    p.out[threadIdx.x] = p.fault ? own[threadIdx.x ^ 1] : dynamic[threadIdx.x ^ 1];
}
