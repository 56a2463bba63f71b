// An op as an IPluginV3: TensorRT 10 and 11. What an op has to say of itself: face/op.h.
#pragma once

#include "face/op.h"

#if NV_TENSORRT_MAJOR >= 10

namespace metagen {

template <typename Op>
class PluginV3 final : public nvinfer1::IPluginV3,
                       public nvinfer1::IPluginV3OneCore,
                       public nvinfer1::IPluginV3OneBuild,
                       public nvinfer1::IPluginV3OneRuntime {
    using Options = typename Op::Options;
    using DataType = nvinfer1::DataType;
    using DimsExprs = nvinfer1::DimsExprs;
    using Desc = nvinfer1::PluginTensorDesc;
    using DynamicDesc = nvinfer1::DynamicPluginTensorDesc;

public:
    explicit PluginV3(Options const& options) : options_(options) {}

    nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override {
        switch (type) {
            case nvinfer1::PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
            case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
            case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
        }
        return nullptr;
    }

    nvinfer1::IPluginV3* clone() noexcept override { return new PluginV3(options_); }

    char const* getPluginName() const noexcept override { return Op::kName; }
    char const* getPluginVersion() const noexcept override { return kPluginVersion; }
    char const* getPluginNamespace() const noexcept override { return kPluginNamespace; }
    int32_t getNbOutputs() const noexcept override { return Op::countOutputs(options_); }

    int32_t configurePlugin(DynamicDesc const*, int32_t, DynamicDesc const*, int32_t) noexcept override { return 0; }

    int32_t getOutputDataTypes(DataType* outputs, int32_t count, DataType const* inputs,
                               int32_t) const noexcept override {
        for (int32_t i = 0; i < count; ++i) outputs[i] = Op::outputType(options_, i, inputs);
        return 0;
    }

    int32_t getOutputShapes(DimsExprs const* inputs, int32_t, DimsExprs const*, int32_t, DimsExprs* outputs,
                            int32_t count, nvinfer1::IExprBuilder&) noexcept override {
        for (int32_t i = 0; i < count; ++i) outputs[i] = Op::outputShape(options_, i, inputs);
        return 0;
    }

    bool supportsFormatCombination(int32_t position, DynamicDesc const* all, int32_t inputs, int32_t) noexcept override {
        return Op::takes(options_, position, inputs, [all](int32_t i) -> Desc const& { return all[i].desc; });
    }

    size_t getWorkspaceSize(DynamicDesc const* inputs, int32_t, DynamicDesc const*, int32_t) const noexcept override {
        return Op::countWorkspace(options_, [inputs](int32_t i) -> nvinfer1::Dims const& { return inputs[i].max; });
    }

    int32_t onShapeChange(Desc const*, int32_t, Desc const*, int32_t) noexcept override { return 0; }

    int32_t enqueue(Desc const* inputs, Desc const*, void const* const* data, void* const* results, void* workspace,
                    cudaStream_t stream) noexcept override {
        return Op::enqueue(options_, inputs, data, results, workspace, stream) == cudaSuccess ? 0 : 1;
    }

    nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept override { return clone(); }

    nvinfer1::PluginFieldCollection const* getFieldsToSerialize() noexcept override {
        field_ = {kStored, &options_, nvinfer1::PluginFieldType::kCHAR, static_cast<int32_t>(sizeof(options_))};
        serialized_ = {1, &field_};
        return &serialized_;
    }

    static constexpr char const* kStored = "options";  // the one field of a plugin in an engine

private:
    Options options_;
    nvinfer1::PluginField field_;
    nvinfer1::PluginFieldCollection serialized_{};
};

template <typename Op>
class CreatorV3 final : public nvinfer1::IPluginCreatorV3One {
public:
    char const* getPluginName() const noexcept override { return Op::kName; }
    char const* getPluginVersion() const noexcept override { return kPluginVersion; }
    char const* getPluginNamespace() const noexcept override { return kPluginNamespace; }
    nvinfer1::PluginFieldCollection const* getFieldNames() noexcept override { return &names_; }

    nvinfer1::IPluginV3* createPlugin(char const*, nvinfer1::PluginFieldCollection const* given,
                                      nvinfer1::TensorRTPhase phase) noexcept override {
        Fields const fields(*given);
        auto const options = phase == nvinfer1::TensorRTPhase::kRUNTIME
                                 ? fields.plain<typename Op::Options>(PluginV3<Op>::kStored)
                                 : Op::parse(fields);
        return options ? new PluginV3<Op>(*options) : nullptr;
    }

private:
    decltype(Op::listFields()) fields_ = Op::listFields();
    nvinfer1::PluginFieldCollection names_{static_cast<int32_t>(fields_.size()), fields_.data()};
};

}  // namespace metagen

#endif
