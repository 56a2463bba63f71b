// MetagenGridSample3D on CUDA: the kernel's interface, which both TensorRT faces call.
//
// What it computes is torch.nn.functional.grid_sample of a volume; see specs/ops/_grid_sample_3d.py for the meaning.
// Positions, weights and sums are float32 whatever the volume's type. A position that is not finite reads as outside.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace metagen {

enum class SampleMode : int32_t { kBilinear = 0, kNearest = 1 };
enum class Padding : int32_t { kZeros = 0, kBorder = 1, kReflection = 2 };
enum class VolumeType : int32_t { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };
// Of x and out: channel by channel [n, c, d, h, w], or voxel by voxel [n, d, h, w, c].
enum class Layout : int32_t { kPlanes = 0, kVoxels = 1 };

struct SampleOptions {
    SampleMode mode;
    Padding padding;
    int32_t alignCorners;
};

// Sizes of x [n, c, d, h, w], grid [n, outD, outH, outW, 3] and out [n, c, outD, outH, outW], all contiguous. With
// Layout::kVoxels, c counts the channels that pad a voxel too: a multiple of 8 in half precision.
struct SampleShape {
    int32_t n, c, d, h, w;
    int32_t outD, outH, outW;
};

// Enqueues the kernel on `stream`. cudaErrorInvalidValue for a volume or grid of about 2^31 elements a channel or more.
cudaError_t gridSample3d(SampleShape const& shape, SampleOptions const& options, VolumeType type, Layout layout,
                         void const* x, float const* grid, void* out, cudaStream_t stream);

// The kernel of each layout, which `gridSample3d` calls once it has checked the sizes.
cudaError_t samplePlanes(SampleShape const& shape, SampleOptions const& options, VolumeType type, void const* x,
                         float const* grid, void* out, cudaStream_t stream);
cudaError_t sampleVoxels(SampleShape const& shape, SampleOptions const& options, VolumeType type, void const* x,
                         float const* grid, void* out, cudaStream_t stream);

}  // namespace metagen
