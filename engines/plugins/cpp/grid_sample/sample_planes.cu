// The kernel for volumes stored channel by channel, [n, c, d, h, w]: what torch and ONNX Runtime hold.
//
// One thread reads one position for kChannels channels: corners and weights are computed once and used for each.
//
//     threadIdx.x           = neighbouring positions of a plane: stores are coalesced, and so are loads of a smooth grid
//     threadIdx.y           = neighbouring planes, which read the same voxels: they share them in the L1 cache
//     blockIdx.y, .z        = the channels' chunk, the sample
//
// A corner outside the volume has weight 0 and the address of a voxel inside, so that no load is conditional.
// What bounds it is the number of loads, eight a value, each of which touches several cache lines when rows are bent;
// `sample_voxels.cu` has an eighth or a quarter of them.
#include "grid_sample/positions.cuh"

namespace metagen {
namespace {

#ifndef METAGEN_PLANE  // the three are tuned together: benchmarks compile others
#define METAGEN_PLANE 256
#define METAGEN_DEPTH 2
#define METAGEN_CHANNELS 2
#endif
constexpr int kPlane = METAGEN_PLANE, kDepth = METAGEN_DEPTH, kChannels = METAGEN_CHANNELS;
constexpr int kMostBlocks = 65535;  // of a grid's y and z

// The index of this thread's position in its sample, or -1 for a thread beyond the last one.
__device__ int findIndex(SampleShape const& s) {
    int const plane = s.outH * s.outW, chunks = (plane + kPlane - 1) / kPlane;
    int const depth = blockIdx.x / chunks * kDepth + threadIdx.y;
    int const inPlane = blockIdx.x % chunks * kPlane + threadIdx.x;
    return depth < s.outD && inPlane < plane ? depth * plane + inPlane : -1;
}

template <typename T, SampleMode kMode, Padding kPadding, bool kAlign>
__global__ void __launch_bounds__(kPlane* kDepth)
    sample(SampleShape s, T const* __restrict__ x, float const* __restrict__ grid, T* __restrict__ out) {
    int const positions = s.outD * s.outH * s.outW, voxels = s.d * s.h * s.w;
    int const p = findIndex(s);
    if (p < 0) return;
    float const* g = grid + (static_cast<int64_t>(blockIdx.z) * positions + p) * 3;
    int const first = blockIdx.y * kChannels, count = min(kChannels, s.c - first);
    int64_t const channel = static_cast<int64_t>(blockIdx.z) * s.c + first;
    x += channel * voxels;
    out += channel * positions + p;
    if constexpr (kMode == SampleMode::kNearest) {
        int const voxel = findNearest<kPadding, kAlign>(s, g);
        x += max(voxel, 0);
#pragma unroll 4
        for (int c = 0; c < count; ++c, x += voxels, out += positions) *out = voxel < 0 ? T(0.f) : __ldg(x);
    } else {
        Corners const corners = findCorners<kPadding, kAlign>(s, g);
#pragma unroll 4
        for (int c = 0; c < count; ++c, x += voxels, out += positions) {
            float sum = 0.f;
#pragma unroll
            for (int k = 0; k < 8; ++k) sum = fmaf(widen(__ldg(x + corners.voxel[k])), corners.weight[k], sum);
            narrow(sum, *out);
        }
    }
}

template <typename T>
struct Launch {
    SampleShape s;
    SampleMode mode;
    void const* x;
    float const* grid;
    void* out;
    cudaStream_t stream;

    template <Padding kPadding, bool kAlign>
    void run() const {
        unsigned const chunks = (s.outH * s.outW + kPlane - 1) / kPlane, layers = (s.outD + kDepth - 1) / kDepth;
        dim3 const blocks(chunks * layers, (s.c + kChannels - 1) / kChannels, s.n), threads(kPlane, kDepth);
        auto const kernel = mode == SampleMode::kNearest ? sample<T, SampleMode::kNearest, kPadding, kAlign>
                                                         : sample<T, SampleMode::kBilinear, kPadding, kAlign>;
        METAGEN_LAUNCH(kernel, blocks, threads, stream)
        (s, static_cast<T const*>(x), grid, static_cast<T*>(out));
    }
};

}  // namespace

cudaError_t samplePlanes(SampleShape const& s, SampleOptions const& o, VolumeType type, void const* x,
                         float const* grid, void* out, cudaStream_t stream) {
    if (s.n > kMostBlocks || s.c > kMostBlocks * kChannels) return cudaErrorInvalidValue;
    switch (type) {
        case VolumeType::kFloat32: dispatch(o, Launch<float>{s, o.mode, x, grid, out, stream}); break;
        case VolumeType::kFloat16: dispatch(o, Launch<__half>{s, o.mode, x, grid, out, stream}); break;
        case VolumeType::kBFloat16: dispatch(o, Launch<__nv_bfloat16>{s, o.mode, x, grid, out, stream}); break;
    }
    return cudaPeekAtLastError();
}

}  // namespace metagen
