// What an op says of itself, for both faces. An op is a struct of static members:
//
//     kName                                   the type of its nodes
//     Options                                 plain data: its attributes, as an engine stores them
//     listFields()                            std::array of PluginField: the attributes' names and types
//     parse(Fields)                           optional<Options>: nothing when one is missing or not known
//     countOutputs(options)
//     outputType(options, index, inputs)      DataType, of the inputs' types
//     outputShape(options, index, inputs)     DimsExprs, of the inputs' shapes
//     takes(options, position, inputs, at)    whether the tensor at(position), of `inputs` inputs and then the
//                                             outputs, is taken so, given those before it
//     countWorkspace(options, dims)           bytes, for the largest shapes dims(0), dims(1), ... of the inputs
//     enqueue(options, inputs, data, results, workspace, stream)   cudaError_t
#pragma once

#include <NvInferRuntime.h>

#include <array>

#include "face/fields.h"

namespace metagen {

inline bool isLinear(nvinfer1::PluginTensorDesc const& tensor, nvinfer1::DataType type) {
    return tensor.type == type && tensor.format == nvinfer1::TensorFormat::kLINEAR;
}

}  // namespace metagen
