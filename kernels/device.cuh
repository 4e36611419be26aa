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

// A number that is known when the kernel is compiled, as an argument.
template <int N>
struct Constant {
    static constexpr int VALUE = N;
};

// Calls `f` with each number below N as a constant: a loop that is written out whatever its size, so that arrays
// which it indexes stay in registers.
template <int N, int I = 0, typename F>
__device__ __forceinline__ void for_each_constant(const F& f) {
    if constexpr (I < N) {
        f(Constant<I>());
        for_each_constant<N, I + 1>(f);
    }
}

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

// Lets the compiler forget what it knows of a number, so that what is computed from it in a loop is computed
// there, and not kept in registers from before it.
__device__ __forceinline__ void forget(int& x) {
#if !defined(NARROWS_SOFTGPU)
    asm volatile("" : "+r"(x));
#else
    (void)x;
#endif
}

// Two neighbours in memory as one word, rounded to nearest even.
template <typename T>
__device__ __forceinline__ uint32_t pack_two(float low, float high);
template <>
__device__ __forceinline__ uint32_t pack_two<__half>(float low, float high) {
    return uint32_t(__half_as_ushort(__float2half_rn(low))) |
           uint32_t(__half_as_ushort(__float2half_rn(high))) << 16;
}
template <>
__device__ __forceinline__ uint32_t pack_two<__nv_bfloat16>(float low, float high) {
    return uint32_t(__bfloat16_as_ushort(__float2bfloat16_rn(low))) |
           uint32_t(__bfloat16_as_ushort(__float2bfloat16_rn(high))) << 16;
}

// Where something lies in shared memory, for address arithmetic of one instruction.
#if defined(NARROWS_SOFTGPU)
using SharedAddress = uint64_t;
#else
using SharedAddress = uint32_t;
#endif
__device__ __forceinline__ SharedAddress shared_address(const void* at) {
#if defined(NARROWS_SOFTGPU)
    return reinterpret_cast<SharedAddress>(at);
#else
    return static_cast<SharedAddress>(__cvta_generic_to_shared(at));
#endif
}
// What a kernel that is past its barriers only reads.
__device__ __forceinline__ float2 load_shared_2(SharedAddress at) {
#if defined(NARROWS_SOFTGPU)
    return *reinterpret_cast<const float2*>(at);
#else
    float2 v;
    asm("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(at));
    return v;
#endif
}

// Copies 16 bytes from global to shared memory, both aligned to 16: all of them where src_bytes is 16, zeros
// where it is 0. They have arrived in the group's wait; before sm_80 at once.
__device__ __forceinline__ void cp_async_16(void* shared, const void* global, int src_bytes) {
#if defined(NARROWS_SOFTGPU) && NARROWS_ARCH >= 80
    softgpu::cp_async_16(shared, global, src_bytes);
#elif NARROWS_ARCH >= 80
    const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;\n" ::"r"(to), "l"(global), "r"(src_bytes)
                 : "memory");
#else
    uint4 value = make_uint4(0, 0, 0, 0);
    if (src_bytes != 0) {
        value = *static_cast<const uint4*>(global);
    }
    *static_cast<uint4*>(shared) = value;
#endif
}

// Ends a group of copies.
__device__ __forceinline__ void cp_async_commit() {
#if defined(NARROWS_SOFTGPU) && NARROWS_ARCH >= 80
    softgpu::cp_async_commit();
#elif NARROWS_ARCH >= 80
    asm volatile("cp.async.commit_group;\n" ::: "memory");
#endif
}

// Waits until at most the N latest groups of this thread are under way. Other threads see what this one
// copied after a barrier.
template <int N>
__device__ __forceinline__ void cp_async_wait() {
#if defined(NARROWS_SOFTGPU) && NARROWS_ARCH >= 80
    softgpu::cp_async_wait<N>();
#elif NARROWS_ARCH >= 80
    asm volatile("cp.async.wait_group %0;\n" ::"n"(N) : "memory");
#endif
}

// Four 8x8 matrices of 16-bit elements from shared memory, register i from the rows whose addresses lanes
// 8i..8i+7 give. Lane 4r+c gets elements 2c and 2c+1 of row r.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* shared_row) {
#if defined(NARROWS_SOFTGPU)
    softgpu::ldmatrix_x4(r, shared_row);
#elif NARROWS_ARCH >= 75
    const uint32_t from = static_cast<uint32_t>(__cvta_generic_to_shared(shared_row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from)
                 : "memory");
#endif
}

// The same, each matrix transposed: lane 4r+c gets elements r of rows 2c and 2c+1.
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* shared_row) {
#if defined(NARROWS_SOFTGPU)
    softgpu::ldmatrix_x4_trans(r, shared_row);
#elif NARROWS_ARCH >= 75
    const uint32_t from = static_cast<uint32_t>(__cvta_generic_to_shared(shared_row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from)
                 : "memory");
#endif
}

// Whether this architecture has matrix units for T: f16 from sm_75, bf16 from sm_80, never for f32, which TF32
// would round to 10 bits.
template <typename T>
constexpr bool HAS_MMA = false;
template <>
constexpr bool HAS_MMA<__half> = NARROWS_ARCH >= 75;
template <>
constexpr bool HAS_MMA<__nv_bfloat16> = NARROWS_ARCH >= 80;

// d += a b for a of 16x16, b of 16x8 and d of 16x8, spread over a warp as PTX says of mma.m16n8k16. With
// g = lane / 4 and t = lane % 4: d[0..2] are row g, columns 2t and 2t+1, d[2..4] row g+8; a[0] is row g, columns
// 2t and 2t+1, a[1] row g+8, a[2] and a[3] the same 8 columns further; b[0] is rows 2t and 2t+1 of column g,
// b[1] 8 rows further.
template <typename T>
__device__ __forceinline__ void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

template <>
__device__ __forceinline__ void mma_16x8x16<__half>(float (&d)[4], const uint32_t (&a)[4],
                                                    const uint32_t (&b)[2]) {
#if NARROWS_ARCH >= 80
#if defined(NARROWS_SOFTGPU)
    const float c[4] = {d[0], d[1], d[2], d[3]};
    softgpu::mma_m16n8k16_f16(d, a, b, c);
#else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
#elif NARROWS_ARCH >= 75
    // The first matrix units with this layout take half of the inner dimension at a time.
#pragma unroll
    for (int part = 0; part < 2; ++part) {
#if defined(NARROWS_SOFTGPU)
        const uint32_t a_half[2] = {a[2 * part], a[2 * part + 1]};
        const uint32_t b_half[1] = {b[part]};
        const float c[4] = {d[0], d[1], d[2], d[3]};
        softgpu::mma_m16n8k8_f16(d, a_half, b_half, c);
#else
        asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
            "{%0, %1, %2, %3};\n"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[2 * part]), "r"(a[2 * part + 1]), "r"(b[part]));
#endif
    }
#endif
}

template <>
__device__ __forceinline__ void mma_16x8x16<__nv_bfloat16>(float (&d)[4], const uint32_t (&a)[4],
                                                           const uint32_t (&b)[2]) {
#if NARROWS_ARCH >= 80
#if defined(NARROWS_SOFTGPU)
    const float c[4] = {d[0], d[1], d[2], d[3]};
    softgpu::mma_m16n8k16_bf16(d, a, b, c);
#else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
#endif
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
