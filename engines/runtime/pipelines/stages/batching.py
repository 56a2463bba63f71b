"""Any number of rows through a graph that takes a limited number of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from engines.runtime.arrays import Array
    from engines.runtime.graph_session import GraphSession


def get_batch_range(graph: GraphSession) -> tuple[int, int | None]:
    """Smallest and largest size of the first axis of the graph's inputs; None when nothing limits it."""
    axis = graph.graph.inputs[0].shape[0]
    if isinstance(axis, int):
        return axis, axis
    low, _, high = graph.dims.get(axis, (1, 1, None))
    return low, high


def run_rows(graph: GraphSession, feed: Mapping[str, Array]) -> dict[str, Array]:
    """Run all rows of `feed` in as few calls as the graph's batch range allows, and join the outputs.

    A last block that is too small is filled with copies of its last row, whose results are dropped: rows of a
    network do not see each other.
    """
    low, high = get_batch_range(graph)
    rows = len(next(iter(feed.values())))
    step = max(1, rows if high is None else min(rows, high))
    blocks = []
    for start in range(0, rows, step):
        block = {name: pad_rows(value[start : start + step], low) for name, value in feed.items()}
        results = graph.run(block, check_finite=True)
        blocks.append({name: value[: min(step, rows - start)] for name, value in results.items()})
    if len(blocks) == 1:
        return blocks[0]
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def pad_rows(value: Array, rows: int) -> Array:
    """`value` with its last row repeated until there are at least `rows`."""
    missing = rows - len(value)
    return value if missing <= 0 else np.concatenate([value, np.repeat(value[-1:], missing, axis=0)])


def softmax(scores: Array) -> Array:
    """Over the last axis, in float64."""
    exponents = np.exp(scores.astype(np.float64) - scores.max(axis=-1, keepdims=True))
    shares: Array = exponents / exponents.sum(axis=-1, keepdims=True)
    return shares
