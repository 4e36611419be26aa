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

// Sixteen bytes that are read once and by nobody else: they need not stay in the nearest cache, whose room is
// for what is read again and again.
__device__ __forceinline__ uint4 load_once(const void* at) {
#if !defined(NARROWS_SOFTGPU) && NARROWS_ARCH >= 70
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(at));
    return v;
#else
    return __ldcs(static_cast<const uint4*>(at));
#endif
}

// Whether all of these addresses and sizes are multiples of `unit`, a power of two.
template <typename... T>
__device__ __forceinline__ bool multiples(uint64_t unit, T... values) {
    return ((uint64_t(values) | ...) & (unit - 1)) == 0;
}

__device__ __forceinline__ uint64_t address(const void* at) { return reinterpret_cast<uint64_t>(at); }

// Four neighbours as one load or store, at a multiple of their size.
__device__ __forceinline__ float4 load4(const float* at) { return *reinterpret_cast<const float4*>(at); }
__device__ __forceinline__ void store4(float* at, float4 v) { *reinterpret_cast<float4*>(at) = v; }
__device__ __forceinline__ uint32_t bits(__half x) { return __half_raw(x).x; }
__device__ __forceinline__ uint32_t bits(__nv_bfloat16 x) { return __nv_bfloat16_raw(x).x; }
template <typename T>
__device__ __forceinline__ void store4(T* at, float4 v) {
    const uint32_t low = bits(from_float<T>(v.x)) | bits(from_float<T>(v.y)) << 16;
    const uint32_t high = bits(from_float<T>(v.z)) | bits(from_float<T>(v.w)) << 16;
    *reinterpret_cast<uint2*>(at) = make_uint2(low, high);
}
