"""The families of models, one a file: FAMILIES lists them all. `specs.graphs` finds the one that a spec is of."""

from __future__ import annotations

from specs.families.base import Family, GraphSpec
from specs.families.classification import ImageClassificationFamily
from specs.families.generation import TextGenerationFamily
from specs.families.similarity import ImageTextSimilarityFamily

__all__ = ["FAMILIES", "Family", "GraphSpec"]

#: In the order in which errors list them. A spec's components fill the roles of exactly one.
FAMILIES: tuple[Family, ...] = (
    ImageClassificationFamily(),
    TextGenerationFamily(),
    ImageTextSimilarityFamily(),
)
