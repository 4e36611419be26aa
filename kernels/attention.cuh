// What both kernels of attention know.
#pragma once

#include "kv.cuh"

// The positions that a row attends to: begin to end, exclusively.
struct Span {
    uint32_t begin;
    uint32_t end;
};

__device__ __forceinline__ Span span_of(uint32_t position, uint32_t capacity, uint32_t window) {
    Span span;
    span.end = min(position + 1, capacity);
    span.begin = span.end > window ? span.end - window : 0;
    return span;
}
