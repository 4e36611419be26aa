// Root-mean-square norms, of rows of activations and of single heads.
#include "device.cuh"

// The quads (four neighbours) of a row are dealt out to the threads in turn, and each thread adds its own up in
// order, then lanes, then warps: the order depends on the number of columns alone. `wide` says that all four can
// be moved at once.
template <bool WIDE>
__device__ __forceinline__ float4 fetch(const float* row, uint32_t cols, uint32_t quad) {
    if (WIDE) {
        return load4(row + 4 * quad);
    }
    const uint32_t i = 4 * quad;
    return make_float4(row[i], i + 1 < cols ? row[i + 1] : 0.0f, i + 2 < cols ? row[i + 2] : 0.0f,
                       i + 3 < cols ? row[i + 3] : 0.0f);
}

template <bool WIDE, typename T>
__device__ __forceinline__ void put(T* row, uint32_t cols, uint32_t quad, float4 v) {
    if (WIDE) {
        store4(row + 4 * quad, v);
        return;
    }
    const uint32_t i = 4 * quad;
    row[i] = from_float<T>(v.x);
    if (i + 1 < cols) row[i + 1] = from_float<T>(v.y);
    if (i + 2 < cols) row[i + 2] = from_float<T>(v.z);
    if (i + 3 < cols) row[i + 3] = from_float<T>(v.w);
}

__device__ __forceinline__ float squares_of(float4 v, float sum) {
    return fmaf(v.w, v.w, fmaf(v.z, v.z, fmaf(v.y, v.y, fmaf(v.x, v.x, sum))));
}

__device__ __forceinline__ float4 normed(float4 v, float factor, float4 weight) {
    return make_float4(v.x * factor * weight.x, v.y * factor * weight.y, v.z * factor * weight.z,
                       v.w * factor * weight.w);
}

struct RmsNormParams {
    float* x;            // [n, cols], a row per blockIdx.x
    const float* delta;  // [n, cols], or null
    const float* weight; // [cols]
    void* out;           // [n, cols]
    uint32_t cols;
    float eps;
};

// Quads that a thread keeps in registers between the sum and the result. The launch has so many threads that
// rows of up to 16384 columns are read once.
constexpr int KEPT = 4;

template <bool WIDE, typename Out>
__device__ __forceinline__ void rms_norm_row(const RmsNormParams& p) {
    __shared__ float sums[WARP];
    const uint64_t at = uint64_t(blockIdx.x) * p.cols;
    float* x = p.x + at;
    const uint32_t quads = (p.cols + 3) / 4;
    const auto input = [&](uint32_t quad) {
        float4 v = fetch<WIDE>(x, p.cols, quad);
        if (p.delta != nullptr) {
            const float4 delta = fetch<WIDE>(p.delta + at, p.cols, quad);
            v = make_float4(v.x + delta.x, v.y + delta.y, v.z + delta.z, v.w + delta.w);
        }
        return v;
    };

    float4 kept[KEPT];
#pragma unroll
    for (int i = 0; i < KEPT; ++i) {
        const uint32_t quad = threadIdx.x + i * blockDim.x;
        kept[i] = quad < quads ? input(quad) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < KEPT; ++i) {
        const uint32_t quad = threadIdx.x + i * blockDim.x;
        if (p.delta != nullptr && quad < quads) {
            put<WIDE>(x, p.cols, quad, kept[i]);
        }
        sum = squares_of(kept[i], sum);
    }
    for (uint32_t quad = threadIdx.x + KEPT * blockDim.x; quad < quads; quad += blockDim.x) {
        const float4 v = input(quad);
        if (p.delta != nullptr) {
            put<WIDE>(x, p.cols, quad, v);
        }
        sum = squares_of(v, sum);
    }

    sum = warp_sum(sum);
    const uint32_t lane = threadIdx.x % WARP;
    if (lane == 0) {
        sums[threadIdx.x / WARP] = sum;
    }
    __syncthreads();
    sum = warp_sum(lane < blockDim.x / WARP ? sums[lane] : 0.0f);
    const float factor = rsqrtf(sum / float(p.cols) + p.eps);

    Out* out = static_cast<Out*>(p.out) + at;
#pragma unroll
    for (int i = 0; i < KEPT; ++i) {
        const uint32_t quad = threadIdx.x + i * blockDim.x;
        if (quad < quads) {
            put<WIDE>(out, p.cols, quad, normed(kept[i], factor, fetch<WIDE>(p.weight, p.cols, quad)));
        }
    }
    for (uint32_t quad = threadIdx.x + KEPT * blockDim.x; quad < quads; quad += blockDim.x) {
        const float4 v = fetch<WIDE>(x, p.cols, quad);
        put<WIDE>(out, p.cols, quad, normed(v, factor, fetch<WIDE>(p.weight, p.cols, quad)));
    }
}

template <typename Out>
__device__ __forceinline__ void rms_norm(const RmsNormParams& p) {
    if (multiples(16, 4 * uint64_t(p.cols), address(p.x), address(p.delta), address(p.weight)) &&
        multiples(4 * sizeof(Out), address(p.out))) {
        rms_norm_row<true, Out>(p);
    } else {
        rms_norm_row<false, Out>(p);
    }
}

KERNEL __launch_bounds__(1024) rms_norm_f32(const RmsNormParams p) { rms_norm<float>(p); }
KERNEL __launch_bounds__(1024) rms_norm_f16(const RmsNormParams p) { rms_norm<__half>(p); }
KERNEL __launch_bounds__(1024) rms_norm_bf16(const RmsNormParams p) { rms_norm<__nv_bfloat16>(p); }

struct HeadNormParams {
    float* x;             // [m, head_dim]
    const float* weight;  // [head_dim]
    uint64_t heads;
    uint32_t head_dim;
    float eps;
};

template <bool WIDE>
__device__ __forceinline__ void head_norm(const HeadNormParams& p, uint64_t head) {
    float* x = p.x + head * p.head_dim;
    const uint32_t lane = threadIdx.x % WARP;
    const uint32_t quads = (p.head_dim + 3) / 4;
    float sum = 0.0f;
    for (uint32_t quad = lane; quad < quads; quad += WARP) {
        sum = squares_of(fetch<WIDE>(x, p.head_dim, quad), sum);
    }
    const float factor = rsqrtf(warp_sum(sum) / float(p.head_dim) + p.eps);
    for (uint32_t quad = lane; quad < quads; quad += WARP) {
        const float4 weight = fetch<WIDE>(p.weight, p.head_dim, quad);
        put<WIDE>(x, p.head_dim, quad, normed(fetch<WIDE>(x, p.head_dim, quad), factor, weight));
    }
}

// A warp per head.
KERNEL head_norm_f32(const HeadNormParams p) {
    const uint64_t head = (uint64_t(blockIdx.x) * blockDim.x + threadIdx.x) / WARP;
    if (head >= p.heads) {
        return;
    }
    if (multiples(16, 4 * uint64_t(p.head_dim), address(p.x), address(p.weight))) {
        head_norm<true>(p, head);
    } else {
        head_norm<false>(p, head);
    }
}
