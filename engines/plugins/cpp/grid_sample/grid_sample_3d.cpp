// Checks the sizes and picks the kernel of the volume's layout; and the kernel by itself, for tests and benchmarks.
#include "grid_sample/grid_sample_3d.h"

namespace metagen {
namespace {

constexpr int64_t kLimit = (int64_t{1} << 31) - 4096;  // tiles round sizes up
constexpr int32_t kLongest = 1 << 24;                  // float32 counts the voxels of an axis exactly below

bool fits(SampleShape const& s) {
    int64_t const voxels = int64_t{s.d} * s.h * s.w, positions = int64_t{s.outD} * s.outH * s.outW;
    return voxels < kLimit && positions < kLimit && s.d < kLongest && s.h < kLongest && s.w < kLongest;
}

}  // namespace

cudaError_t gridSample3d(SampleShape const& shape, SampleOptions const& options, VolumeType type, Layout layout,
                         void const* x, float const* grid, void* out, cudaStream_t stream) {
    if (!fits(shape)) return cudaErrorInvalidValue;
    if (shape.n == 0 || shape.c == 0 || shape.outD == 0 || shape.outH == 0 || shape.outW == 0) return cudaSuccess;
    return layout == Layout::kPlanes ? samplePlanes(shape, options, type, x, grid, out, stream)
                                     : sampleVoxels(shape, options, type, x, grid, out, stream);
}

}  // namespace metagen

// `sizes`: n, c, d, h, w, outD, outH, outW; `options`: SampleMode, Padding, alignCorners, VolumeType, Layout.
// Returns a cudaError_t.
extern "C" __attribute__((visibility("default"))) int32_t metagenGridSample3d(int32_t const* sizes,
                                                                              int32_t const* options, void const* x,
                                                                              float const* grid, void* out,
                                                                              cudaStream_t stream) {
    metagen::SampleShape const shape{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6], sizes[7]};
    metagen::SampleOptions const chosen{static_cast<metagen::SampleMode>(options[0]),
                                        static_cast<metagen::Padding>(options[1]), options[2]};
    return metagen::gridSample3d(shape, chosen, static_cast<metagen::VolumeType>(options[3]),
                                 static_cast<metagen::Layout>(options[4]), x, grid, out, stream);
}
