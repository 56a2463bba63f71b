// Checks the sizes and picks the kernel of the matrices' layout; and the kernel by itself, for tests and benchmarks.
#include "step/step_linear.h"

namespace metagen {
namespace {

constexpr int kMostRows = 65535;  // blocks of a grid's y

bool fits(LinearShape const& s, LinearOptions const& o, LinearData const& data) {
    if (s.depth < 1 || s.weights < 1 || s.weights > 3 || s.rows > kMostRows) return false;
    for (int i = 0; i < s.weights; ++i)
        if (s.columns[i] < 1) return false;
    if (o.vectors != 0 && o.vectors != 1 && o.vectors != 2 && o.vectors != 4) return false;
    if (data.residual && s.weights != 1) return false;
    if (o.gate == Gate::kNone) return true;
    return !o.transposed && s.weights == 2 && s.columns[0] == s.columns[1] && !data.biases[0] && !data.residual;
}

}  // namespace

cudaError_t stepLinear(LinearShape const& shape, LinearOptions const& options, LinearData const& data,
                       cudaStream_t stream) {
    if (!fits(shape, options, data)) return cudaErrorInvalidValue;
    if (shape.rows < 1) return cudaSuccess;
    options.transposed ? multiplyColumns(shape, options, data, stream) : multiplyLines(shape, options, data, stream);
    return cudaPeekAtLastError();
}

}  // namespace metagen

// For tests and benchmarks. `sizes`: rows, depth, weights, columns of each; `options`: Gate, half, transposed, vectors;
// `pointers`: x, three weights, norm, three biases, residual, three outputs. Returns a cudaError_t.
extern "C" __attribute__((visibility("default"))) int32_t metagenStepLinear(int32_t const* sizes,
                                                                            int32_t const* options, float epsilon,
                                                                            void* const* pointers,
                                                                            cudaStream_t stream) {
    metagen::LinearShape const shape{sizes[0], sizes[1], sizes[2], {sizes[3], sizes[4], sizes[5]}};
    metagen::LinearOptions const chosen{static_cast<metagen::Gate>(options[0]), epsilon, options[1], options[2],
                                        options[3]};
    metagen::LinearData const data{pointers[0], {pointers[1], pointers[2], pointers[3]}, pointers[4],
                                   {pointers[5], pointers[6], pointers[7]}, pointers[8],
                                   {pointers[9], pointers[10], pointers[11]}};
    return metagen::stepLinear(shape, chosen, data, stream);
}
