// Enough of CUDA to run the plugins' kernels on the host. Included before the .cu files, which g++ then compiles as C++.
//
// By default one thread runs after the other, for kernels whose threads do not meet. With METAGEN_TOGETHER the threads
// of a block are fibres that take turns: __syncthreads waits for the block, a shuffle for its warp.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <vector>

#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __global__
#define __global__
#undef __device__
#define __device__
#undef __shared__
#define __shared__ static  // one block runs at a time

using std::max;
using std::min;

namespace {  // every file runs its own kernels

dim3 blockIdx, blockDim, gridDim, threadIdx;

template <typename T>
T __ldg(T const* p) {
    return *p;
}
inline int __float2int_rn(float value) { return static_cast<int>(std::nearbyint(value)); }
#define cudaPeekAtLastError() cudaSuccess

class Fibres {
public:
    void run(dim3 threads, std::function<void()> const& kernel) {
        kernel_ = &kernel;
        count_ = threads.x * threads.y * threads.z;
        fibres_.resize(std::max<size_t>(fibres_.size(), count_));
        block_ = {count_, 0, 0};
        warps_.assign((count_ + 31) / 32, {32, 0, 0});
        for (unsigned i = 0; i < count_; ++i) begin(i);
        for (unsigned left = count_; left > 0;) {
            for (current_ = 0; current_ < count_; ++current_) {
                if (fibres_[current_].done) continue;
                threadIdx = dim3(current_ % threads.x, current_ / threads.x % threads.y, current_ / threads.x / threads.y);
                swapcontext(&scheduler_, &fibres_[current_].context);
                left -= fibres_[current_].done;
            }
        }
    }

    void meetBlock() { meet(block_); }

    float shuffleXor(float value, int offset) {
        fibres_[current_].shown = value;
        meet(warps_[current_ / 32]);
        float const read = fibres_[current_ ^ static_cast<unsigned>(offset)].shown;
        meet(warps_[current_ / 32]);
        return read;
    }

private:
    struct Barrier {
        unsigned size, arrived, passed;
    };
    struct Fibre {
        ucontext_t context;
        std::vector<char> stack;
        float shown;
        bool done;
    };

    void begin(unsigned i) {
        Fibre& fibre = fibres_[i];
        fibre.stack.resize(1 << 17);
        fibre.done = false;
        getcontext(&fibre.context);
        fibre.context.uc_stack.ss_sp = fibre.stack.data();
        fibre.context.uc_stack.ss_size = fibre.stack.size();
        fibre.context.uc_link = &scheduler_;
        makecontext(&fibre.context, &Fibres::enter, 0);
    }

    static void enter();

    void meet(Barrier& barrier) {
        unsigned const turn = barrier.passed, mine = current_;
        dim3 const index = threadIdx;
        if (++barrier.arrived == barrier.size) {
            barrier.arrived = 0;
            ++barrier.passed;
        }
        while (barrier.passed == turn) swapcontext(&fibres_[mine].context, &scheduler_);
        threadIdx = index;
    }

    std::function<void()> const* kernel_ = nullptr;
    unsigned count_ = 0, current_ = 0;
    std::vector<Fibre> fibres_;
    Barrier block_{};
    std::vector<Barrier> warps_;
    ucontext_t scheduler_;
};

Fibres fibres;

inline void Fibres::enter() {
    (*fibres.kernel_)();
    fibres.fibres_[fibres.current_].done = true;
}

inline void __syncthreads() { fibres.meetBlock(); }
inline float __shfl_xor_sync(unsigned, float value, int offset) { return fibres.shuffleXor(value, offset); }

// kernel, then its arguments: every thread of every block.
template <typename Kernel>
struct HostLaunch {
    Kernel kernel;
    dim3 blocks, threads;

    template <typename... Arguments>
    void operator()(Arguments... arguments) const {
        blockDim = threads;
        gridDim = blocks;
        for (blockIdx.z = 0; blockIdx.z < blocks.z; ++blockIdx.z)
            for (blockIdx.y = 0; blockIdx.y < blocks.y; ++blockIdx.y)
                for (blockIdx.x = 0; blockIdx.x < blocks.x; ++blockIdx.x) runBlock(arguments...);
    }

    template <typename... Arguments>
    void runBlock(Arguments... arguments) const {
#ifdef METAGEN_TOGETHER
        fibres.run(threads, [&] { kernel(arguments...); });
#else
        for (threadIdx.z = 0; threadIdx.z < threads.z; ++threadIdx.z)
            for (threadIdx.y = 0; threadIdx.y < threads.y; ++threadIdx.y)
                for (threadIdx.x = 0; threadIdx.x < threads.x; ++threadIdx.x) kernel(arguments...);
#endif
    }
};

template <typename Kernel>
HostLaunch<Kernel> launchOnHost(Kernel kernel, dim3 blocks, dim3 threads) {
    return {kernel, blocks, threads};
}

}  // namespace

#define METAGEN_LAUNCH(kernel, blocks, threads, stream) launchOnHost(kernel, blocks, threads)
