// CUDA C++ for the host compiler: what a kernel sees of the machine. Force-included before every
// `.cu` that the software driver runs. The kernels' own headers see NARROWS_SOFTGPU and leave out
// their inline PTX; the functions in namespace softgpu take its place.
#pragma once

#define NARROWS_SOFTGPU 1
#ifndef SOFTGPU_ARCH
#define SOFTGPU_ARCH 90
#endif

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <utility>

#include <vector_types.h>
#include <vector_functions.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "collectives.h"

// --- qualifiers -------------------------------------------------------------------------------

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __constant__
#undef __launch_bounds__
#undef __forceinline__
#undef __noinline__
#undef __align__
#undef __grid_constant__
#ifdef SOFTGPU_SCAN  // build.rs finds the kernels in the preprocessed text by these words
#define __global__ __softgpu_global__
#define __launch_bounds__(...) __softgpu_bounds__(__VA_ARGS__)
#else
#define __global__
#define __launch_bounds__(...)
#endif
#define __device__
#define __host__
// One block runs at a time, so what a block shares may be static.
#define __shared__ static
#define __constant__ __attribute__((section("softgpu_constant")))
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(n) __attribute__((aligned(n)))
#define __grid_constant__

// --- where a thread is ------------------------------------------------------------------------
// Constant for as long as a thread runs: fibers keep their registers over a switch.

extern "C" uint32_t softgpu_thread_idx(int dim) __attribute__((const));
extern "C" uint32_t softgpu_block_idx(int dim) __attribute__((const));
extern "C" uint32_t softgpu_block_dim(int dim) __attribute__((const));
extern "C" uint32_t softgpu_grid_dim(int dim) __attribute__((const));
extern "C" void* softgpu_memcpy(void* to, const void* from, size_t bytes);
extern "C" void* softgpu_memset(void* to, int value, size_t bytes);

#define SOFTGPU_INDEX(what) (uint3{what(0), what(1), what(2)})
#define threadIdx SOFTGPU_INDEX(softgpu_thread_idx)
#define blockIdx SOFTGPU_INDEX(softgpu_block_idx)
#define blockDim SOFTGPU_INDEX(softgpu_block_dim)
#define gridDim SOFTGPU_INDEX(softgpu_grid_dim)
#define warpSize 32

// Small copies become loads and stores, which are instrumented; the rest would be a bare call.
#define memcpy(to, from, bytes)                                                                    \
    (__builtin_constant_p(bytes) && ((bytes) == 1 || (bytes) == 2 || (bytes) == 4 || (bytes) == 8 || \
      (bytes) == 16)                                                                                \
         ? __builtin_memcpy(to, from, bytes)                                                       \
         : softgpu_memcpy(to, from, bytes))
#define memset(to, value, bytes) softgpu_memset(to, value, bytes)

#undef assert
#define assert(condition) \
    ((condition) ? (void)0 : softgpu::trap("assertion failed: " #condition, __FILE__, __LINE__))

namespace softgpu {

template <class To, class From>
__forceinline__ To bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "a cast of bits keeps the size");
    To to;
    __builtin_memcpy(&to, &from, sizeof(To));
    return to;
}

template <class T>
__forceinline__ T shuffle_any(uint32_t mask, T value, uint32_t source) {
    static_assert(sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8, "a shuffle moves 2, 4 or 8 bytes");
    if constexpr (sizeof(T) == 2) {
        return bits<T>(uint16_t(shuffle(mask, bits<uint16_t>(value), source)));
    } else if constexpr (sizeof(T) == 4) {
        return bits<T>(shuffle(mask, bits<uint32_t>(value), source));
    } else {
        uint64_t all = bits<uint64_t>(value);
        uint64_t low = shuffle(mask, uint32_t(all), source);
        uint64_t high = shuffle(mask, uint32_t(all >> 32), source);
        return bits<T>(low | high << 32);
    }
}

template <class T> T atomic_add(T* at, T value);
template <class T> T atomic_max(T* at, T value);
template <class T> T atomic_min(T* at, T value);
template <class T> T atomic_exchange(T* at, T value);
template <class T> T atomic_compare(T* at, T expected, T value);
template <class T> T atomic_and(T* at, T value);
template <class T> T atomic_or(T* at, T value);
template <class T> T atomic_xor(T* at, T value);

}  // namespace softgpu

// --- barriers, shuffles, votes ----------------------------------------------------------------

inline void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    softgpu::barrier(file, uint32_t(line), 0, 0);
}
inline int __syncthreads_count(int p, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return int(softgpu::barrier(file, uint32_t(line), 1, p != 0));
}
inline int __syncthreads_or(int p, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return softgpu::barrier(file, uint32_t(line), 1, p != 0) != 0;
}
inline int __syncthreads_and(int p, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return softgpu::barrier(file, uint32_t(line), 1, p == 0) == 0;
}
inline void __syncwarp(unsigned mask = 0xffffffffu) { softgpu::syncwarp(mask); }

template <class T>
__forceinline__ T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
    unsigned base = softgpu::lane() & ~unsigned(width - 1);
    return softgpu::shuffle_any(mask, value, base | (unsigned(source) & unsigned(width - 1)));
}
template <class T>
__forceinline__ T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
    unsigned me = softgpu::lane(), other = me ^ unsigned(lanes);
    bool within = other < ((me & ~unsigned(width - 1)) + unsigned(width));
    return softgpu::shuffle_any(mask, value, within ? other : me);
}
template <class T>
__forceinline__ T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    unsigned me = softgpu::lane(), within = me & unsigned(width - 1);
    return softgpu::shuffle_any(mask, value, within >= delta ? me - delta : me);
}
template <class T>
__forceinline__ T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    unsigned me = softgpu::lane(), within = me & unsigned(width - 1);
    return softgpu::shuffle_any(mask, value, within + delta < unsigned(width) ? me + delta : me);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) { return softgpu::ballot(mask, predicate != 0); }
inline int __any_sync(unsigned mask, int predicate) { return softgpu::ballot(mask, predicate != 0) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return softgpu::ballot(mask, predicate == 0) == 0; }

inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
inline void __nanosleep(unsigned) {}
[[noreturn]] inline void __trap(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    softgpu::trap("__trap", file, uint32_t(line));
}

// --- atomics ----------------------------------------------------------------------------------

template <class T, class V> __forceinline__ T atomicAdd(T* at, V v) { return softgpu::atomic_add(at, T(v)); }
template <class T, class V> __forceinline__ T atomicSub(T* at, V v) { return softgpu::atomic_add(at, T(-T(v))); }
template <class T, class V> __forceinline__ T atomicMax(T* at, V v) { return softgpu::atomic_max(at, T(v)); }
template <class T, class V> __forceinline__ T atomicMin(T* at, V v) { return softgpu::atomic_min(at, T(v)); }
template <class T, class V> __forceinline__ T atomicExch(T* at, V v) { return softgpu::atomic_exchange(at, T(v)); }
template <class T, class V> __forceinline__ T atomicAnd(T* at, V v) { return softgpu::atomic_and(at, T(v)); }
template <class T, class V> __forceinline__ T atomicOr(T* at, V v) { return softgpu::atomic_or(at, T(v)); }
template <class T, class V> __forceinline__ T atomicXor(T* at, V v) { return softgpu::atomic_xor(at, T(v)); }
template <class T, class E, class V>
__forceinline__ T atomicCAS(T* at, E expected, V v) {
    return softgpu::atomic_compare(at, T(expected), T(v));
}

// --- loads and stores with cache hints ----------------------------------------------------------

template <class T> __forceinline__ T __ldg(const T* p) { return *p; }
template <class T> __forceinline__ T __ldcg(const T* p) { return *p; }
template <class T> __forceinline__ T __ldca(const T* p) { return *p; }
template <class T> __forceinline__ T __ldcs(const T* p) { return *p; }
template <class T> __forceinline__ T __ldlu(const T* p) { return *p; }
template <class T> __forceinline__ T __ldcv(const T* p) { return *p; }
template <class T> __forceinline__ void __stcg(T* p, T v) { *p = v; }
template <class T> __forceinline__ void __stcs(T* p, T v) { *p = v; }
template <class T> __forceinline__ void __stwb(T* p, T v) { *p = v; }
template <class T> __forceinline__ void __stwt(T* p, T v) { *p = v; }

// --- arithmetic ---------------------------------------------------------------------------------
// The approximate functions of the GPU are exact here: a tolerance holds on both.

#define SOFTGPU_MATH __forceinline__
SOFTGPU_MATH float rsqrtf(float x) { return 1.0f / sqrtf(x); }
SOFTGPU_MATH double rsqrt(double x) { return 1.0 / sqrt(x); }
SOFTGPU_MATH float __expf(float x) { return expf(x); }
SOFTGPU_MATH float __exp2f(float x) { return exp2f(x); }
SOFTGPU_MATH float __logf(float x) { return logf(x); }
SOFTGPU_MATH float __log2f(float x) { return log2f(x); }
SOFTGPU_MATH float __sinf(float x) { return sinf(x); }
SOFTGPU_MATH float __cosf(float x) { return cosf(x); }
SOFTGPU_MATH void __sincosf(float x, float* s, float* c) { *s = sinf(x); *c = cosf(x); }
SOFTGPU_MATH float __powf(float x, float y) { return powf(x, y); }
SOFTGPU_MATH float __tanhf(float x) { return tanhf(x); }
SOFTGPU_MATH float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
SOFTGPU_MATH float __fdividef(float x, float y) { return x / y; }
SOFTGPU_MATH float __frcp_rn(float x) { return 1.0f / x; }
SOFTGPU_MATH float __fsqrt_rn(float x) { return sqrtf(x); }
SOFTGPU_MATH float __frsqrt_rn(float x) { return 1.0f / sqrtf(x); }
SOFTGPU_MATH float __fdiv_rn(float x, float y) { return x / y; }
SOFTGPU_MATH float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
// The compiler contracts products and sums; these promise a rounding in between.
inline __noinline__ float __fmul_rn(float x, float y) { return x * y; }
inline __noinline__ float __fadd_rn(float x, float y) { return x + y; }
inline __noinline__ float __fsub_rn(float x, float y) { return x - y; }

SOFTGPU_MATH unsigned __float_as_uint(float x) { return softgpu::bits<unsigned>(x); }
SOFTGPU_MATH int __float_as_int(float x) { return softgpu::bits<int>(x); }
SOFTGPU_MATH float __uint_as_float(unsigned x) { return softgpu::bits<float>(x); }
SOFTGPU_MATH float __int_as_float(int x) { return softgpu::bits<float>(x); }
SOFTGPU_MATH int __float2int_rn(float x) { return int(rintf(x)); }
SOFTGPU_MATH int __float2int_rz(float x) { return int(x); }
SOFTGPU_MATH int __float2int_rd(float x) { return int(floorf(x)); }
SOFTGPU_MATH unsigned __float2uint_rn(float x) { return unsigned(rintf(x)); }
SOFTGPU_MATH float __int2float_rn(int x) { return float(x); }
SOFTGPU_MATH float __uint2float_rn(unsigned x) { return float(x); }

SOFTGPU_MATH int __popc(unsigned x) { return __builtin_popcount(x); }
SOFTGPU_MATH int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
SOFTGPU_MATH int __clz(int x) { return x == 0 ? 32 : __builtin_clz(unsigned(x)); }
SOFTGPU_MATH int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll((unsigned long long)x); }
SOFTGPU_MATH int __ffs(int x) { return __builtin_ffs(x); }
SOFTGPU_MATH int __ffsll(long long x) { return __builtin_ffsll(x); }
SOFTGPU_MATH unsigned __brev(unsigned x) {
    unsigned r = 0;
    for (int i = 0; i < 32; ++i) r |= (x >> i & 1u) << (31 - i);
    return r;
}
SOFTGPU_MATH unsigned __umulhi(unsigned x, unsigned y) { return unsigned((unsigned long long)x * y >> 32); }
SOFTGPU_MATH unsigned long long __umul64hi(unsigned long long x, unsigned long long y) {
    return (unsigned long long)((unsigned __int128)x * y >> 64);
}
SOFTGPU_MATH int __mul24(int x, int y) { return x * y; }
SOFTGPU_MATH unsigned __byte_perm(unsigned x, unsigned y, unsigned select) {
    unsigned long long both = (unsigned long long)y << 32 | x;
    unsigned r = 0;
    for (int i = 0; i < 4; ++i) {
        unsigned pick = select >> (4 * i) & 15u;
        unsigned byte = unsigned(both >> (8 * (pick & 7u))) & 255u;
        if (pick & 8u) byte = byte & 128u ? 255u : 0u;
        r |= byte << (8 * i);
    }
    return r;
}
SOFTGPU_MATH unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return unsigned(((unsigned long long)high << 32 | low) >> (shift & 31u));
}
SOFTGPU_MATH unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    return unsigned(((unsigned long long)high << 32 | low) << (shift & 31u) >> 32);
}
SOFTGPU_MATH int __dp4a(int a, int b, int c) {
    for (int i = 0; i < 4; ++i) c += int(int8_t(a >> (8 * i))) * int(int8_t(b >> (8 * i)));
    return c;
}

#define SOFTGPU_MIN_MAX(T)                                   \
    SOFTGPU_MATH constexpr T min(T a, T b) { return b < a ? b : a; } \
    SOFTGPU_MATH constexpr T max(T a, T b) { return a < b ? b : a; }
SOFTGPU_MIN_MAX(int)
SOFTGPU_MIN_MAX(unsigned)
SOFTGPU_MIN_MAX(long)
SOFTGPU_MIN_MAX(unsigned long)
SOFTGPU_MIN_MAX(long long)
SOFTGPU_MIN_MAX(unsigned long long)
SOFTGPU_MATH unsigned min(int a, unsigned b) { return min(unsigned(a), b); }
SOFTGPU_MATH unsigned min(unsigned a, int b) { return min(a, unsigned(b)); }
SOFTGPU_MATH unsigned max(int a, unsigned b) { return max(unsigned(a), b); }
SOFTGPU_MATH unsigned max(unsigned a, int b) { return max(a, unsigned(b)); }
SOFTGPU_MATH float min(float a, float b) { return fminf(a, b); }
SOFTGPU_MATH float max(float a, float b) { return fmaxf(a, b); }
SOFTGPU_MATH double min(double a, double b) { return fmin(a, b); }
SOFTGPU_MATH double max(double a, double b) { return fmax(a, b); }

// --- how the driver finds and calls a kernel ----------------------------------------------------

namespace softgpu {

template <class P>
constexpr uint32_t param_bytes(void (*)(P)) { return uint32_t(sizeof(P)); }

template <auto KERNEL, class P>
__attribute__((no_sanitize("thread"))) void call_with(const void* params, void (*)(P)) {
    KERNEL(*static_cast<const P*>(params));
}

template <auto KERNEL>
__attribute__((no_sanitize("thread"))) void call(const void* params) {
    call_with<KERNEL>(params, KERNEL);
}

}  // namespace softgpu
