#include "device.cuh"
struct AxpyParams { const float* x; float* y; unsigned n; float a; };
extern "C" __global__ void __launch_bounds__(256) softgpu_axpy(const AxpyParams p) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < p.n) p.y[i] += p.a * p.x[i];
}
