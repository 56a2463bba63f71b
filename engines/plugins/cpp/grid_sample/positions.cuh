// What both kernels share: where a position falls among the voxels of one axis.
#pragma once

#include "grid_sample/grid_sample_3d.h"
#include "kernels/values.cuh"

namespace metagen {

// Mirrors at `low` and `low + span`; a span of 0 has a single place.
__device__ inline float reflect(float position, float span, float low) {
    float const period = fmaxf(2.f * span, 1.f);
    float const away = fabsf(position - low);
    float const turned = fabsf(away - floorf(away / period) * period - span);
    return span - turned + low;
}

// The voxel coordinate of `g` in [-1, 1] along an axis of `size` voxels. fmaxf takes NaN to its other argument.
template <Padding kPadding, bool kAlign>
__device__ float findPosition(float g, int size) {
    float const voxels = static_cast<float>(size);
    float position = kAlign ? (g + 1.f) / 2.f * (voxels - 1.f) : ((g + 1.f) * voxels - 1.f) / 2.f;
    if (kPadding == Padding::kZeros) return fminf(fmaxf(position, -1.f), voxels);
    if (kPadding == Padding::kReflection) {
        position = kAlign ? reflect(position, voxels - 1.f, 0.f) : reflect(position, voxels, -.5f);
    }
    return fminf(fmaxf(position, 0.f), voxels - 1.f);
}

__device__ inline bool isInside(int place, int size) { return static_cast<unsigned>(place) < static_cast<unsigned>(size); }
__device__ inline int clamp(int place, int size) { return min(max(place, 0), size - 1); }

// The two places along one axis, inside the volume, and their weights.
struct Pair {
    int place[2];
    float weight[2];
};

template <Padding kPadding, bool kAlign>
__device__ Pair findPair(float g, int size) {
    float const position = findPosition<kPadding, kAlign>(g, size);
    float const low = floorf(position);
    int const place = static_cast<int>(low);
    float const fraction = position - low;
    Pair pair;
    pair.weight[0] = isInside(place, size) ? 1.f - fraction : 0.f;
    pair.weight[1] = isInside(place + 1, size) ? fraction : 0.f;
    pair.place[0] = clamp(place, size);
    pair.place[1] = clamp(place + 1, size);
    return pair;
}

// The eight corners of a position: which voxel, and its share. Outside, the share is 0 and the voxel any inside.
struct Corners {
    int voxel[8];
    float weight[8];
};

template <Padding kPadding, bool kAlign>
__device__ Corners findCorners(SampleShape const& s, float const* g) {
    Pair const along_w = findPair<kPadding, kAlign>(__ldg(g), s.w);
    Pair const along_h = findPair<kPadding, kAlign>(__ldg(g + 1), s.h);
    Pair const along_d = findPair<kPadding, kAlign>(__ldg(g + 2), s.d);
    Corners corners;
#pragma unroll
    for (int k = 0; k < 8; ++k) {
        int const i = k & 1, j = k >> 1 & 1, l = k >> 2;
        corners.voxel[k] = (along_d.place[l] * s.h + along_h.place[j]) * s.w + along_w.place[i];
        corners.weight[k] = along_d.weight[l] * along_h.weight[j] * along_w.weight[i];
    }
    return corners;
}

// The nearest voxel, -1 outside.
template <Padding kPadding, bool kAlign>
__device__ int findNearest(SampleShape const& s, float const* g) {
    int const i = __float2int_rn(findPosition<kPadding, kAlign>(__ldg(g), s.w));
    int const j = __float2int_rn(findPosition<kPadding, kAlign>(__ldg(g + 1), s.h));
    int const l = __float2int_rn(findPosition<kPadding, kAlign>(__ldg(g + 2), s.d));
    return isInside(i, s.w) && isInside(j, s.h) && isInside(l, s.d) ? (l * s.h + j) * s.w + i : -1;
}

// Calls `launch.template run<padding, align>()` for the options at hand.
template <typename Launch>
void dispatch(SampleOptions const& o, Launch const& launch) {
    bool const align = o.alignCorners != 0;
    switch (o.padding) {
        case Padding::kZeros:
            return align ? launch.template run<Padding::kZeros, true>() : launch.template run<Padding::kZeros, false>();
        case Padding::kBorder:
            return align ? launch.template run<Padding::kBorder, true>()
                         : launch.template run<Padding::kBorder, false>();
        case Padding::kReflection:
            return align ? launch.template run<Padding::kReflection, true>()
                         : launch.template run<Padding::kReflection, false>();
    }
}

}  // namespace metagen
