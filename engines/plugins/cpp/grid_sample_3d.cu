// One thread reads one position for kChannels channels: offsets and weights are computed once and used for each.
//
//     threadIdx.x           = neighbouring positions of a plane: stores are coalesced, and so are loads of a smooth grid
//     threadIdx.y           = neighbouring planes, which read the same voxels: they share them in the L1 cache
//     blockIdx.y, .z        = the channels' chunk, the sample
//
// A corner outside the volume has weight 0 and the address of a voxel inside, so that no load is conditional.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "grid_sample_3d.h"

namespace metagen {
namespace {

#ifndef METAGEN_PLANE  // the three are tuned together: benchmarks compile others
#define METAGEN_PLANE 128
#define METAGEN_DEPTH 2
#define METAGEN_CHANNELS 8
#endif
constexpr int kPlane = METAGEN_PLANE, kDepth = METAGEN_DEPTH, kChannels = METAGEN_CHANNELS;
constexpr int kThreads = kPlane * kDepth;
constexpr int64_t kLimit = int64_t{1} << 31;
constexpr int kMostBlocks = 65535;  // of a grid's y and z

__device__ float load(float const* p) { return __ldg(p); }
__device__ float load(__half const* p) { return __half2float(__ldg(p)); }
__device__ float load(__nv_bfloat16 const* p) { return __bfloat162float(__ldg(p)); }
__device__ void store(float* p, float value) { *p = value; }
__device__ void store(__half* p, float value) { *p = __float2half_rn(value); }
__device__ void store(__nv_bfloat16* p, float value) { *p = __float2bfloat16_rn(value); }

// Mirrors at `low` and `low + span`; a span of 0 has a single place.
__device__ float reflect(float position, float span, float low) {
    float const period = fmaxf(2.f * span, 1.f);
    float const away = fabsf(position - low);
    float const turned = fabsf(away - floorf(away / period) * period - span);
    return span - turned + low;
}

// The voxel coordinate of `g` in [-1, 1] along an axis of `size` voxels. fmaxf takes NaN to its other argument.
template <Padding kPadding, bool kAlign>
__device__ float findPosition(float g, int size) {
    float const voxels = static_cast<float>(size);
    float position = kAlign ? (g + 1.f) / 2.f * (voxels - 1.f) : ((g + 1.f) * voxels - 1.f) / 2.f;
    if (kPadding == Padding::kZeros) return fminf(fmaxf(position, -1.f), voxels);
    if (kPadding == Padding::kReflection) {
        position = kAlign ? reflect(position, voxels - 1.f, 0.f) : reflect(position, voxels, -.5f);
    }
    return fminf(fmaxf(position, 0.f), voxels - 1.f);
}

__device__ bool isInside(int place, int size) { return static_cast<unsigned>(place) < static_cast<unsigned>(size); }
__device__ int clamp(int place, int size) { return min(max(place, 0), size - 1); }

// The two places along one axis, inside the volume, and their weights.
struct Pair {
    int place[2];
    float weight[2];
};

template <Padding kPadding, bool kAlign>
__device__ Pair findPair(float g, int size) {
    float const position = findPosition<kPadding, kAlign>(g, size);
    float const low = floorf(position);
    int const place = static_cast<int>(low);
    float const fraction = position - low;
    Pair pair;
    pair.weight[0] = isInside(place, size) ? 1.f - fraction : 0.f;
    pair.weight[1] = isInside(place + 1, size) ? fraction : 0.f;
    pair.place[0] = clamp(place, size);
    pair.place[1] = clamp(place + 1, size);
    return pair;
}

// The index of this thread's position in its sample, or -1 for a thread beyond the last one.
__device__ int findIndex(SampleShape const& s) {
    int const plane = s.outH * s.outW, chunks = (plane + kPlane - 1) / kPlane;
    int const depth = blockIdx.x / chunks * kDepth + threadIdx.y;
    int const inPlane = blockIdx.x % chunks * kPlane + threadIdx.x;
    return depth < s.outD && inPlane < plane ? depth * plane + inPlane : -1;
}

template <typename T, Padding kPadding, bool kAlign>
__global__ void __launch_bounds__(kThreads)
    sampleTrilinear(SampleShape s, T const* __restrict__ x, float const* __restrict__ grid, T* __restrict__ out) {
    int const positions = s.outD * s.outH * s.outW, voxels = s.d * s.h * s.w;
    int const p = findIndex(s);
    if (p < 0) return;
    float const* g = grid + (static_cast<int64_t>(blockIdx.z) * positions + p) * 3;
    Pair const along_w = findPair<kPadding, kAlign>(__ldg(g), s.w);
    Pair const along_h = findPair<kPadding, kAlign>(__ldg(g + 1), s.h);
    Pair const along_d = findPair<kPadding, kAlign>(__ldg(g + 2), s.d);
    int offset[8];
    float weight[8];
#pragma unroll
    for (int k = 0; k < 8; ++k) {
        int const i = k & 1, j = k >> 1 & 1, l = k >> 2;
        offset[k] = (along_d.place[l] * s.h + along_h.place[j]) * s.w + along_w.place[i];
        weight[k] = along_d.weight[l] * along_h.weight[j] * along_w.weight[i];
    }
    int const first = blockIdx.y * kChannels, count = min(kChannels, s.c - first);
    int64_t const channel = static_cast<int64_t>(blockIdx.z) * s.c + first;
    x += channel * voxels;
    out += channel * positions + p;
#pragma unroll 4
    for (int c = 0; c < count; ++c, x += voxels, out += positions) {
        float sum = 0.f;
#pragma unroll
        for (int k = 0; k < 8; ++k) sum = fmaf(load(x + offset[k]), weight[k], sum);
        store(out, sum);
    }
}

template <typename T, Padding kPadding, bool kAlign>
__global__ void __launch_bounds__(kThreads)
    sampleNearest(SampleShape s, T const* __restrict__ x, float const* __restrict__ grid, T* __restrict__ out) {
    int const positions = s.outD * s.outH * s.outW, voxels = s.d * s.h * s.w;
    int const p = findIndex(s);
    if (p < 0) return;
    float const* g = grid + (static_cast<int64_t>(blockIdx.z) * positions + p) * 3;
    int const i = __float2int_rn(findPosition<kPadding, kAlign>(__ldg(g), s.w));
    int const j = __float2int_rn(findPosition<kPadding, kAlign>(__ldg(g + 1), s.h));
    int const l = __float2int_rn(findPosition<kPadding, kAlign>(__ldg(g + 2), s.d));
    bool const inside = isInside(i, s.w) && isInside(j, s.h) && isInside(l, s.d);
    int const offset = inside ? (l * s.h + j) * s.w + i : 0;
    int const first = blockIdx.y * kChannels, count = min(kChannels, s.c - first);
    int64_t const channel = static_cast<int64_t>(blockIdx.z) * s.c + first;
    x += channel * voxels + offset;
    out += channel * positions + p;
#pragma unroll 4
    for (int c = 0; c < count; ++c, x += voxels, out += positions) store(out, inside ? load(x) : 0.f);
}

template <typename T, Padding kPadding, bool kAlign>
void launch(SampleShape const& s, SampleMode mode, void const* x, float const* grid, void* out, cudaStream_t stream) {
    unsigned const chunks = (s.outH * s.outW + kPlane - 1) / kPlane, layers = (s.outD + kDepth - 1) / kDepth;
    dim3 const blocks(chunks * layers, (s.c + kChannels - 1) / kChannels, s.n), threads(kPlane, kDepth);
    auto const kernel = mode == SampleMode::kNearest ? sampleNearest<T, kPadding, kAlign>
                                                     : sampleTrilinear<T, kPadding, kAlign>;
    kernel<<<blocks, threads, 0, stream>>>(s, static_cast<T const*>(x), grid, static_cast<T*>(out));
}

template <typename T, Padding kPadding>
void launchAligned(SampleShape const& s, SampleOptions const& o, void const* x, float const* grid, void* out,
                   cudaStream_t stream) {
    if (o.alignCorners) {
        launch<T, kPadding, true>(s, o.mode, x, grid, out, stream);
    } else {
        launch<T, kPadding, false>(s, o.mode, x, grid, out, stream);
    }
}

template <typename T>
void launchPadded(SampleShape const& s, SampleOptions const& o, void const* x, float const* grid, void* out,
                  cudaStream_t stream) {
    switch (o.padding) {
        case Padding::kZeros: return launchAligned<T, Padding::kZeros>(s, o, x, grid, out, stream);
        case Padding::kBorder: return launchAligned<T, Padding::kBorder>(s, o, x, grid, out, stream);
        case Padding::kReflection: return launchAligned<T, Padding::kReflection>(s, o, x, grid, out, stream);
    }
}

bool fits(SampleShape const& s) {
    int64_t const voxels = static_cast<int64_t>(s.d) * s.h * s.w;
    int64_t const positions = static_cast<int64_t>(s.outD) * s.outH * s.outW;
    // planes are rounded up to whole blocks, and float32 counts voxels of an axis exactly below 2^24
    return voxels < kLimit && positions < kLimit - kThreads && s.n <= kMostBlocks && s.c <= kMostBlocks * kChannels &&
           s.d < 1 << 24 && s.h < 1 << 24 && s.w < 1 << 24;
}

}  // namespace

cudaError_t gridSample3d(SampleShape const& shape, SampleOptions const& options, VolumeType type, void const* x,
                         float const* grid, void* out, cudaStream_t stream) {
    if (!fits(shape)) return cudaErrorInvalidValue;
    if (shape.n == 0 || shape.c == 0 || shape.outD == 0 || shape.outH == 0 || shape.outW == 0) return cudaSuccess;
    switch (type) {
        case VolumeType::kFloat32: launchPadded<float>(shape, options, x, grid, out, stream); break;
        case VolumeType::kFloat16: launchPadded<__half>(shape, options, x, grid, out, stream); break;
        case VolumeType::kBFloat16: launchPadded<__nv_bfloat16>(shape, options, x, grid, out, stream); break;
    }
    return cudaPeekAtLastError();
}

}  // namespace metagen
