// A node's attributes, as TensorRT's parser hands them over, and the names that all our plugins share.
#pragma once

#include <NvInferRuntime.h>

#include <cstring>
#include <optional>
#include <string_view>

namespace metagen {

inline constexpr char const* kPluginVersion = "1";
inline constexpr char const* kPluginNamespace = "metagen.plugin";  // the node's domain, where TensorRT looks from 10.10 on

// Reads attributes by name. What is absent, or of another type, is nothing.
class Fields {
public:
    explicit Fields(nvinfer1::PluginFieldCollection const& fields) : fields_(fields) {}

    // Characters, with or without a closing zero.
    std::optional<std::string_view> text(std::string_view name) const {
        nvinfer1::PluginField const* field = find(name);
        if (!field || field->type != nvinfer1::PluginFieldType::kCHAR || !field->data) return std::nullopt;
        auto const* characters = static_cast<char const*>(field->data);
        return std::string_view(characters, strnlen(characters, field->length));
    }

    std::optional<int32_t> integer(std::string_view name) const {
        nvinfer1::PluginField const* field = find(name);
        if (!field || !field->data) return std::nullopt;
        if (field->type == nvinfer1::PluginFieldType::kINT32) return *static_cast<int32_t const*>(field->data);
#if NV_TENSORRT_MAJOR >= 10
        if (field->type == nvinfer1::PluginFieldType::kINT64)
            return static_cast<int32_t>(*static_cast<int64_t const*>(field->data));
#endif
        return std::nullopt;
    }

    std::optional<float> number(std::string_view name) const {
        nvinfer1::PluginField const* field = find(name);
        if (!field || field->type != nvinfer1::PluginFieldType::kFLOAT32 || !field->data) return std::nullopt;
        return *static_cast<float const*>(field->data);
    }

    // Plain data that a face stored as it is.
    template <typename Plain>
    std::optional<Plain> plain(std::string_view name) const {
        nvinfer1::PluginField const* field = find(name);
        if (!field || field->length != static_cast<int32_t>(sizeof(Plain)) || !field->data) return std::nullopt;
        Plain value;
        std::memcpy(&value, field->data, sizeof(Plain));
        return value;
    }

private:
    nvinfer1::PluginField const* find(std::string_view name) const {
        for (int32_t i = 0; i < fields_.nbFields; ++i)
            if (name == fields_.fields[i].name) return fields_.fields + i;
        return nullptr;
    }

    nvinfer1::PluginFieldCollection const& fields_;
};

}  // namespace metagen
