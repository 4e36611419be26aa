// The operations that the lanes of a warp do together. The last lane to arrive performs them for
// all; each lane hands over a record on its own stack.
#pragma once

#include "machine.h"

namespace softgpu {

void* dynamic_shared();
uint32_t barrier(const char* file, uint32_t line, uint32_t reduce, uint32_t predicate);
void collective(uint32_t operation, uint32_t mask, void* lane, Perform perform);
[[noreturn]] void trap(const char* what, const char* file, uint32_t line);
void atomic_access(const void* address, uint32_t bytes);
// Remembers, for messages, where a kernel called from.
void note_caller(void* pc);
void read_access(const void* address, uint32_t bytes);
uint32_t lane();

// `source` names a lane; a lane outside the mask is undefined behaviour in CUDA and a fault here.
uint32_t shuffle(uint32_t mask, uint32_t value, uint32_t source);
uint32_t ballot(uint32_t mask, bool predicate);
void syncwarp(uint32_t mask);

void mma_m16n8k8_f16(float (&d)[4], const uint32_t (&a)[2], const uint32_t (&b)[1], const float (&c)[4]);
void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const float (&c)[4]);
void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const float (&c)[4]);

void ldmatrix_x4(uint32_t (&r)[4], const void* shared_row);
void ldmatrix_x2(uint32_t (&r)[2], const void* shared_row);
void ldmatrix_x4_trans(uint32_t (&r)[4], const void* shared_row);
void ldmatrix_x2_trans(uint32_t (&r)[2], const void* shared_row);

void cp_async_16(void* shared, const void* global, int src_bytes);
void cp_async_commit();
void cp_async_wait_group(uint32_t keep);
template <int N>
inline void cp_async_wait() {
    static_assert(N >= 0, "cp.async.wait_group of a negative number of groups");
    cp_async_wait_group(N);
}

}  // namespace softgpu
