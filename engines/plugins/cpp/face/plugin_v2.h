// An op as an IPluginV2DynamicExt: TensorRT 8.6. What an op has to say of itself: face/op.h.
#pragma once

#include "face/op.h"

#if NV_TENSORRT_MAJOR < 10

#include <string>

namespace metagen {

template <typename Op>
class PluginV2 final : public nvinfer1::IPluginV2DynamicExt {
    using Options = typename Op::Options;
    using DataType = nvinfer1::DataType;
    using DimsExprs = nvinfer1::DimsExprs;
    using Desc = nvinfer1::PluginTensorDesc;
    using DynamicDesc = nvinfer1::DynamicPluginTensorDesc;

public:
    explicit PluginV2(Options const& options) : options_(options) {}

    char const* getPluginType() const noexcept override { return Op::kName; }
    char const* getPluginVersion() const noexcept override { return kPluginVersion; }
    void setPluginNamespace(char const* name) noexcept override { namespace_ = name; }
    char const* getPluginNamespace() const noexcept override { return namespace_.c_str(); }
    int32_t getNbOutputs() const noexcept override { return Op::countOutputs(options_); }
    int32_t initialize() noexcept override { return 0; }
    void terminate() noexcept override {}
    void destroy() noexcept override { delete this; }

    nvinfer1::IPluginV2DynamicExt* clone() const noexcept override {
        auto* copy = new PluginV2(options_);
        copy->namespace_ = namespace_;
        return copy;
    }

    DataType getOutputDataType(int32_t index, DataType const* inputs, int32_t) const noexcept override {
        return Op::outputType(options_, index, inputs);
    }

    DimsExprs getOutputDimensions(int32_t index, DimsExprs const* inputs, int32_t,
                                  nvinfer1::IExprBuilder&) noexcept override {
        return Op::outputShape(options_, index, inputs);
    }

    bool supportsFormatCombination(int32_t position, Desc const* all, int32_t inputs, int32_t) noexcept override {
        return Op::takes(options_, position, inputs, [all](int32_t i) -> Desc const& { return all[i]; });
    }

    void configurePlugin(DynamicDesc const*, int32_t, DynamicDesc const*, int32_t) noexcept override {}

    size_t getWorkspaceSize(Desc const* inputs, int32_t, Desc const*, int32_t) const noexcept override {
        return Op::countWorkspace(options_, [inputs](int32_t i) -> nvinfer1::Dims const& { return inputs[i].dims; });
    }

    int32_t enqueue(Desc const* inputs, Desc const*, void const* const* data, void* const* results, void* workspace,
                    cudaStream_t stream) noexcept override {
        return Op::enqueue(options_, inputs, data, results, workspace, stream) == cudaSuccess ? 0 : 1;
    }

    size_t getSerializationSize() const noexcept override { return sizeof(options_); }
    void serialize(void* buffer) const noexcept override { std::memcpy(buffer, &options_, sizeof(options_)); }

private:
    Options options_;
    std::string namespace_ = kPluginNamespace;
};

template <typename Op>
class CreatorV2 final : public nvinfer1::IPluginCreator {
public:
    char const* getPluginName() const noexcept override { return Op::kName; }
    char const* getPluginVersion() const noexcept override { return kPluginVersion; }
    void setPluginNamespace(char const* name) noexcept override { namespace_ = name; }
    char const* getPluginNamespace() const noexcept override { return namespace_.c_str(); }
    nvinfer1::PluginFieldCollection const* getFieldNames() noexcept override { return &names_; }

    nvinfer1::IPluginV2* createPlugin(char const*, nvinfer1::PluginFieldCollection const* fields) noexcept override {
        auto const options = Op::parse(Fields(*fields));
        return options ? new PluginV2<Op>(*options) : nullptr;
    }

    nvinfer1::IPluginV2* deserializePlugin(char const*, void const* data, size_t length) noexcept override {
        typename Op::Options options;
        if (length != sizeof(options)) return nullptr;
        std::memcpy(&options, data, sizeof(options));
        return new PluginV2<Op>(options);
    }

private:
    decltype(Op::listFields()) fields_ = Op::listFields();
    nvinfer1::PluginFieldCollection names_{static_cast<int32_t>(fields_.size()), fields_.data()};
    std::string namespace_ = kPluginNamespace;
};

}  // namespace metagen

#endif
