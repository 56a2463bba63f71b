// What the library says of itself to anything that can call C; no TensorRT is needed to ask.
#include <NvInferRuntime.h>

#define METAGEN_TEXT(x) #x
#define METAGEN_SPELL(x) METAGEN_TEXT(x)
#define METAGEN_EXPORT extern "C" __attribute__((visibility("default")))

// {"tensorrt": major version of the headers it was compiled with, "ops": [...]}; engines/plugins reads it.
METAGEN_EXPORT char const* metagenPlugins() {
    return "{\"tensorrt\": " METAGEN_SPELL(NV_TENSORRT_MAJOR) ", \"ops\": [\"MetagenGridSample3D\"]}";
}

// IPluginRegistry::loadLibrary hands over its logger here; nothing in this library logs.
METAGEN_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder*) {}
