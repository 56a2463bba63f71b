"""Buckets of distances between tokens, for biases by distance (Raffel et al. 2020): T5, MPNet."""

from __future__ import annotations

import math

import torch


def list_buckets(num_buckets: int, max_distance: int) -> list[int]:
    """The bucket of every offset (key - query) from -max_distance to max_distance.

    Computed here once, in float32 as T5 does it: a graph that took the logarithm itself would round some distances
    into the bucket beside theirs.
    """
    half, exact = num_buckets // 2, num_buckets // 4
    distance = torch.arange(max_distance + 1, device="cpu")
    scale = math.log(max_distance / exact)
    steps = (torch.log(distance.float() / exact) / scale * (half - exact)).clamp(min=0).to(torch.int64)
    far = (exact + steps).clamp(max=half - 1)
    bucket = torch.where(distance < exact, distance, far).tolist()
    return [*reversed(bucket[1:]), bucket[0], *(half + one for one in bucket[1:])]
