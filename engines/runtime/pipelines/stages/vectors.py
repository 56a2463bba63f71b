"""Vectors as a table: what each is like, and the cosine of every pair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from engines.runtime.request import Answer, Cell

if TYPE_CHECKING:
    from engines.runtime.arrays import Array


def make_vector_answer(what: str, names: Sequence[str], vectors: Array) -> Answer:
    """One row a vector: its width and length, its first values, and its cosine with every other.

    Args:
        what: what was turned into vectors, for the table's head: "text".
        vectors: [names, width]; they are the answer's arrays, as `embedding`, beside their `similarity`.
    """
    similarity = compare_vectors(vectors)
    columns = [f"cosine {number}" for number in range(1, len(names) + 1)] if len(names) > 1 else []
    rows: list[tuple[Cell, ...]] = []
    for name, vector, cosines in zip(names, vectors, similarity, strict=True):
        first = " ".join(f"{value:+.4f}" for value in vector[:3])
        described = (name, vector.shape[0], round(float(np.linalg.norm(vector)), 6), f"{first} ...")
        rows.append((*described, *(round(float(cosine), 6) for cosine in cosines if columns)))
    return Answer(
        header=(what, "width", "length", "first values", *columns),
        rows=tuple(rows),
        arrays={"embedding": vectors, "similarity": similarity},
    )


def compare_vectors(vectors: Array) -> Array:
    """Cosine similarity of every pair, float32 [n, n]; a vector of zeros is like nothing."""
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    unit = vectors / np.maximum(lengths, 1e-12)
    similarity: Array = (unit @ unit.T).astype(np.float32)
    return similarity
