// MetagenStepAttention as the faces see it.
//
// Inputs: q (batch * groups * K * D elements, in this order), k, v (batch * K * D), past_k, past_v [batch, K, S, D] in
// float32, start [batch], and with `rotary` cosine and sine (batch * D / 2) in float32. Outputs: out like q, the caches.
#pragma once

#include "face/op.h"
#include "step/step_attention.h"

namespace metagen {

struct StepAttentionOp {
    static constexpr char const* kName = "MetagenStepAttention";
    struct Options {
        float scale, softcap;
        int32_t groups, window, rotary, half;
    };

    static std::array<nvinfer1::PluginField, 6> listFields() {
        using nvinfer1::PluginField;
        using nvinfer1::PluginFieldType;
        return {PluginField{"scale", nullptr, PluginFieldType::kFLOAT32, 1},
                PluginField{"softcap", nullptr, PluginFieldType::kFLOAT32, 1},
                PluginField{"groups", nullptr, PluginFieldType::kINT32, 1},
                PluginField{"window", nullptr, PluginFieldType::kINT32, 1},
                PluginField{"rotary", nullptr, PluginFieldType::kINT32, 1},
                PluginField{"half", nullptr, PluginFieldType::kINT32, 1}};
    }

    static std::optional<Options> parse(Fields const& fields) {
        auto const scale = fields.number("scale"), softcap = fields.number("softcap");
        auto const groups = fields.integer("groups"), window = fields.integer("window");
        auto const rotary = fields.integer("rotary"), half = fields.integer("half");
        if (!scale || !softcap || !groups || !window || !rotary || !half || *groups < 1) return std::nullopt;
        return Options{*scale, *softcap, *groups, *window, *rotary, *half};
    }

    static int32_t countOutputs(Options const&) { return 3; }

    static nvinfer1::DataType outputType(Options const& o, int32_t index, nvinfer1::DataType const*) {
        return index == 0 ? typeOf(o) : nvinfer1::DataType::kFLOAT;
    }

    static nvinfer1::DimsExprs outputShape(Options const&, int32_t index, nvinfer1::DimsExprs const* inputs) {
        return inputs[index == 0 ? kQuery : kPastK + index - 1];
    }

    template <typename At>
    static bool takes(Options const& o, int32_t position, int32_t inputs, At at) {
        nvinfer1::PluginTensorDesc const& asked = at(position);
        if (position < kPastK || position == inputs) return isLinear(asked, typeOf(o));
        if (position != kStart) return isLinear(asked, nvinfer1::DataType::kFLOAT);
#if NV_TENSORRT_MAJOR >= 10
        if (isLinear(asked, nvinfer1::DataType::kINT64)) return true;
#endif
        return isLinear(asked, nvinfer1::DataType::kINT32);
    }

    template <typename Dims>
    static size_t countWorkspace(Options const& o, Dims dims) {
        return countAttentionWorkspace(findShape(o, dims(kPastK)));
    }

    static cudaError_t enqueue(Options const& o, nvinfer1::PluginTensorDesc const* inputs, void const* const* data,
                               void* const* results, void* workspace, cudaStream_t stream) {
        AttentionShape const shape = findShape(o, inputs[kPastK].dims);
        int64_t const keys = int64_t{shape.batch} * shape.keyHeads * shape.size;
        if (countElements(inputs[kQuery].dims) != keys * o.groups || countElements(inputs[1].dims) != keys ||
            countElements(inputs[2].dims) != keys || countElements(inputs[kStart].dims) != shape.batch)
            return cudaErrorInvalidValue;
        if (o.rotary && countElements(inputs[kStart + 1].dims) != int64_t{shape.batch} * (shape.size / 2))
            return cudaErrorInvalidValue;
        int32_t const longIds = inputs[kStart].type != nvinfer1::DataType::kINT32;
        auto const floats = [data](int32_t i) { return static_cast<float const*>(data[i]); };
        AttentionData const call{data[kQuery], data[1], data[2], floats(kPastK), floats(kPastK + 1), data[kStart],
                                 o.rotary ? floats(kStart + 1) : nullptr, o.rotary ? floats(kStart + 2) : nullptr,
                                 results[0], static_cast<float*>(results[1]), static_cast<float*>(results[2])};
        return stepAttention(shape, {o.scale, o.window, o.softcap, o.half, longIds}, call,
                             static_cast<float*>(workspace), stream);
    }

private:
    static constexpr int32_t kQuery = 0, kPastK = 3, kStart = 5;

    static nvinfer1::DataType typeOf(Options const& o) {
        return o.half ? nvinfer1::DataType::kHALF : nvinfer1::DataType::kFLOAT;
    }

    static AttentionShape findShape(Options const& o, nvinfer1::Dims const& past) {
        auto const size = [&past](int32_t i) { return static_cast<int32_t>(past.d[i]); };
        return {size(0), size(1), o.groups, size(2), size(3)};
    }

    static int64_t countElements(nvinfer1::Dims const& dims) {
        int64_t count = 1;
        for (int32_t i = 0; i < dims.nbDims; ++i) count *= dims.d[i];
        return count;
    }
};

}  // namespace metagen
