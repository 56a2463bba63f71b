// MetagenStepLinear as the faces see it.
//
// Inputs: x [..., K], `weights` matrices [K, N_i] ([N_i, K] with `transposed`), then as the attributes say: the norm's weight [K], a bias [N_i] for
// each matrix, the residual. Outputs [..., N_i], one for each matrix; one for a gate.
#pragma once

#include "face/op.h"
#include "step/step_linear.h"

namespace metagen {

struct StepLinearOp {
    static constexpr char const* kName = "MetagenStepLinear";
    struct Options {
        int32_t weights, transposed, norm, bias, residual, half;
        Gate gate;
        float epsilon;
    };

    static std::array<nvinfer1::PluginField, 8> listFields() {
        using nvinfer1::PluginField;
        using nvinfer1::PluginFieldType;
        return {PluginField{"weights", nullptr, PluginFieldType::kINT32, 1},
                PluginField{"transposed", nullptr, PluginFieldType::kINT32, 1},
                PluginField{"norm", nullptr, PluginFieldType::kINT32, 1},
                PluginField{"bias", nullptr, PluginFieldType::kINT32, 1},
                PluginField{"residual", nullptr, PluginFieldType::kINT32, 1},
                PluginField{"half", nullptr, PluginFieldType::kINT32, 1},
                PluginField{"gate", nullptr, PluginFieldType::kCHAR, 0},
                PluginField{"epsilon", nullptr, PluginFieldType::kFLOAT32, 1}};
    }

    static std::optional<Options> parse(Fields const& fields) {
        auto const weights = fields.integer("weights"), transposed = fields.integer("transposed");
        auto const norm = fields.integer("norm"), bias = fields.integer("bias");
        auto const residual = fields.integer("residual"), half = fields.integer("half");
        auto const gate = parseGate(fields.text("gate").value_or(""));
        auto const epsilon = fields.number("epsilon");
        if (!weights || !transposed || !norm || !bias || !residual || !half || !gate || !epsilon)
            return std::nullopt;
        if (*weights < 1 || *weights > 3 || (*residual && *weights > 1)) return std::nullopt;
        if (*gate != Gate::kNone && (*weights != 2 || *transposed || *bias || *residual)) return std::nullopt;
        return Options{*weights, *transposed, *norm, *bias, *residual, *half, *gate, *epsilon};
    }

    static int32_t countOutputs(Options const& o) { return o.gate == Gate::kNone ? o.weights : 1; }

    static nvinfer1::DataType outputType(Options const& o, int32_t, nvinfer1::DataType const*) { return typeOf(o); }

    static nvinfer1::DimsExprs outputShape(Options const& o, int32_t index, nvinfer1::DimsExprs const* inputs) {
        nvinfer1::DimsExprs out = inputs[0];
        out.d[out.nbDims - 1] = inputs[1 + index].d[o.transposed ? 0 : 1];
        return out;
    }

    template <typename At>
    static bool takes(Options const& o, int32_t position, int32_t, At at) {
        return isLinear(at(position), typeOf(o));
    }

    template <typename Dims>
    static size_t countWorkspace(Options const&, Dims) {
        return 0;
    }

    static cudaError_t enqueue(Options const& o, nvinfer1::PluginTensorDesc const* inputs, void const* const* data,
                               void* const* results, void*, cudaStream_t stream) {
        nvinfer1::Dims const& x = inputs[0].dims;
        LinearShape shape{1, static_cast<int32_t>(x.d[x.nbDims - 1]), o.weights, {}};
        for (int32_t i = 0; i < x.nbDims - 1; ++i) shape.rows *= static_cast<int32_t>(x.d[i]);
        LinearData call{};
        int32_t next = 0;
        call.x = data[next++];
        for (int32_t i = 0; i < o.weights; ++i, ++next) {
            call.weights[i] = data[next];
            shape.columns[i] = static_cast<int32_t>(inputs[next].dims.d[o.transposed ? 0 : 1]);
        }
        if (o.norm) call.norm = data[next++];
        for (int32_t i = 0; o.bias && i < o.weights; ++i) call.biases[i] = data[next++];
        if (o.residual) call.residual = data[next];
        for (int32_t i = 0; i < countOutputs(o); ++i) call.out[i] = results[i];
        return stepLinear(shape, {o.gate, o.epsilon, o.half, o.transposed, 0}, call, stream);
    }

private:
    static nvinfer1::DataType typeOf(Options const& o) {
        return o.half ? nvinfer1::DataType::kHALF : nvinfer1::DataType::kFLOAT;
    }

    static std::optional<Gate> parseGate(std::string_view text) {
        if (text == "none") return Gate::kNone;
        if (text == "silu") return Gate::kSilu;
        if (text == "gelu") return Gate::kGelu;
        if (text == "gelu_tanh") return Gate::kGeluTanh;
        return std::nullopt;
    }
};

}  // namespace metagen
