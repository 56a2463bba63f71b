// Enough of CUDA to run the plugin's kernels on the host, one thread after the other: no shared memory, no shuffles.
// Included before the .cu files, which g++ then compiles as C++.
#pragma once

#include <cuda_fp16.h>
#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __global__
#define __global__
#undef __device__
#define __device__

using std::max;
using std::min;

static dim3 blockIdx, blockDim, threadIdx;

template <typename T>
T __ldg(T const* p) {
    return *p;
}
inline int __float2int_rn(float value) { return static_cast<int>(std::nearbyint(value)); }
#define cudaPeekAtLastError() cudaSuccess

// kernel, then its arguments: every thread of every block.
template <typename Kernel>
struct HostLaunch {
    Kernel kernel;
    dim3 blocks, threads;

    template <typename... Arguments>
    void operator()(Arguments... arguments) const {
        blockDim = threads;
        for (blockIdx.z = 0; blockIdx.z < blocks.z; ++blockIdx.z)
            for (blockIdx.y = 0; blockIdx.y < blocks.y; ++blockIdx.y)
                for (blockIdx.x = 0; blockIdx.x < blocks.x; ++blockIdx.x)
                    for (threadIdx.z = 0; threadIdx.z < threads.z; ++threadIdx.z)
                        for (threadIdx.y = 0; threadIdx.y < threads.y; ++threadIdx.y)
                            for (threadIdx.x = 0; threadIdx.x < threads.x; ++threadIdx.x) kernel(arguments...);
    }
};

template <typename Kernel>
HostLaunch<Kernel> launchOnHost(Kernel kernel, dim3 blocks, dim3 threads) {
    return {kernel, blocks, threads};
}

#define METAGEN_LAUNCH(kernel, blocks, threads, stream) launchOnHost(kernel, blocks, threads)
