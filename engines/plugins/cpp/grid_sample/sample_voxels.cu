// The kernel for volumes stored voxel by voxel, [n, d, h, w, c]: how TensorRT's own 3-D convolutions hold them.
//
// A voxel's channels lie together, so a thread reads 16 bytes of them at once, and a corner of a position is a whole
// line of the cache however the grid bends: loads are a quarter (float32) or an eighth (float16) of the other kernel's.
//
//     threadIdx.x   = neighbouring 16 bytes of a voxel
//     threadIdx.y   = a tile of positions, kTileW wide: neighbours share voxels in the L1 cache
//     kWalk         = planes that a thread walks through, for the same reason
//     blockIdx.y, z = further channels, the sample
//
// Channels beyond c, which pad a voxel to a multiple of eight, are sampled like the others.
#include "grid_sample/positions.cuh"

namespace metagen {
namespace {

#ifndef METAGEN_TILE_W  // the three are tuned together: benchmarks compile others
#define METAGEN_TILE_W 8
#define METAGEN_WALK 2
#define METAGEN_THREADS 128
#endif
constexpr int kTileW = METAGEN_TILE_W, kWalk = METAGEN_WALK, kThreads = METAGEN_THREADS;
constexpr int kMostLanes = 8;
static_assert(kThreads / kMostLanes >= kTileW, "a tile has at least one row");
constexpr int kMostBlocks = 65535;  // of a grid's y and z

// `packs` is the number of packs of a voxel.
template <typename T, int kSize, SampleMode kMode, Padding kPadding, bool kAlign>
__global__ void __launch_bounds__(kThreads)
    sample(SampleShape s, int packs, Pack<T, kSize> const* __restrict__ x, float const* __restrict__ grid,
           Pack<T, kSize>* __restrict__ out) {
    int const tileH = blockDim.y / kTileW;
    int const across = (s.outW + kTileW - 1) / kTileW, down = (s.outH + tileH - 1) / tileH;
    int const w = blockIdx.x % across * kTileW + threadIdx.y % kTileW;
    int const h = blockIdx.x / across % down * tileH + threadIdx.y / kTileW;
    int const firstDepth = blockIdx.x / across / down * kWalk, pack = blockIdx.y * blockDim.x + threadIdx.x;
    if (w >= s.outW || h >= s.outH || pack >= packs) return;
    int const plane = s.outH * s.outW;
    int64_t const sampleFirst = static_cast<int64_t>(blockIdx.z) * s.outD * plane;
    x += static_cast<int64_t>(blockIdx.z) * s.d * s.h * s.w * packs + pack;
    int const lastDepth = min(firstDepth + kWalk, s.outD);
    for (int depth = firstDepth; depth < lastDepth; ++depth) {
        int64_t const p = sampleFirst + static_cast<int64_t>(depth) * plane + h * s.outW + w;
        Pack<T, kSize> result;
        if constexpr (kMode == SampleMode::kNearest) {
            int const voxel = findNearest<kPadding, kAlign>(s, grid + p * 3);
            if (voxel >= 0) {
                result = loadPack(x + static_cast<int64_t>(voxel) * packs);
            } else {
#pragma unroll
                for (int c = 0; c < kSize; ++c) result.at[c] = T(0.f);
            }
        } else {
            Corners const corners = findCorners<kPadding, kAlign>(s, grid + p * 3);
            float sum[kSize] = {};
#pragma unroll
            for (int k = 0; k < 8; ++k) {
                Pack<T, kSize> const read = loadPack(x + static_cast<int64_t>(corners.voxel[k]) * packs);
#pragma unroll
                for (int c = 0; c < kSize; ++c) sum[c] = fmaf(widen(read.at[c]), corners.weight[k], sum[c]);
            }
#pragma unroll
            for (int c = 0; c < kSize; ++c) narrow(sum[c], result.at[c]);
        }
        out[p * packs + pack] = result;
    }
}

template <typename T, int kSize>
struct Launch {
    SampleShape s;
    SampleMode mode;
    void const* x;
    float const* grid;
    void* out;
    cudaStream_t stream;

    template <Padding kPadding, bool kAlign>
    void run() const {
        using Packed = Pack<T, kSize>;
        int const packs = s.c / kSize;
        int lanes = 1;
        while (lanes < packs && lanes < kMostLanes) lanes *= 2;
        dim3 const threads(lanes, kThreads / lanes);
        unsigned const tileH = threads.y / kTileW;
        unsigned const tiles = (s.outW + kTileW - 1) / kTileW * ((s.outH + tileH - 1) / tileH);
        dim3 const blocks(tiles * ((s.outD + kWalk - 1) / kWalk), (packs + lanes - 1) / lanes, s.n);
        auto const kernel = mode == SampleMode::kNearest ? sample<T, kSize, SampleMode::kNearest, kPadding, kAlign>
                                                         : sample<T, kSize, SampleMode::kBilinear, kPadding, kAlign>;
        METAGEN_LAUNCH(kernel, blocks, threads, stream)
        (s, packs, static_cast<Packed const*>(x), grid, static_cast<Packed*>(out));
    }
};

}  // namespace

cudaError_t sampleVoxels(SampleShape const& s, SampleOptions const& o, VolumeType type, void const* x,
                         float const* grid, void* out, cudaStream_t stream) {
    bool const half = type != VolumeType::kFloat32;
    if (s.n > kMostBlocks || s.c > kMostBlocks * kMostLanes || (half && s.c % 8)) return cudaErrorInvalidValue;
    if (type == VolumeType::kFloat16) {
        dispatch(o, Launch<__half, 8>{s, o.mode, x, grid, out, stream});
    } else if (type == VolumeType::kBFloat16) {
        dispatch(o, Launch<__nv_bfloat16, 8>{s, o.mode, x, grid, out, stream});
    } else if (s.c % 4 == 0) {
        dispatch(o, Launch<float, 4>{s, o.mode, x, grid, out, stream});
    } else {
        dispatch(o, Launch<float, 1>{s, o.mode, x, grid, out, stream});
    }
    return cudaPeekAtLastError();
}

}  // namespace metagen
