// MetagenStepLinear on CUDA: a few rows times matrices, with what stands around a product in a decode step.
//
//     y_i = rms(x) W_i + b_i                      up to three matrices that read the same rows (queries, keys, values)
//     y   = x W + b + residual                    the end of attention and of a feed-forward block
//     y   = act(rms(x) W_0) * (rms(x) W_1)        its beginning (Shazeer 2020)
//     rms(x) = x / sqrt(mean(x^2) + epsilon) * norm                     (Zhang and Sennrich 2019)
//
// Sums, norms and activations are float32 whatever the tensors' type; a result is rounded once.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace metagen {

enum class Gate : int32_t { kNone = 0, kSilu = 1, kGelu = 2, kGeluTanh = 3 };

// A gate needs two matrices of the same width and takes neither bias nor residual.
struct LinearShape {
    int32_t rows, depth;
    int32_t weights;
    int32_t columns[3];
};

// x [rows, depth], norm [depth], biases [columns[i]], residual and out [rows, columns[i]]; matrices [depth, columns[i]], or
// [columns[i], depth] when they lie transposed. Contiguous, all float32 or all float16. norm, biases and residual may be
// null.
struct LinearData {
    void const* x;
    void const* weights[3];
    void const* norm;
    void const* biases[3];
    void const* residual;
    void* out[3];
};

struct LinearOptions {
    Gate gate;
    float epsilon;
    int32_t half;        // 1: float16
    int32_t transposed;  // 1: matrices [columns, depth]; without a gate
    int32_t vectors;     // that a block of `multiplyLines` has beside each other: 1, 2 or 4; 0 chooses
};

// Enqueues the kernel on `stream`. cudaErrorInvalidValue for sizes that are not positive or do not fit a gate.
cudaError_t stepLinear(LinearShape const& shape, LinearOptions const& options, LinearData const& data,
                       cudaStream_t stream);

// The kernel of each layout of the matrices, which `stepLinear` calls once it has checked the sizes.
void multiplyLines(LinearShape const& shape, LinearOptions const& options, LinearData const& data, cudaStream_t stream);
void multiplyColumns(LinearShape const& shape, LinearOptions const& options, LinearData const& data,
                     cudaStream_t stream);

}  // namespace metagen
