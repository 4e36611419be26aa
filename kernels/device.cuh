// What all kernels share. The same sources are compiled by nvcc for GPUs and by the host's compiler for the
// software driver of the tests, so what only one of them has stands here behind one name.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

// The architecture that is compiled for, times ten, as __CUDA_ARCH__ / 10: 75, 80, 90 ...
#if defined(NARROWS_SOFTGPU)
#define NARROWS_ARCH SOFTGPU_ARCH
#elif defined(__CUDA_ARCH__)
#define NARROWS_ARCH (__CUDA_ARCH__ / 10)
#else
#define NARROWS_ARCH 0
#endif

// Every kernel is `KERNEL name(const Params p)`: one struct by value, whose twin in Rust stands in the launcher.
#define KERNEL extern "C" __global__ void

// The shared memory whose size the launch chooses, as `type* name`.
#if defined(NARROWS_SOFTGPU)
#define DYNAMIC_SHARED(type, name) type* name = static_cast<type*>(softgpu::dynamic_shared())
#else
extern __shared__ __align__(128) unsigned char narrows_dynamic_shared[];
#define DYNAMIC_SHARED(type, name) type* name = reinterpret_cast<type*>(narrows_dynamic_shared)
#endif

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

// Every encoding of single numbers as float and back, rounding to nearest even.
__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) { return x; }
template <>
__device__ __forceinline__ __half from_float<__half>(float x) { return __float2half_rn(x); }
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) { return __float2bfloat16_rn(x); }

// The sum over a warp, the same bits in every lane.
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int offset = WARP / 2; offset > 0; offset /= 2) {
        x += __shfl_xor_sync(ALL_LANES, x, offset);
    }
    return x;
}
