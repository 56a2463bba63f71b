// Attention of one token a row, split over the cache ("flash decoding": Dao et al. 2023), then put together.
//
//     attend    blockIdx.x, .y, .z = a chunk of slots, a head of the cache, a row
//               a warp takes every eighth slot: copies its keys and values into the new cache, and adds them up for the
//               queries that share them, with the running maximum of an online softmax (Milakov and Gimelshein 2018)
//     combine   blockIdx.x, .y = a query head, a row: the chunks' sums, weighted by their maxima
//
// Between the two lies, for each row, query head and chunk, the maximum, the sum of weights and `size` weighted sums.
#include "kernels/values.cuh"
#include "step/step_attention.h"

namespace metagen {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kHeads = 4;              // queries that a warp serves at once; more come in turns
constexpr int kWantedBlocks = 256;     // that fill a GPU
constexpr int kShortestChunk = 16;     // slots: two a warp
constexpr int kMostBlocks = 65535;     // of a grid's y and z
constexpr float kNothing = -3.0e38f;   // the maximum of no score

struct Call {
    AttentionShape shape;
    AttentionOptions options;
    AttentionData data;
    float* parts;
    int chunk, chunks;
};

__device__ int64_t readStart(Call const& call, int row) {
    return call.options.longIds ? static_cast<int64_t const*>(call.data.start)[row]
                                : static_cast<int32_t const*>(call.data.start)[row];
}

// Element `d` of a head, rotated where there are angles.
template <typename T>
__device__ float rotate(Call const& call, T const* head, int row, int d) {
    float const value = widen(head[d]);
    if (!call.data.cosine) return value;
    int const half = call.shape.size / 2, angle = row * half + d % half;
    float const other = d < half ? -widen(head[d + half]) : widen(head[d - half]);
    return value * call.data.cosine[angle] + other * call.data.sine[angle];
}

__device__ float sumWarp(float value) {
    for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
    return value;
}

// Of `kHeads` queries over some slots: maxima, sums of weights, and weighted sums of values, kEach a lane.
template <int kEach>
struct Sums {
    float largest[kHeads], weight[kHeads], value[kHeads][kEach];

    __device__ Sums() {
#pragma unroll
        for (int h = 0; h < kHeads; ++h) {
            largest[h] = kNothing;
            weight[h] = 0.f;
#pragma unroll
            for (int e = 0; e < kEach; ++e) value[h][e] = 0.f;
        }
    }

    __device__ void add(int h, float score, float const (&v)[kEach]) {
        float const most = fmaxf(largest[h], score), keep = expf(largest[h] - most), share = expf(score - most);
        largest[h] = most;
        weight[h] = weight[h] * keep + share;
#pragma unroll
        for (int e = 0; e < kEach; ++e) value[h][e] = value[h][e] * keep + share * v[e];
    }
};

template <typename T, int kEach>
__global__ void __launch_bounds__(kThreads) attend(Call call) {
    __shared__ float query[kHeads][kEach * 32], newK[kEach * 32], newV[kEach * 32];
    __shared__ float largest[kWarps][kHeads], weight[kWarps][kHeads], value[kWarps][kHeads][kEach * 32];
    AttentionShape const& s = call.shape;
    int const row = blockIdx.z, keyHead = blockIdx.y, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int const firstSlot = blockIdx.x * call.chunk, lastSlot = min(firstSlot + call.chunk, s.capacity);
    int64_t const start = readStart(call, row), head = static_cast<int64_t>(row) * s.keyHeads + keyHead;
    int64_t const cache = head * s.capacity * s.size;
    for (int d = threadIdx.x; d < s.size; d += kThreads) {
        newK[d] = rotate(call, static_cast<T const*>(call.data.k) + head * s.size, row, d);
        newV[d] = widen(static_cast<T const*>(call.data.v)[head * s.size + d]);
    }
    for (int firstHead = 0; firstHead < s.groups; firstHead += kHeads) {
        int const heads = min(kHeads, s.groups - firstHead);
        int64_t const queryHead = head * s.groups + firstHead;
        for (int index = threadIdx.x; index < heads * s.size; index += kThreads) {
            int const h = index / s.size, d = index % s.size;
            T const* const q = static_cast<T const*>(call.data.q) + (queryHead + h) * s.size;
            query[h][d] = rotate(call, q, row, d) * call.options.scale;
        }
        __syncthreads();

        Sums<kEach> sums;
#pragma unroll 2
        for (int slot = firstSlot + warp; slot < lastSlot; slot += kWarps) {
            int64_t const place = cache + static_cast<int64_t>(slot) * s.size;
            float k[kEach], v[kEach];
#pragma unroll
            for (int e = 0; e < kEach; ++e) {
                int const d = lane + 32 * e;
                bool const inside = d < s.size;
                k[e] = !inside ? 0.f : slot == start ? newK[d] : call.data.pastK[place + d];
                v[e] = !inside ? 0.f : slot == start ? newV[d] : call.data.pastV[place + d];
                if (inside && firstHead == 0) {
                    call.data.presentK[place + d] = k[e];
                    call.data.presentV[place + d] = v[e];
                }
            }
            if (slot > start || (call.options.window && slot <= start - call.options.window)) continue;
#pragma unroll
            for (int h = 0; h < kHeads; ++h) {
                if (h >= heads) break;
                float score = 0.f;
#pragma unroll
                for (int e = 0; e < kEach; ++e)
                    if (lane + 32 * e < s.size) score = fmaf(k[e], query[h][lane + 32 * e], score);
                score = sumWarp(score);
                float const cap = call.options.softcap;
                sums.add(h, cap > 0.f ? cap * tanhf(score / cap) : score, v);
            }
        }

#pragma unroll
        for (int h = 0; h < kHeads; ++h) {
            if (lane == 0) largest[warp][h] = sums.largest[h], weight[warp][h] = sums.weight[h];
#pragma unroll
            for (int e = 0; e < kEach; ++e) value[warp][h][lane + 32 * e] = sums.value[h][e];
        }
        __syncthreads();
        for (int index = threadIdx.x; index < heads * s.size; index += kThreads) {
            int const h = index / s.size, d = index % s.size;
            float most = kNothing, total = 0.f, sum = 0.f;
            for (int w = 0; w < kWarps; ++w) most = fmaxf(most, largest[w][h]);
            for (int w = 0; w < kWarps; ++w) {
                float const share = expf(largest[w][h] - most);
                total += weight[w][h] * share;
                sum += value[w][h][d] * share;
            }
            float* const part = call.parts + ((queryHead + h) * call.chunks + blockIdx.x) * (s.size + 2);
            if (d == 0) part[0] = most, part[1] = total;
            part[2 + d] = sum;
        }  // the next turn writes here again only when all have met at its queries
    }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) combine(Call call) {
    __shared__ float largest[kThreads], weight[kThreads], value[kThreads];
    int const size = call.shape.size, across = (size + 31) / 32 * 32, teams = kThreads / across;
    int const team = threadIdx.x / across, d = threadIdx.x % across;
    int64_t const head = static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x;
    float const* const parts = call.parts + head * call.chunks * (size + 2);
    float most = kNothing, total = 0.f, sum = 0.f;
    if (team < teams && d < size) {
#pragma unroll 4
        for (int chunk = team; chunk < call.chunks; chunk += teams) {
            float const* const part = parts + static_cast<int64_t>(chunk) * (size + 2);
            float const next = fmaxf(most, part[0]), keep = expf(most - next), share = expf(part[0] - next);
            total = total * keep + part[1] * share;
            sum = sum * keep + part[2 + d] * share;
            most = next;
        }
    }
    largest[threadIdx.x] = most;
    weight[threadIdx.x] = total;
    value[threadIdx.x] = sum;
    __syncthreads();
    if (team > 0 || d >= size) return;
    for (int other = 1; other < teams; ++other) most = fmaxf(most, largest[other * across + d]);
    total = sum = 0.f;
    for (int one = 0; one < teams; ++one) {
        float const share = expf(largest[one * across + d] - most);
        total += weight[one * across + d] * share;
        sum += value[one * across + d] * share;
    }
    narrow(sum / total, static_cast<T*>(call.data.out)[head * size + d]);
}

int chooseChunk(AttentionShape const& s) {
    int64_t const wanted = (static_cast<int64_t>(s.capacity) * s.keyHeads * s.batch + kWantedBlocks - 1) / kWantedBlocks;
    int64_t const rounded = (wanted + kWarps - 1) / kWarps * kWarps;
    return static_cast<int>(rounded > kShortestChunk ? rounded : kShortestChunk);
}

template <typename T, int kEach>
void launch(Call const& call, cudaStream_t stream) {
    AttentionShape const& s = call.shape;
    dim3 const chunks(call.chunks, s.keyHeads, s.batch), heads(s.keyHeads * s.groups, s.batch), threads(kThreads);
    auto const first = attend<T, kEach>;
    METAGEN_LAUNCH(first, chunks, threads, stream)(call);
    auto const second = combine<T>;
    METAGEN_LAUNCH(second, heads, threads, stream)(call);
}

template <typename T>
void chooseSize(Call const& call, cudaStream_t stream) {
    if (call.shape.size <= 32) return launch<T, 1>(call, stream);
    if (call.shape.size <= 64) return launch<T, 2>(call, stream);
    if (call.shape.size <= 128) return launch<T, 4>(call, stream);
    launch<T, 8>(call, stream);
}

bool fits(AttentionShape const& s, AttentionData const& data) {
    if (s.keyHeads < 1 || s.groups < 1 || s.capacity < 1 || s.size < 1 || s.size > kLargestHead) return false;
    return s.batch <= kMostBlocks && s.keyHeads <= kMostBlocks && (!data.cosine || s.size % 2 == 0);
}

}  // namespace

size_t countAttentionWorkspace(AttentionShape const& s) {
    // a smaller batch has more chunks: row by row they are at most these, and together no more than fill a GPU
    int64_t const rows = static_cast<int64_t>(s.batch) * s.keyHeads;
    int64_t const each = (s.capacity + kShortestChunk - 1) / kShortestChunk;
    int64_t const parts = rows * each < kWantedBlocks + rows ? rows * each : kWantedBlocks + rows;
    return static_cast<size_t>(parts) * s.groups * (s.size + 2) * sizeof(float);
}

cudaError_t stepAttention(AttentionShape const& shape, AttentionOptions const& options, AttentionData const& data,
                          float* workspace, cudaStream_t stream) {
    if (!fits(shape, data)) return cudaErrorInvalidValue;
    if (shape.batch < 1) return cudaSuccess;
    int const chunk = chooseChunk(shape), chunks = (shape.capacity + chunk - 1) / chunk;
    Call const call{shape, options, data, workspace, chunk, chunks};
    options.half ? chooseSize<__half>(call, stream) : chooseSize<float>(call, stream);
    return cudaPeekAtLastError();
}

}  // namespace metagen

// For tests and benchmarks. `sizes`: batch, keyHeads, groups, capacity, size; `options`: window, half, longIds;
// `factors`: scale, softcap; `pointers`: q, k, v, past_k, past_v, start, cosine, sine, out, present_k, present_v and
// the workspace. Returns a cudaError_t.
extern "C" __attribute__((visibility("default"))) int32_t metagenStepAttention(int32_t const* sizes,
                                                                               int32_t const* options,
                                                                               float const* factors,
                                                                               void* const* pointers,
                                                                               cudaStream_t stream) {
    metagen::AttentionShape const shape{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]};
    metagen::AttentionOptions const chosen{factors[0], options[0], factors[1], options[1], options[2]};
    auto const floats = [pointers](int i) { return static_cast<float*>(pointers[i]); };
    metagen::AttentionData const data{pointers[0], pointers[1], pointers[2], floats(3), floats(4), pointers[5],
                                      floats(6),   floats(7),   pointers[8], floats(9), floats(10)};
    return metagen::stepAttention(shape, chosen, data, floats(11), stream);
}

// Bytes of the workspace of these `sizes`.
extern "C" __attribute__((visibility("default"))) int64_t metagenStepAttentionWorkspace(int32_t const* sizes) {
    return static_cast<int64_t>(
        metagen::countAttentionWorkspace({sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]}));
}
