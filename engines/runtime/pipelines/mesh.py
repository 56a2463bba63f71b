"""A text in, a mesh out: features, triplane, the field over a grid of points, marching cubes.

    text_encoder(token_ids [B, T])                  -> text_features [B, C]
    triplane(text_features, latent [B, L])          -> planes [B, 3, C, P, P]
    field(planes, points [B, N, 3])                 -> distance [B, N], colour [B, N, 3]

Marching cubes (Lorensen & Cline 1987) is scikit-image's, needed only here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np

from engines.runtime.fields import take_field, take_graph
from engines.runtime.pipelines.base import Pipeline
from engines.runtime.pipelines.stages.batching import get_batch_range, pad_rows
from engines.runtime.pipelines.stages.caches import get_axis_range
from engines.runtime.request import Answer, Mesh, Request, require
from engines.runtime.text.context import ContextTokenizer
from specs.bundle import Manifest
from specs.errors import InputError, MissingDependency

if TYPE_CHECKING:
    from engines.runtime.arrays import Array
    from engines.runtime.graph_session import GraphSession

_DEFAULT_RESOLUTION = 64
_MOST_POINTS = 1 << 16  # at once, where the graph does not say


@final
class TextToMesh(Pipeline):
    """Shapes of a text; the seed tells one from another."""

    def __init__(self, folder: Path, manifest: Manifest, graphs: Mapping[str, GraphSession]) -> None:
        config = manifest.pipeline
        self._texts = take_graph(config, "text_encoder", graphs, inputs=("token_ids",), outputs=("text_features",))
        self._triplane = take_graph(config, "triplane", graphs, inputs=("text_features", "latent"), outputs=("planes",))
        self._field = take_graph(config, "field", graphs, inputs=("planes", "points"), outputs=("distance", "colour"))
        self._latent_size = take_field(config, "latent_size", int)
        self._context = ContextTokenizer(folder, manifest, take_field(config, "tokenizer", dict))

    def make_mesh(self, text: str, *, seed: int = 0, resolution: int = _DEFAULT_RESOLUTION) -> Mesh:
        """The surface where the field's distance is zero, found on a grid of `resolution` points along each axis.

        Raises:
            InputError: a resolution below 2, a text that is too long, or a field without a surface.
            MissingDependency: scikit-image is not installed.
        """
        if resolution < 2:
            raise InputError(
                "a grid needs two points along each axis",
                got=str(resolution),
                allowed="2 or more",
                fix="choose a larger resolution",
            )
        march = _find_marching_cubes()
        planes = self.make_planes(text, seed=seed)
        axis = np.linspace(-1, 1, resolution, dtype=np.float32)
        grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
        distance, _ = self.read_field(planes, grid)
        volume = distance.reshape(resolution, resolution, resolution)
        if not volume.min() < 0 < volume.max():
            raise InputError(
                "this text and seed give a shape without a surface",
                got=f"distances {volume.min():.3g} to {volume.max():.3g}",
                fix="try another seed",
            )
        step = 2 / (resolution - 1)
        corners, faces, _, _ = march(volume, 0.0, spacing=(step, step, step))
        vertices = (corners - 1).astype(np.float32)
        return Mesh(vertices=vertices, faces=np.asarray(faces), colours=self.read_field(planes, vertices)[1])

    def make_planes(self, text: str, *, seed: int = 0) -> Array:
        """The triplane [1, 3, C, P, P] of a text and a seed."""
        rows = self._count_rows()
        ids = pad_rows(self._context.encode(text)[None], rows)
        features = self._texts.run({"token_ids": ids}, check_finite=True)["text_features"]
        latent = np.random.default_rng(seed).standard_normal((1, self._latent_size)).astype(np.float32)
        feed = {"text_features": features, "latent": pad_rows(latent, rows)}
        return self._triplane.run(feed, check_finite=True)["planes"][:1]

    def read_field(self, planes: Array, points: Array) -> tuple[Array, Array]:
        """Distance [N] and colour [N, 3] at points [N, 3] of [-1, 1], as many at a time as the graph takes."""
        low, most = get_axis_range(self._field, "points", 1)
        high = most or _MOST_POINTS
        rows = self._count_rows()
        wide = pad_rows(planes, rows)
        distances, colours = [], []
        for start in range(0, len(points), high):
            block = points[start : start + high]
            asked = np.repeat(pad_rows(block, low)[None], rows, axis=0)
            found = self._field.run({"planes": wide, "points": asked}, check_finite=True)
            distances.append(found["distance"][0, : len(block)])
            colours.append(found["colour"][0, : len(block)])
        return np.concatenate(distances), np.concatenate(colours)

    def answer(self, request: Request) -> Answer:
        require(request, "texts", prompts=True)
        made = [self.make_mesh(text, seed=request.seed) for text in request.prompts]
        rows = [(text, len(mesh.vertices), len(mesh.faces)) for text, mesh in zip(request.prompts, made, strict=True)]
        return Answer(header=("text", "vertices", "faces"), rows=tuple(rows), media=tuple(made))

    def _count_rows(self) -> int:
        return max(get_batch_range(graph)[0] for graph in (self._texts, self._triplane, self._field))


def _find_marching_cubes() -> Callable[..., Any]:
    try:
        march: Callable[..., Any] = importlib.import_module("skimage.measure").marching_cubes
    except ImportError:
        raise MissingDependency(
            "a mesh needs the package 'scikit-image' for marching cubes, which is not installed",
            fix="pip install scikit-image; or read the field yourself: session.pipeline.read_field(planes, points)",
        ) from None
    return march
