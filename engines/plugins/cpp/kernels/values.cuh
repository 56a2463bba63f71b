// What all kernels share: how a value is read and written, sixteen bytes at a time, and how a kernel is launched.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

// A test without a GPU compiles these files for the host and brings its own (tests/engines/plugins/cuda_on_host.h).
#ifndef METAGEN_LAUNCH
#define METAGEN_LAUNCH(kernel, blocks, threads, stream) kernel<<<blocks, threads, 0, stream>>>
#endif

namespace metagen {

__device__ inline float widen(float value) { return value; }
__device__ inline float widen(__half value) { return __half2float(value); }
__device__ inline float widen(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ inline void narrow(float value, float& to) { to = value; }
__device__ inline void narrow(float value, __half& to) { to = __float2half_rn(value); }
__device__ inline void narrow(float value, __nv_bfloat16& to) { to = __float2bfloat16_rn(value); }

// kSize values that lie together, aligned so that one load takes them.
template <typename T, int kSize>
struct alignas(sizeof(T) * kSize) Pack {
    T at[kSize];
};

template <typename T, int kSize>
__device__ Pack<T, kSize> loadPack(Pack<T, kSize> const* p) {
    if constexpr (sizeof(T) * kSize == 16) {
        uint4 const bits = __ldg(reinterpret_cast<uint4 const*>(p));
        return *reinterpret_cast<Pack<T, kSize> const*>(&bits);
    } else {
        return *p;
    }
}

}  // namespace metagen
