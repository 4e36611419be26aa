// What all kernels of attention know.
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

// What a model does with scores besides a factor. Caps and scores are times log2(e), slopes are not.
__device__ __forceinline__ bool bends(float cap, const float* slopes) { return cap > 0.0f || slopes != nullptr; }

// A score of a key so many positions back: `cap * tanh(score / cap)` where there is a cap, less the slope of the head for
// each position (ALiBi, Press et al. 2022, arXiv:2108.12409).
__device__ __forceinline__ float bent(float score, float cap, float slope, uint32_t distance) {
    constexpr float LOG2_E = 1.44269504088896340736f;
    if (cap > 0.0f) {
        score = cap * tanhf(score / cap);
    }
    return fmaf(-slope * LOG2_E, float(distance), score);
}
