// MetagenGridSample3D as the faces see it: its attributes, shapes, types and layouts.
#pragma once

#include "face/op.h"
#include "grid_sample/grid_sample_3d.h"

namespace metagen {

struct GridSampleOp {
    static constexpr char const* kName = "MetagenGridSample3D";
    using Options = SampleOptions;

    static std::array<nvinfer1::PluginField, 3> listFields() {
        using nvinfer1::PluginField;
        using nvinfer1::PluginFieldType;
        return {PluginField{"mode", nullptr, PluginFieldType::kCHAR, 0},
                PluginField{"padding_mode", nullptr, PluginFieldType::kCHAR, 0},
                PluginField{"align_corners", nullptr, PluginFieldType::kINT32, 1}};
    }

    static std::optional<Options> parse(Fields const& fields) {
        auto const mode = parseMode(fields.text("mode").value_or(""));
        auto const padding = parsePadding(fields.text("padding_mode").value_or(""));
        auto const align = fields.integer("align_corners");
        if (!mode || !padding || !align) return std::nullopt;
        return Options{*mode, *padding, static_cast<int32_t>(*align != 0)};
    }

    static int32_t countOutputs(Options const&) { return 1; }

    static nvinfer1::DataType outputType(Options const&, int32_t, nvinfer1::DataType const* inputs) { return inputs[0]; }

    // [n, c] of x, [d, h, w] of the grid.
    static nvinfer1::DimsExprs outputShape(Options const&, int32_t, nvinfer1::DimsExprs const* inputs) {
        nvinfer1::DimsExprs out{};
        out.nbDims = 5;
        for (int32_t i = 0; i < 5; ++i) out.d[i] = i < 2 ? inputs[0].d[i] : inputs[1].d[i - 1];
        return out;
    }

    // x and out share type and layout; the grid is float32, since a rounded position is another one. 0 x, 1 grid, 2 out.
    template <typename At>
    static bool takes(Options const&, int32_t position, int32_t, At at) {
        nvinfer1::PluginTensorDesc const &x = at(0), &asked = at(position);
        if (position == 0) return isVolumeType(asked.type) && isLayoutOf(asked.type, asked.format);
        if (position == 2) return asked.type == x.type && asked.format == x.format;
        return isLinear(asked, nvinfer1::DataType::kFLOAT);
    }

    template <typename Dims>
    static size_t countWorkspace(Options const&, Dims) {
        return 0;
    }

    static cudaError_t enqueue(Options const& options, nvinfer1::PluginTensorDesc const* inputs,
                               void const* const* data, void* const* results, void*, cudaStream_t stream) {
        nvinfer1::Dims const &x = inputs[0].dims, &grid = inputs[1].dims;
        auto const size = [](auto value) { return static_cast<int32_t>(value); };
        bool const eights = inputs[0].format == nvinfer1::TensorFormat::kDHWC8;
        int32_t const channels = eights ? (size(x.d[1]) + 7) / 8 * 8 : size(x.d[1]);
        SampleShape const shape{size(x.d[0]), channels,        size(x.d[2]),    size(x.d[3]),
                                size(x.d[4]), size(grid.d[1]), size(grid.d[2]), size(grid.d[3])};
        Layout const layout =
            inputs[0].format == nvinfer1::TensorFormat::kLINEAR ? Layout::kPlanes : Layout::kVoxels;
        return gridSample3d(shape, options, toVolumeType(inputs[0].type), layout, data[0],
                            static_cast<float const*>(data[1]), results[0], stream);
    }

private:
    static std::optional<SampleMode> parseMode(std::string_view text) {
        if (text == "bilinear") return SampleMode::kBilinear;
        if (text == "nearest") return SampleMode::kNearest;
        return std::nullopt;
    }

    static std::optional<Padding> parsePadding(std::string_view text) {
        if (text == "zeros") return Padding::kZeros;
        if (text == "border") return Padding::kBorder;
        if (text == "reflection") return Padding::kReflection;
        return std::nullopt;
    }

    static bool isVolumeType(nvinfer1::DataType type) {
#if NV_TENSORRT_MAJOR >= 10
        if (type == nvinfer1::DataType::kBF16) return true;
#endif
        return type == nvinfer1::DataType::kFLOAT || type == nvinfer1::DataType::kHALF;
    }

    static VolumeType toVolumeType(nvinfer1::DataType type) {
        return type == nvinfer1::DataType::kFLOAT  ? VolumeType::kFloat32
               : type == nvinfer1::DataType::kHALF ? VolumeType::kFloat16
                                                   : VolumeType::kBFloat16;
    }

    // The layouts of a volume of this type: channel by channel, or as TensorRT's 3-D convolutions of the type hold it.
    static bool isLayoutOf(nvinfer1::DataType type, nvinfer1::TensorFormat format) {
        using nvinfer1::TensorFormat;
        if (format == TensorFormat::kLINEAR) return true;
        if (type == nvinfer1::DataType::kFLOAT) return format == TensorFormat::kDHWC;
#if NV_TENSORRT_MAJOR >= 11
        return format == TensorFormat::kDHWC8;
#else
        return format == TensorFormat::kDHWC8 && type == nvinfer1::DataType::kHALF;  // bound to FP16 before 11
#endif
    }
};

}  // namespace metagen
