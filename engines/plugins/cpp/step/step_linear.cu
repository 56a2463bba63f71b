// Rows times matrices, for so few rows that reading the matrices is all the work.
//
// A block owns a few columns and all of the depth: no second kernel adds parts up. A matrix is read once for kRows rows.
//
//     threadIdx.x % vectors   = sixteen bytes of columns beside each other
//     threadIdx.x / vectors   = a line of the matrix; the lines of a block are summed by shuffles, then in shared memory
//     blockIdx.x, .y          = further columns of W_0, then of W_1 and W_2; further rows
//
// The norm needs the sum of squares of a row, and every block passes through the whole row anyway, so it is summed on
// the way and divides at the end.
#include "kernels/values.cuh"
#include "step/step_linear.h"

namespace metagen {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kMostVectors = 4;    // with packs of 16 bytes
constexpr int kScalarVectors = 32;  // columns that are no whole packs: a warp reads 32 of them
constexpr int kMostBlocks = 65535;  // of a grid's y
constexpr int kEnoughBlocks = 256;  // that fill a GPU: wider blocks read longer lines

struct Call {
    LinearShape shape;
    LinearData data;
    Gate gate;
    float epsilon;
    int vectors;
};

__device__ float activate(float x, Gate gate) {
    if (gate == Gate::kSilu) return x / (1.f + expf(-x));
    if (gate == Gate::kGelu) return .5f * x * (1.f + erff(x * .70710678118654752f));
    float const inner = .79788456080286536f * (x + .044715f * x * x * x);
    return .5f * x * (1.f + tanhf(inner));
}

// The sum over the lanes of a warp that have the same vector.
__device__ float sumLanes(float value, int vectors) {
    for (int offset = 16; offset >= vectors; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
    return value;
}

template <typename T, int kRows, bool kGated, int kPack>
__global__ void __launch_bounds__(kThreads) multiply(Call call) {
    constexpr int kSides = kGated ? 2 : 1, kSums = kSides * kRows * kPack;
    constexpr int kWidest = kPack == 1 ? kScalarVectors : kMostVectors;
    __shared__ float sums[kWarps][kWidest][kSums + kRows];
    LinearShape const& s = call.shape;
    int const vectors = call.vectors, vector = threadIdx.x % vectors, lanes = kThreads / vectors;
    int which = 0, group = blockIdx.x;
    if constexpr (!kGated) {
        for (int groups; group >= (groups = (s.columns[which] + vectors * kPack - 1) / (vectors * kPack)); ++which)
            group -= groups;
    }
    int const columns = s.columns[which], first = group * vectors * kPack;
    int const column = min(first + vector * kPack, columns - kPack);  // one beyond the last is read and not used
    int const firstRow = blockIdx.y * kRows;

    T const* const norm = static_cast<T const*>(call.data.norm);
    T const* x[kRows];
    T const* weights[kSides];
    float sum[kSides][kRows][kPack] = {}, squares[kRows] = {};
#pragma unroll
    for (int r = 0; r < kRows; ++r)
        x[r] = static_cast<T const*>(call.data.x) + static_cast<int64_t>(min(firstRow + r, s.rows - 1)) * s.depth;
#pragma unroll
    for (int side = 0; side < kSides; ++side) weights[side] = static_cast<T const*>(call.data.weights[which + side]) + column;
#pragma unroll 4
    for (int k = threadIdx.x / vectors; k < s.depth; k += lanes) {
        Pack<T, kPack> read[kSides];
#pragma unroll
        for (int side = 0; side < kSides; ++side)
            read[side] = loadPack(reinterpret_cast<Pack<T, kPack> const*>(weights[side] + static_cast<int64_t>(k) * columns));
        float const scale = norm ? widen(norm[k]) : 1.f;
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
            float const value = widen(x[r][k]);
            squares[r] = fmaf(value, value, squares[r]);
#pragma unroll
            for (int side = 0; side < kSides; ++side)
#pragma unroll
                for (int c = 0; c < kPack; ++c)
                    sum[side][r][c] = fmaf(value * scale, widen(read[side].at[c]), sum[side][r][c]);
        }
    }

    int const warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (int side = 0; side < kSides; ++side)
#pragma unroll
        for (int r = 0; r < kRows; ++r)
#pragma unroll
            for (int c = 0; c < kPack; ++c) {
                float const whole = sumLanes(sum[side][r][c], vectors);
                if (lane < vectors) sums[warp][lane][(side * kRows + r) * kPack + c] = whole;
            }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
        float const whole = sumLanes(squares[r], vectors);
        if (lane < vectors) sums[warp][lane][kSums + r] = whole;
    }
    __syncthreads();

    int const width = vectors * kPack;
    for (int index = threadIdx.x; index < kRows * width; index += kThreads) {
        int const r = index / width, inside = index % width, row = firstRow + r;
        if (row >= s.rows || first + inside >= columns) continue;
        float side[kSides] = {}, square = 0.f;
        for (int w = 0; w < kWarps; ++w) {
            float const* const from = sums[w][inside / kPack];
            square += from[kSums + r];
#pragma unroll
            for (int i = 0; i < kSides; ++i) side[i] += from[(i * kRows + r) * kPack + inside % kPack];
        }
        float const inverse = norm ? 1.f / sqrtf(square / static_cast<float>(s.depth) + call.epsilon) : 1.f;
        float y = side[0] * inverse;
        if constexpr (kGated) y = activate(y, call.gate) * (side[kSides - 1] * inverse);
        int64_t const place = static_cast<int64_t>(row) * columns + first + inside;
        if (call.data.biases[which]) y += widen(static_cast<T const*>(call.data.biases[which])[first + inside]);
        if (call.data.residual) y += widen(static_cast<T const*>(call.data.residual)[place]);
        narrow(y, static_cast<T*>(call.data.out[which])[place]);
    }
}

int countGroups(LinearShape const& s, bool gated, int width) {
    int groups = 0;
    for (int i = 0; i < (gated ? 1 : s.weights); ++i) groups += (s.columns[i] + width - 1) / width;
    return groups;
}

template <typename T, int kRows, bool kGated, int kPack>
void launch(Call call, cudaStream_t stream) {
    if (kPack == 1) {
        call.vectors = kScalarVectors;
    } else if (call.vectors == 0) {
        call.vectors = countGroups(call.shape, kGated, kMostVectors * kPack) >= kEnoughBlocks ? kMostVectors : 2;
    }
    unsigned const groups = countGroups(call.shape, kGated, call.vectors * kPack);
    dim3 const blocks(groups, (call.shape.rows + kRows - 1) / kRows), threads(kThreads);
    auto const kernel = multiply<T, kRows, kGated, kPack>;
    METAGEN_LAUNCH(kernel, blocks, threads, stream)(call);
}

template <typename T, int kRows, bool kGated>
void choosePack(Call const& call, cudaStream_t stream) {
    constexpr int kPack = 16 / sizeof(T);
    bool whole = true;
    for (int i = 0; i < call.shape.weights; ++i) whole = whole && call.shape.columns[i] % kPack == 0;
    whole ? launch<T, kRows, kGated, kPack>(call, stream) : launch<T, kRows, kGated, 1>(call, stream);
}

template <typename T, int kRows>
void chooseGate(Call const& call, cudaStream_t stream) {
    call.gate == Gate::kNone ? choosePack<T, kRows, false>(call, stream) : choosePack<T, kRows, true>(call, stream);
}

template <typename T>
void chooseRows(Call const& call, cudaStream_t stream) {
    if (call.shape.rows == 1) return chooseGate<T, 1>(call, stream);
    if (call.shape.rows == 2) return chooseGate<T, 2>(call, stream);
    if (call.shape.rows <= 4) return chooseGate<T, 4>(call, stream);
    chooseGate<T, 8>(call, stream);
}

bool fits(LinearShape const& s, LinearOptions const& o, LinearData const& data) {
    if (s.depth < 1 || s.weights < 1 || s.weights > 3 || s.rows > kMostBlocks) return false;
    for (int i = 0; i < s.weights; ++i)
        if (s.columns[i] < 1) return false;
    if (o.vectors != 0 && o.vectors != 1 && o.vectors != 2 && o.vectors != kMostVectors) return false;
    if (data.residual && s.weights != 1) return false;
    return o.gate == Gate::kNone ||
           (s.weights == 2 && s.columns[0] == s.columns[1] && !data.biases[0] && !data.residual);
}

}  // namespace

cudaError_t stepLinear(LinearShape const& shape, LinearOptions const& options, LinearData const& data,
                       cudaStream_t stream) {
    if (!fits(shape, options, data)) return cudaErrorInvalidValue;
    if (shape.rows < 1) return cudaSuccess;
    Call const call{shape, data, options.gate, options.epsilon, options.vectors};
    options.half ? chooseRows<__half>(call, stream) : chooseRows<float>(call, stream);
    return cudaPeekAtLastError();
}

}  // namespace metagen

// For tests and benchmarks. `sizes`: rows, depth, weights, columns of each; `options`: Gate, half, vectors; `pointers`:
// x, three weights, norm, three biases, residual, three outputs. Returns a cudaError_t.
extern "C" __attribute__((visibility("default"))) int32_t metagenStepLinear(int32_t const* sizes,
                                                                            int32_t const* options, float epsilon,
                                                                            void* const* pointers,
                                                                            cudaStream_t stream) {
    metagen::LinearShape const shape{sizes[0], sizes[1], sizes[2], {sizes[3], sizes[4], sizes[5]}};
    metagen::LinearOptions const chosen{static_cast<metagen::Gate>(options[0]), epsilon, options[1], options[2]};
    metagen::LinearData const data{pointers[0], {pointers[1], pointers[2], pointers[3]}, pointers[4],
                                   {pointers[5], pointers[6], pointers[7]}, pointers[8],
                                   {pointers[9], pointers[10], pointers[11]}};
    return metagen::stepLinear(shape, chosen, data, stream);
}
