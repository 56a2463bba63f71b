// MetagenGridSample3D as an IPluginV2DynamicExt: TensorRT 8.6.
#include "plugin_fields.h"

#if NV_TENSORRT_MAJOR < 10

#include <string>

namespace metagen {
namespace {

using namespace nvinfer1;

class GridSamplePlugin final : public IPluginV2DynamicExt {
public:
    explicit GridSamplePlugin(SampleOptions const& options) : options_(options) {}

    char const* getPluginType() const noexcept override { return kOpType; }
    char const* getPluginVersion() const noexcept override { return kPluginVersion; }
    void setPluginNamespace(char const* name) noexcept override { namespace_ = name; }
    char const* getPluginNamespace() const noexcept override { return namespace_.c_str(); }
    int32_t getNbOutputs() const noexcept override { return 1; }
    int32_t initialize() noexcept override { return 0; }
    void terminate() noexcept override {}
    void destroy() noexcept override { delete this; }

    IPluginV2DynamicExt* clone() const noexcept override {
        auto* copy = new GridSamplePlugin(options_);
        copy->namespace_ = namespace_;
        return copy;
    }

    DataType getOutputDataType(int32_t, DataType const* inputs, int32_t) const noexcept override { return inputs[0]; }

    DimsExprs getOutputDimensions(int32_t, DimsExprs const* inputs, int32_t, IExprBuilder&) noexcept override {
        return joinShape(inputs[0], inputs[1]);
    }

    bool supportsFormatCombination(int32_t position, PluginTensorDesc const* all, int32_t, int32_t) noexcept override {
        return takes(position, all[0], all[position]);
    }

    void configurePlugin(DynamicPluginTensorDesc const*, int32_t, DynamicPluginTensorDesc const*,
                         int32_t) noexcept override {}

    size_t getWorkspaceSize(PluginTensorDesc const*, int32_t, PluginTensorDesc const*,
                            int32_t) const noexcept override {
        return 0;
    }

    int32_t enqueue(PluginTensorDesc const* inputs, PluginTensorDesc const*, void const* const* data,
                    void* const* results, void*, cudaStream_t stream) noexcept override {
        return sample(options_, inputs, data, results, stream);
    }

    size_t getSerializationSize() const noexcept override { return sizeof(options_); }
    void serialize(void* buffer) const noexcept override { std::memcpy(buffer, &options_, sizeof(options_)); }

private:
    SampleOptions options_;
    std::string namespace_ = kPluginNamespace;
};

class GridSampleCreator final : public IPluginCreator {
public:
    char const* getPluginName() const noexcept override { return kOpType; }
    char const* getPluginVersion() const noexcept override { return kPluginVersion; }
    void setPluginNamespace(char const* name) noexcept override { namespace_ = name; }
    char const* getPluginNamespace() const noexcept override { return namespace_.c_str(); }
    PluginFieldCollection const* getFieldNames() noexcept override { return &names_; }

    IPluginV2* createPlugin(char const*, PluginFieldCollection const* fields) noexcept override {
        auto const options = parseOptions(*fields);
        return options ? new GridSamplePlugin(*options) : nullptr;
    }

    IPluginV2* deserializePlugin(char const*, void const* data, size_t length) noexcept override {
        SampleOptions options;
        if (length != sizeof(options)) return nullptr;
        std::memcpy(&options, data, sizeof(options));
        return new GridSamplePlugin(options);
    }

private:
    PluginField fields_[3] = {
        {"mode", nullptr, PluginFieldType::kCHAR, 0},
        {"padding_mode", nullptr, PluginFieldType::kCHAR, 0},
        {"align_corners", nullptr, PluginFieldType::kINT32, 1},
    };
    PluginFieldCollection names_{3, fields_};
    std::string namespace_ = kPluginNamespace;
};

}  // namespace
}  // namespace metagen

// What IPluginRegistry::loadLibrary looks for.
extern "C" __attribute__((visibility("default"))) nvinfer1::IPluginCreator* const* getPluginCreators(int32_t& count) {
    static metagen::GridSampleCreator creator;
    static nvinfer1::IPluginCreator* const creators[] = {&creator};
    count = 1;
    return creators;
}

#endif
