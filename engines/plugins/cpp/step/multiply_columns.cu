// Rows times matrices that lie transposed, [columns, depth]: the head of a decoder, which often is its embedding.
//
// A warp owns a column, whose values lie together, and sums it by shuffles; a matrix is read once for kRows rows.
//
//     threadIdx.x % 32   = sixteen bytes of the depth
//     threadIdx.x / 32   = a column
//     blockIdx.x, .y     = further columns of W_0, then of W_1 and W_2; further rows
#include "step/products.cuh"

namespace metagen {
namespace {

__device__ float sumWarp(float value) {
    for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
    return value;
}

template <typename T, int kRows, int kPack>
__global__ void __launch_bounds__(kThreads) multiply(Product p) {
    using Packed = Pack<T, kPack> const*;
    LinearShape const& s = p.shape;
    int group = blockIdx.x;
    int const which = findMatrix(s, kWarps, group), column = group * kWarps + static_cast<int>(threadIdx.x) / 32;
    int const lane = threadIdx.x % 32, firstRow = blockIdx.y * kRows;
    if (column >= s.columns[which]) return;  // a whole warp

    T const* const norm = static_cast<T const*>(p.data.norm);
    T const* const weights = static_cast<T const*>(p.data.weights[which]) + static_cast<int64_t>(column) * s.depth;
    T const* x[kRows];
    float sum[kRows] = {}, squares[kRows] = {};
#pragma unroll
    for (int r = 0; r < kRows; ++r)
        x[r] = static_cast<T const*>(p.data.x) + static_cast<int64_t>(min(firstRow + r, s.rows - 1)) * s.depth;
#pragma unroll 2
    for (int k = lane * kPack; k < s.depth; k += 32 * kPack) {
        Pack<T, kPack> const read = loadPack(reinterpret_cast<Packed>(weights + k));
        float scaled[kPack];
#pragma unroll
        for (int c = 0; c < kPack; ++c) scaled[c] = widen(read.at[c]) * (norm ? widen(norm[k + c]) : 1.f);
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
            Pack<T, kPack> const row = loadPack(reinterpret_cast<Packed>(x[r] + k));
#pragma unroll
            for (int c = 0; c < kPack; ++c) {
                float const value = widen(row.at[c]);
                squares[r] = fmaf(value, value, squares[r]);
                sum[r] = fmaf(value, scaled[c], sum[r]);
            }
        }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
        float const whole = sumWarp(sum[r]), square = sumWarp(squares[r]);
        if (lane == r && firstRow + r < s.rows) finish<T>(p, which, firstRow + r, column, whole * invert(p, square));
    }
}

template <typename T, int kRows, int kPack>
void launch(Product const& p, cudaStream_t stream) {
    dim3 const blocks(countGroups(p.shape, false, kWarps), (p.shape.rows + kRows - 1) / kRows), threads(kThreads);
    auto const kernel = multiply<T, kRows, kPack>;
    METAGEN_LAUNCH(kernel, blocks, threads, stream)(p);
}

template <typename T>
void choose(Product const& p, cudaStream_t stream) {
    constexpr int kPack = 16 / sizeof(T);
    bool whole = p.shape.depth % kPack == 0 && isAligned(p.data.x);
    for (int i = 0; i < p.shape.weights; ++i) whole = whole && isAligned(p.data.weights[i]);
    chooseRows(p.shape.rows, [&](auto rows) {
        constexpr int kRows = decltype(rows)::value;
        whole ? launch<T, kRows, kPack>(p, stream) : launch<T, kRows, 1>(p, stream);
    });
}

}  // namespace

void multiplyColumns(LinearShape const& shape, LinearOptions const& options, LinearData const& data,
                     cudaStream_t stream) {
    Product const p{shape, data, options, 0};
    options.half ? choose<__half>(p, stream) : choose<float>(p, stream);
}

}  // namespace metagen
