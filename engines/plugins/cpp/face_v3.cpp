// MetagenGridSample3D as an IPluginV3: TensorRT 10 and 11.
#include "plugin_fields.h"

#if NV_TENSORRT_MAJOR >= 10

namespace metagen {
namespace {

using namespace nvinfer1;

class GridSamplePlugin final : public IPluginV3,
                               public IPluginV3OneCore,
                               public IPluginV3OneBuild,
                               public IPluginV3OneRuntime {
public:
    explicit GridSamplePlugin(SampleOptions const& options) : options_(options) {}

    IPluginCapability* getCapabilityInterface(PluginCapabilityType type) noexcept override {
        switch (type) {
            case PluginCapabilityType::kCORE: return static_cast<IPluginV3OneCore*>(this);
            case PluginCapabilityType::kBUILD: return static_cast<IPluginV3OneBuild*>(this);
            case PluginCapabilityType::kRUNTIME: return static_cast<IPluginV3OneRuntime*>(this);
        }
        return nullptr;
    }

    IPluginV3* clone() noexcept override { return new GridSamplePlugin(options_); }

    char const* getPluginName() const noexcept override { return kOpType; }
    char const* getPluginVersion() const noexcept override { return kPluginVersion; }
    char const* getPluginNamespace() const noexcept override { return kPluginNamespace; }
    int32_t getNbOutputs() const noexcept override { return 1; }

    int32_t configurePlugin(DynamicPluginTensorDesc const*, int32_t, DynamicPluginTensorDesc const*,
                            int32_t) noexcept override {
        return 0;
    }

    int32_t getOutputDataTypes(DataType* outputs, int32_t, DataType const* inputs, int32_t) const noexcept override {
        outputs[0] = inputs[0];
        return 0;
    }

    int32_t getOutputShapes(DimsExprs const* inputs, int32_t, DimsExprs const*, int32_t, DimsExprs* outputs, int32_t,
                            IExprBuilder&) noexcept override {
        outputs[0] = joinShape(inputs[0], inputs[1]);
        return 0;
    }

    bool supportsFormatCombination(int32_t position, DynamicPluginTensorDesc const* all, int32_t,
                                   int32_t) noexcept override {
        return takes(position, all[0].desc, all[position].desc);
    }

    int32_t onShapeChange(PluginTensorDesc const*, int32_t, PluginTensorDesc const*, int32_t) noexcept override {
        return 0;
    }

    int32_t enqueue(PluginTensorDesc const* inputs, PluginTensorDesc const*, void const* const* data,
                    void* const* results, void*, cudaStream_t stream) noexcept override {
        return sample(options_, inputs, data, results, stream);
    }

    IPluginV3* attachToContext(IPluginResourceContext*) noexcept override { return clone(); }

    // As the parser hands them over, so that one function reads both.
    PluginFieldCollection const* getFieldsToSerialize() noexcept override {
        char const *mode = spellMode(options_.mode), *padding = spellPadding(options_.padding);
        fields_[0] = {"mode", mode, PluginFieldType::kCHAR, static_cast<int32_t>(std::strlen(mode))};
        fields_[1] = {"padding_mode", padding, PluginFieldType::kCHAR, static_cast<int32_t>(std::strlen(padding))};
        fields_[2] = {"align_corners", &options_.alignCorners, PluginFieldType::kINT32, 1};
        serialized_ = {3, fields_};
        return &serialized_;
    }

private:
    SampleOptions options_;
    PluginField fields_[3];
    PluginFieldCollection serialized_{};
};

class GridSampleCreator final : public IPluginCreatorV3One {
public:
    char const* getPluginName() const noexcept override { return kOpType; }
    char const* getPluginVersion() const noexcept override { return kPluginVersion; }
    char const* getPluginNamespace() const noexcept override { return kPluginNamespace; }
    PluginFieldCollection const* getFieldNames() noexcept override { return &names_; }

    IPluginV3* createPlugin(char const*, PluginFieldCollection const* fields, TensorRTPhase) noexcept override {
        auto const options = parseOptions(*fields);
        return options ? new GridSamplePlugin(*options) : nullptr;
    }

private:
    PluginField fields_[3] = {
        {"mode", nullptr, PluginFieldType::kCHAR, 0},
        {"padding_mode", nullptr, PluginFieldType::kCHAR, 0},
        {"align_corners", nullptr, PluginFieldType::kINT32, 1},
    };
    PluginFieldCollection names_{3, fields_};
};

}  // namespace
}  // namespace metagen

// What IPluginRegistry::loadLibrary looks for.
extern "C" __attribute__((visibility("default"))) nvinfer1::IPluginCreatorInterface* const* getCreators(
    int32_t& count) {
    static metagen::GridSampleCreator creator;
    static nvinfer1::IPluginCreatorInterface* const creators[] = {&creator};
    count = 1;
    return creators;
}

#endif
