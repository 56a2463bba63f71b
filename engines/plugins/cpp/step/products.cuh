// What both kernels of MetagenStepLinear share: their arguments, the columns of a block, and how a product ends.
#pragma once

#include <type_traits>

#include "kernels/values.cuh"
#include "step/step_linear.h"

namespace metagen {

constexpr int kThreads = 256, kWarps = kThreads / 32;

struct Product {
    LinearShape shape;
    LinearData data;
    LinearOptions options;
    int vectors;
};

// Whether sixteen bytes can be read at once from here on; TensorRT's own memory always is so.
inline bool isAligned(void const* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// Blocks that own `width` columns of each matrix; a gate's two matrices are read together.
inline int countGroups(LinearShape const& s, bool gated, int width) {
    int groups = 0;
    for (int i = 0; i < (gated ? 1 : s.weights); ++i) groups += (s.columns[i] + width - 1) / width;
    return groups;
}

// The matrix that a group of columns belongs to; `group` becomes its number there.
__device__ inline int findMatrix(LinearShape const& s, int width, int& group) {
    int which = 0;
    for (int groups; group >= (groups = (s.columns[which] + width - 1) / width); ++which) group -= groups;
    return which;
}

__device__ inline float activate(float x, Gate gate) {
    if (gate == Gate::kSilu) return x / (1.f + expf(-x));
    if (gate == Gate::kGelu) return .5f * x * (1.f + erff(x * .70710678118654752f));
    float const inner = .79788456080286536f * (x + .044715f * x * x * x);
    return .5f * x * (1.f + tanhf(inner));
}

// 1 / rms of a row from the sum of its squares; 1 without a norm.
__device__ inline float invert(Product const& p, float squares) {
    if (!p.data.norm) return 1.f;
    return 1.f / sqrtf(squares / static_cast<float>(p.shape.depth) + p.options.epsilon);
}

// Adds bias and residual, rounds and stores.
template <typename T>
__device__ void finish(Product const& p, int which, int row, int column, float y) {
    int64_t const place = static_cast<int64_t>(row) * p.shape.columns[which] + column;
    if (p.data.biases[which]) y += widen(static_cast<T const*>(p.data.biases[which])[column]);
    if (p.data.residual) y += widen(static_cast<T const*>(p.data.residual)[place]);
    narrow(y, static_cast<T*>(p.data.out[which])[place]);
}

// The number of rows that a kernel is compiled for, and takes at once: the least that holds all, up to eight.
template <typename Run>
void chooseRows(int rows, Run run) {
    if (rows == 1) return run(std::integral_constant<int, 1>{});
    if (rows == 2) return run(std::integral_constant<int, 2>{});
    if (rows <= 4) return run(std::integral_constant<int, 4>{});
    run(std::integral_constant<int, 8>{});
}

}  // namespace metagen
