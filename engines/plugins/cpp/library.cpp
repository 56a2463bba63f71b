// The library's entry points: what it says of itself to anything that can call C, and what TensorRT's loader looks for.
#include <NvInferRuntime.h>

#include "face/plugin_v2.h"
#include "face/plugin_v3.h"
#include "grid_sample/grid_sample_op.h"
#include "step/step_attention_op.h"
#include "step/step_linear_op.h"

#define METAGEN_TEXT(x) #x
#define METAGEN_SPELL(x) METAGEN_TEXT(x)
#define METAGEN_EXPORT extern "C" __attribute__((visibility("default")))

// {"tensorrt": major version of the headers it was compiled with, "ops": [...]}; engines/plugins reads it.
METAGEN_EXPORT char const* metagenPlugins() {
    return "{\"tensorrt\": " METAGEN_SPELL(NV_TENSORRT_MAJOR)
           ", \"ops\": [\"MetagenGridSample3D\", \"MetagenStepAttention\", \"MetagenStepLinear\"]}";
}

// IPluginRegistry::loadLibrary hands over its logger here; nothing in this library logs.
METAGEN_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder*) {}

namespace {

#if NV_TENSORRT_MAJOR < 10
using Creator = nvinfer1::IPluginCreator;
template <typename Op>
using CreatorOf = metagen::CreatorV2<Op>;
#define METAGEN_ENTRY getPluginCreators
#else
using Creator = nvinfer1::IPluginCreatorInterface;
template <typename Op>
using CreatorOf = metagen::CreatorV3<Op>;
#define METAGEN_ENTRY getCreators
#endif

}  // namespace

METAGEN_EXPORT Creator* const* METAGEN_ENTRY(int32_t& count) {
    static CreatorOf<metagen::GridSampleOp> gridSample;
    static CreatorOf<metagen::StepAttentionOp> stepAttention;
    static CreatorOf<metagen::StepLinearOp> stepLinear;
    static Creator* const creators[] = {&gridSample, &stepAttention, &stepLinear};
    count = 3;
    return creators;
}
