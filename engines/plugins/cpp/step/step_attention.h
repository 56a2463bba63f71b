// MetagenStepAttention on CUDA: one new token of each row of a batch over a key/value cache of fixed capacity.
//
//     k', v'  = past_k, past_v, with the new token's keys (rotated) and values in slot `start`
//     out     = softmax(scale q k'^T, over the slots that the token sees) v'
//
// What it computes is MetagenCachedAttention of one token (exporters/ops/cached_attention.py), with the rotary
// embedding in front of it (Su et al. 2021, in halves). A token whose slot lies behind the cache is not written; one
// that then sees no slot, by more than a window behind it, gives NaN.
// Everything is summed in float32; the cache is float32, out has the queries' type.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace metagen {

// q and out [batch, groups * keyHeads, size], k and v [batch, keyHeads, size]; caches [batch, keyHeads, capacity, size].
struct AttentionShape {
    int32_t batch, keyHeads, groups, capacity, size;
};

struct AttentionOptions {
    float scale;
    int32_t window;   // slots that a token sees, its own included; 0: all before it
    float softcap;    // cap * tanh(score / cap); 0: none
    int32_t half;     // q, k, v and out are float16
    int32_t longIds;  // start is int64, else int32
};

// start [batch]; cosine and sine [batch, size / 2], or null where nothing is rotated; all contiguous.
struct AttentionData {
    void const *q, *k, *v;
    float const *pastK, *pastV;
    void const* start;
    float const *cosine, *sine;
    void* out;
    float *presentK, *presentV;
};

constexpr int kLargestHead = 256;

// Bytes that `stepAttention` needs at most for a batch and a capacity up to those of `shape`.
size_t countAttentionWorkspace(AttentionShape const& shape);

// Enqueues two kernels on `stream`. cudaErrorInvalidValue for sizes that are not positive, a head of more than
// kLargestHead, or an odd one that shall be rotated.
cudaError_t stepAttention(AttentionShape const& shape, AttentionOptions const& options, AttentionData const& data,
                          float* workspace, cudaStream_t stream);

}  // namespace metagen
