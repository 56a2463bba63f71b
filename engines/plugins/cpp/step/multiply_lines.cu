// Rows times matrices [depth, columns], for so few rows that reading the matrices is all the work.
//
// A block owns a few columns and all of the depth: no second kernel adds parts up. A matrix is read once for kRows rows.
//
//     threadIdx.x % vectors   = sixteen bytes of columns beside each other
//     threadIdx.x / vectors   = a line of the matrix; the lines of a block are summed by shuffles, then in shared memory
//     blockIdx.x, .y          = further columns of W_0, then of W_1 and W_2; further rows
//
// The norm needs the sum of squares of a row, and every block passes through the whole row anyway, so it is summed on
// the way and divides at the end.
#include "step/products.cuh"

namespace metagen {
namespace {

constexpr int kMostVectors = 4;     // with packs of 16 bytes
constexpr int kScalarVectors = 32;  // columns that are no whole packs: a warp reads 32 of them
constexpr int kEnoughBlocks = 256;  // that fill a GPU: wider blocks read longer lines

// The sum over the lanes of a warp that have the same vector.
__device__ float sumLanes(float value, int vectors) {
    for (int offset = 16; offset >= vectors; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
    return value;
}

template <typename T, int kRows, bool kGated, int kPack>
__global__ void __launch_bounds__(kThreads) multiply(Product p) {
    constexpr int kSides = kGated ? 2 : 1, kSums = kSides * kRows * kPack;
    constexpr int kWidest = kPack == 1 ? kScalarVectors : kMostVectors;
    __shared__ float sums[kWarps][kWidest][kSums + kRows];
    LinearShape const& s = p.shape;
    int const vectors = p.vectors, vector = threadIdx.x % vectors, lines = kThreads / vectors, width = vectors * kPack;
    int group = blockIdx.x;
    int const which = kGated ? 0 : findMatrix(s, width, group), columns = s.columns[which], first = group * width;
    int const column = min(first + vector * kPack, columns - kPack);  // one beyond the last is read and not used
    int const firstRow = blockIdx.y * kRows;

    T const* const norm = static_cast<T const*>(p.data.norm);
    T const* x[kRows];
    T const* weights[kSides];
    float sum[kSides][kRows][kPack] = {}, squares[kRows] = {};
#pragma unroll
    for (int r = 0; r < kRows; ++r)
        x[r] = static_cast<T const*>(p.data.x) + static_cast<int64_t>(min(firstRow + r, s.rows - 1)) * s.depth;
#pragma unroll
    for (int side = 0; side < kSides; ++side)
        weights[side] = static_cast<T const*>(p.data.weights[which + side]) + column;
#pragma unroll 4
    for (int k = threadIdx.x / vectors; k < s.depth; k += lines) {
        int64_t const line = static_cast<int64_t>(k) * columns;
        Pack<T, kPack> read[kSides];
#pragma unroll
        for (int side = 0; side < kSides; ++side)
            read[side] = loadPack(reinterpret_cast<Pack<T, kPack> const*>(weights[side] + line));
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
        float const inverse = invert(p, square);
        float y = side[0] * inverse;
        if constexpr (kGated) y = activate(y, p.options.gate) * (side[kSides - 1] * inverse);
        finish<T>(p, which, row, first + inside, y);
    }
}

template <typename T, int kRows, bool kGated, int kPack>
void launch(Product p, cudaStream_t stream) {
    if (kPack == 1) {
        p.vectors = kScalarVectors;
    } else if (p.vectors == 0) {
        p.vectors = countGroups(p.shape, kGated, kMostVectors * kPack) >= kEnoughBlocks ? kMostVectors : 2;
    }
    unsigned const groups = countGroups(p.shape, kGated, p.vectors * kPack);
    dim3 const blocks(groups, (p.shape.rows + kRows - 1) / kRows), threads(kThreads);
    auto const kernel = multiply<T, kRows, kGated, kPack>;
    METAGEN_LAUNCH(kernel, blocks, threads, stream)(p);
}

template <typename T>
void choose(Product const& p, cudaStream_t stream) {
    constexpr int kPack = 16 / sizeof(T);
    bool whole = true;
    for (int i = 0; i < p.shape.weights; ++i)
        whole = whole && p.shape.columns[i] % kPack == 0 && isAligned(p.data.weights[i]);
    bool const gated = p.options.gate != Gate::kNone;
    chooseRows(p.shape.rows, [&](auto rows) {
        constexpr int kRows = decltype(rows)::value;
        if (gated) {
            whole ? launch<T, kRows, true, kPack>(p, stream) : launch<T, kRows, true, 1>(p, stream);
        } else {
            whole ? launch<T, kRows, false, kPack>(p, stream) : launch<T, kRows, false, 1>(p, stream);
        }
    });
}

}  // namespace

void multiplyLines(LinearShape const& shape, LinearOptions const& options, LinearData const& data,
                   cudaStream_t stream) {
    Product const p{shape, data, options, options.vectors};
    options.half ? choose<__half>(p, stream) : choose<float>(p, stream);
}

}  // namespace metagen
