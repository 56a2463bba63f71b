// What both faces share: the op's names, and its attributes as TensorRT's parser hands them over.
#pragma once

#include <NvInferRuntime.h>

#include <cstring>
#include <optional>
#include <string_view>

#include "grid_sample_3d.h"

namespace metagen {

inline constexpr char const* kOpType = "MetagenGridSample3D";
inline constexpr char const* kPluginVersion = "1";
inline constexpr char const* kPluginNamespace = "metagen.plugin";  // the node's domain, where TensorRT looks from 10.10 on

// A string attribute comes as characters, with or without a closing zero.
inline std::string_view readText(nvinfer1::PluginField const& field) {
    auto const* text = static_cast<char const*>(field.data);
    return {text, strnlen(text, field.length)};
}

inline std::optional<int64_t> readInteger(nvinfer1::PluginField const& field) {
    if (field.type == nvinfer1::PluginFieldType::kINT32) return *static_cast<int32_t const*>(field.data);
#if NV_TENSORRT_MAJOR >= 10
    if (field.type == nvinfer1::PluginFieldType::kINT64) return *static_cast<int64_t const*>(field.data);
#endif
    return std::nullopt;
}

inline std::optional<SampleMode> parseMode(std::string_view text) {
    if (text == "bilinear") return SampleMode::kBilinear;
    if (text == "nearest") return SampleMode::kNearest;
    return std::nullopt;
}

inline std::optional<Padding> parsePadding(std::string_view text) {
    if (text == "zeros") return Padding::kZeros;
    if (text == "border") return Padding::kBorder;
    if (text == "reflection") return Padding::kReflection;
    return std::nullopt;
}

// Nothing when an attribute is missing, or holds what the op does not know.
inline std::optional<SampleOptions> parseOptions(nvinfer1::PluginFieldCollection const& fields) {
    std::optional<SampleMode> mode;
    std::optional<Padding> padding;
    std::optional<int64_t> align;
    for (int32_t i = 0; i < fields.nbFields; ++i) {
        nvinfer1::PluginField const& field = fields.fields[i];
        std::string_view const name = field.name;
        if (name == "mode") mode = parseMode(readText(field));
        if (name == "padding_mode") padding = parsePadding(readText(field));
        if (name == "align_corners") align = readInteger(field);
    }
    if (!mode || !padding || !align) return std::nullopt;
    return SampleOptions{*mode, *padding, static_cast<int32_t>(*align != 0)};
}

inline char const* spellMode(SampleMode mode) { return mode == SampleMode::kNearest ? "nearest" : "bilinear"; }

inline char const* spellPadding(Padding padding) {
    return padding == Padding::kZeros ? "zeros" : padding == Padding::kBorder ? "border" : "reflection";
}

inline bool isVolumeType(nvinfer1::DataType type) {
#if NV_TENSORRT_MAJOR >= 10
    if (type == nvinfer1::DataType::kBF16) return true;
#endif
    return type == nvinfer1::DataType::kFLOAT || type == nvinfer1::DataType::kHALF;
}

inline VolumeType toVolumeType(nvinfer1::DataType type) {
    return type == nvinfer1::DataType::kFLOAT  ? VolumeType::kFloat32
           : type == nvinfer1::DataType::kHALF ? VolumeType::kFloat16
                                               : VolumeType::kBFloat16;
}

// The layouts of a volume of this type: channel by channel, or as TensorRT's 3-D convolutions of the type hold it.
inline bool isLayoutOf(nvinfer1::DataType type, nvinfer1::TensorFormat format) {
    using nvinfer1::TensorFormat;
    if (format == TensorFormat::kLINEAR) return true;
    if (type == nvinfer1::DataType::kFLOAT) return format == TensorFormat::kDHWC;
#if NV_TENSORRT_MAJOR >= 11
    return format == TensorFormat::kDHWC8;
#else
    return format == TensorFormat::kDHWC8 && type == nvinfer1::DataType::kHALF;  // bound to FP16 before 11
#endif
}

// x and out share type and layout; the grid is float32, since a rounded position is another one. 0 x, 1 grid, 2 out.
inline bool takes(int32_t position, nvinfer1::PluginTensorDesc const& x, nvinfer1::PluginTensorDesc const& asked) {
    if (position == 0) return isVolumeType(asked.type) && isLayoutOf(asked.type, asked.format);
    if (position == 2) return asked.type == x.type && asked.format == x.format;
    return asked.type == nvinfer1::DataType::kFLOAT && asked.format == nvinfer1::TensorFormat::kLINEAR;
}

// [n, c] of x, [d, h, w] of the grid.
inline nvinfer1::DimsExprs joinShape(nvinfer1::DimsExprs const& x, nvinfer1::DimsExprs const& grid) {
    nvinfer1::DimsExprs out{};
    out.nbDims = 5;
    for (int32_t i = 0; i < 5; ++i) out.d[i] = i < 2 ? x.d[i] : grid.d[i - 1];
    return out;
}

// 0 for done, as an enqueue says it.
inline int32_t sample(SampleOptions const& options, nvinfer1::PluginTensorDesc const* inputs, void const* const* data,
                      void* const* results, cudaStream_t stream) {
    nvinfer1::Dims const &x = inputs[0].dims, &grid = inputs[1].dims;
    auto const size = [](auto value) { return static_cast<int32_t>(value); };
    bool const eights = inputs[0].format == nvinfer1::TensorFormat::kDHWC8;
    int32_t const channels = eights ? (size(x.d[1]) + 7) / 8 * 8 : size(x.d[1]);
    SampleShape const shape{size(x.d[0]), channels,        size(x.d[2]),    size(x.d[3]),
                            size(x.d[4]), size(grid.d[1]), size(grid.d[2]), size(grid.d[3])};
    Layout const layout =
        inputs[0].format == nvinfer1::TensorFormat::kLINEAR ? Layout::kPlanes : Layout::kVoxels;
    return gridSample3d(shape, options, toVolumeType(inputs[0].type), layout, data[0],
                        static_cast<float const*>(data[1]), results[0], stream) == cudaSuccess
               ? 0
               : 1;
}

}  // namespace metagen
