// What the library offers to anything that can call C, without TensorRT: what it is, and the kernel itself.
#include <NvInferRuntime.h>

#include "grid_sample_3d.h"

#define METAGEN_TEXT(x) #x
#define METAGEN_SPELL(x) METAGEN_TEXT(x)
#define METAGEN_EXPORT extern "C" __attribute__((visibility("default")))

// {"tensorrt": major version of the headers it was compiled with, "ops": [...]}; engines/plugins reads it.
METAGEN_EXPORT char const* metagenPlugins() {
    return "{\"tensorrt\": " METAGEN_SPELL(NV_TENSORRT_MAJOR) ", \"ops\": [\"MetagenGridSample3D\"]}";
}

// The kernel alone, for tests and benchmarks. `sizes`: n, c, d, h, w, outD, outH, outW; `options`: SampleMode, Padding,
// alignCorners, VolumeType, Layout. Returns a cudaError_t.
METAGEN_EXPORT int32_t metagenGridSample3d(int32_t const* sizes, int32_t const* options, void const* x,
                                           float const* grid, void* out, cudaStream_t stream) {
    metagen::SampleShape const shape{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6], sizes[7]};
    metagen::SampleOptions const chosen{static_cast<metagen::SampleMode>(options[0]),
                                        static_cast<metagen::Padding>(options[1]), options[2]};
    return metagen::gridSample3d(shape, chosen, static_cast<metagen::VolumeType>(options[3]),
                                 static_cast<metagen::Layout>(options[4]), x, grid, out, stream);
}

// IPluginRegistry::loadLibrary hands over its logger here; nothing in this library logs.
METAGEN_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder*) {}
