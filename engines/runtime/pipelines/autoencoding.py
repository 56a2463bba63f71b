"""A picture to latents and back: what an autoencoder keeps of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np

from engines.runtime.fields import take_graph
from engines.runtime.media.image import load_image
from engines.runtime.pipelines.base import Pipeline
from engines.runtime.pipelines.stages.batching import run_rows
from engines.runtime.pipelines.stages.pictures import take_image_size
from engines.runtime.request import Answer, Picture, Request, require
from specs.bundle import Manifest

if TYPE_CHECKING:
    from engines.runtime.arrays import Array
    from engines.runtime.graph_session import GraphSession


@final
class ImageAutoencoding(Pipeline):
    """encode(image) -> mean, log_variance;  decode(latents) -> image. Pictures in [-1, 1], latents unscaled."""

    def __init__(self, folder: Path, manifest: Manifest, graphs: Mapping[str, GraphSession]) -> None:
        config = manifest.pipeline
        self._encode = take_graph(config, "encode", graphs, inputs=("image",), outputs=("mean", "log_variance"))
        self._decode = take_graph(config, "decode", graphs, inputs=("latents",), outputs=("image",))
        self._size = take_image_size(config)

    def encode(self, image: str | Path | Array) -> tuple[Array, Array]:
        """Mean and log variance of a picture's latents, [1, channels, height, width]; see `load_image`."""
        pixels = load_image(image, **self._size) * np.float32(2) - np.float32(1)
        found = run_rows(self._encode, {"image": pixels})
        return found["mean"], found["log_variance"]

    def decode(self, latents: Array) -> Array:
        """Pictures in [0, 1], [batch, height, width, channels]."""
        return finish_pictures(run_rows(self._decode, {"latents": latents})["image"])

    def answer(self, request: Request) -> Answer:
        require(request, "pictures", files=True)
        rows, pictures, arrays = [], [], {}
        for index, file in enumerate(request.files):
            mean, _ = self.encode(file)
            picture = self.decode(mean)[0]
            pictures.append(Picture(pixels=picture))
            arrays[f"latents_{index}"] = mean
            rows.append((file, tuple(mean.shape[1:]), float(mean.std())))
        return Answer(
            header=("picture", "latents", "deviation"), rows=tuple(rows), arrays=arrays, media=tuple(pictures)
        )


def finish_pictures(image_BCHW: Array) -> Array:
    """[-1, 1] with overshoot -> [0, 1], channels last, three of them."""
    pictures: Array = np.clip(image_BCHW / 2 + 0.5, 0.0, 1.0).transpose(0, 2, 3, 1)
    return np.repeat(pictures, 3, axis=3) if pictures.shape[3] == 1 else pictures[..., :3]
