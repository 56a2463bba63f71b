// Drives a plugin as TensorRT does, on the host: its creator by name, attributes, types, shapes, a copy out of an engine,
// then the kernel. Compiled with the library's own sources and cuda_on_host.h.
#include <NvInferRuntime.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

using namespace nvinfer1;

namespace {

// A size stands for its own expression: our plugins only pass them on.
IDimensionExpr const* toExpression(int64_t size) { return reinterpret_cast<IDimensionExpr const*>(size + 1); }
int64_t fromExpression(IDimensionExpr const* size) { return reinterpret_cast<int64_t>(size) - 1; }

std::vector<DimsExprs> toExpressions(std::vector<PluginTensorDesc> const& tensors, int count) {
    std::vector<DimsExprs> all(count);
    for (int i = 0; i < count; ++i) {
        all[i].nbDims = tensors[i].dims.nbDims;
        for (int a = 0; a < all[i].nbDims; ++a) all[i].d[a] = toExpression(tensors[i].dims.d[a]);
    }
    return all;
}

template <typename Takes>
bool takesOnly(std::vector<PluginTensorDesc> tensors, Takes takes) {
    for (size_t i = 0; i < tensors.size(); ++i) {
        if (!takes(tensors, i)) return false;
        DataType const right = tensors[i].type;
        tensors[i].type = DataType::kINT8;
        if (takes(tensors, i)) return false;
        tensors[i].type = right;
        tensors[i].format = TensorFormat::kCHW32;
        if (takes(tensors, i)) return false;
        tensors[i].format = TensorFormat::kLINEAR;
    }
    return true;
}

}  // namespace

#if NV_TENSORRT_MAJOR < 10
extern "C" IPluginCreator* const* getPluginCreators(int32_t& count);
#else
extern "C" IPluginCreatorInterface* const* getCreators(int32_t& count);
#endif

// `fields`: attributes; `tensors`: inputs, then outputs, whose shapes are asked for and compared. Returns 0, or the
// number of the step that failed: 1 creator, 2 attributes, 3 outputs, 4 types, 5 shapes, 6 serialisation, 7 workspace,
// 8 kernel.
extern "C" __attribute__((visibility("default"))) int drive(char const* name, PluginField const* fields, int nbFields,
                                                            PluginTensorDesc const* given, int nbInputs, int nbOutputs,
                                                            void const* const* data, void* const* results,
                                                            size_t workspaceBytes) {
    std::vector<PluginTensorDesc> const tensors(given, given + nbInputs + nbOutputs);
    std::vector<DimsExprs> shapes = toExpressions(tensors, nbInputs);
    std::vector<DataType> types;
    for (int i = 0; i < nbInputs; ++i) types.push_back(tensors[i].type);
    std::vector<char> workspace(workspaceBytes);
    PluginFieldCollection const collection{nbFields, fields};
    int count = 0;
#if NV_TENSORRT_MAJOR < 10
    auto const* creators = getPluginCreators(count);
    IPluginCreator* creator = nullptr;
    for (int i = 0; i < count; ++i)
        if (!std::strcmp(creators[i]->getPluginName(), name)) creator = creators[i];
    if (!creator || std::string(creator->getPluginNamespace()) != "metagen.plugin") return 1;
    if (creator->getFieldNames()->nbFields != nbFields) return 2;
    for (int i = 0; i < nbFields; ++i)
        if (std::strcmp(creator->getFieldNames()->fields[i].name, fields[i].name)) return 2;
    auto* plugin = static_cast<IPluginV2DynamicExt*>(creator->createPlugin("layer", &collection));
    if (!plugin) return 2;
    if (plugin->getNbOutputs() != nbOutputs) return 3;
    for (int i = 0; i < nbOutputs; ++i)
        if (plugin->getOutputDataType(i, types.data(), nbInputs) != tensors[nbInputs + i].type) return 4;
    if (!takesOnly(tensors, [&](auto const& all, int i) {
            return plugin->supportsFormatCombination(i, all.data(), nbInputs, nbOutputs);
        }))
        return 4;
    for (int i = 0; i < nbOutputs; ++i) {
        alignas(64) static char unused[256];
        DimsExprs const shape =
            plugin->getOutputDimensions(i, shapes.data(), nbInputs, *reinterpret_cast<IExprBuilder*>(unused));
        Dims const& wanted = tensors[nbInputs + i].dims;
        if (shape.nbDims != wanted.nbDims) return 5;
        for (int a = 0; a < wanted.nbDims; ++a)
            if (fromExpression(shape.d[a]) != wanted.d[a]) return 5;
    }
    std::vector<char> stored(plugin->getSerializationSize());
    plugin->serialize(stored.data());
    if (creator->deserializePlugin("layer", stored.data(), stored.size() - 1)) return 6;
    plugin->destroy();
    auto* read = static_cast<IPluginV2DynamicExt*>(creator->deserializePlugin("layer", stored.data(), stored.size()));
    if (!read) return 6;
    auto* copy = read->clone();
    read->destroy();
    if (copy->getWorkspaceSize(tensors.data(), nbInputs, tensors.data() + nbInputs, nbOutputs) > workspaceBytes) return 7;
    int const code = copy->enqueue(tensors.data(), tensors.data() + nbInputs, data, results, workspace.data(), nullptr);
    copy->destroy();
    return code ? 8 : 0;
#else
    auto const* creators = getCreators(count);
    IPluginCreatorV3One* creator = nullptr;
    for (int i = 0; i < count; ++i) {
        auto* one = static_cast<IPluginCreatorV3One*>(creators[i]);
        if (!std::strcmp(one->getPluginName(), name)) creator = one;
    }
    if (!creator || std::string(creator->getPluginNamespace()) != "metagen.plugin") return 1;
    if (creator->getFieldNames()->nbFields != nbFields) return 2;
    for (int i = 0; i < nbFields; ++i)
        if (std::strcmp(creator->getFieldNames()->fields[i].name, fields[i].name)) return 2;
    IPluginV3* plugin = creator->createPlugin("layer", &collection, TensorRTPhase::kBUILD);
    if (!plugin) return 2;
    auto* build = static_cast<IPluginV3OneBuild*>(plugin->getCapabilityInterface(PluginCapabilityType::kBUILD));
    if (build->getNbOutputs() != nbOutputs) return 3;
    std::vector<DataType> outputs(nbOutputs);
    if (build->getOutputDataTypes(outputs.data(), nbOutputs, types.data(), nbInputs)) return 4;
    for (int i = 0; i < nbOutputs; ++i)
        if (outputs[i] != tensors[nbInputs + i].type) return 4;
    auto const widen = [](std::vector<PluginTensorDesc> const& all) {
        std::vector<DynamicPluginTensorDesc> dynamic;
        for (PluginTensorDesc const& one : all) {
            DynamicPluginTensorDesc next{};
            next.desc = one;
            next.min = next.opt = next.max = one.dims;
            dynamic.push_back(next);
        }
        return dynamic;
    };
    if (!takesOnly(tensors, [&](auto const& all, int i) {
            return build->supportsFormatCombination(i, widen(all).data(), nbInputs, nbOutputs);
        }))
        return 4;
    std::vector<DimsExprs> found(nbOutputs);
    alignas(64) static char unused[256];
    if (build->getOutputShapes(shapes.data(), nbInputs, nullptr, 0, found.data(), nbOutputs,
                               *reinterpret_cast<IExprBuilder*>(unused)))
        return 5;
    for (int i = 0; i < nbOutputs; ++i) {
        Dims const& wanted = tensors[nbInputs + i].dims;
        if (found[i].nbDims != wanted.nbDims) return 5;
        for (int a = 0; a < wanted.nbDims; ++a)
            if (fromExpression(found[i].d[a]) != wanted.d[a]) return 5;
    }
    auto* runtime = static_cast<IPluginV3OneRuntime*>(plugin->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
    IPluginV3* read = creator->createPlugin("layer", runtime->getFieldsToSerialize(), TensorRTPhase::kRUNTIME);
    if (!read) return 6;
    auto const dynamic = widen(tensors);
    if (build->getWorkspaceSize(dynamic.data(), nbInputs, dynamic.data() + nbInputs, nbOutputs) > workspaceBytes) return 7;
    delete plugin;
    runtime = static_cast<IPluginV3OneRuntime*>(read->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
    IPluginV3* attached = runtime->attachToContext(nullptr);
    delete read;
    runtime = static_cast<IPluginV3OneRuntime*>(attached->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
    if (runtime->onShapeChange(tensors.data(), nbInputs, tensors.data() + nbInputs, nbOutputs)) return 8;
    int const code = runtime->enqueue(tensors.data(), tensors.data() + nbInputs, data, results, workspace.data(), nullptr);
    delete attached;
    return code ? 8 : 0;
#endif
}
