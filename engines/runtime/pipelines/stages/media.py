"""What a decoder reads beside text: pictures, films and sounds, each through an encoder and a resampler.

picture [C, H, W]    -> encoder -> features [N, C] -> resampler -> embeddings           or raw pixels [H, W, C]
film [F, C, H, W]    -> encoder, a row for each frame -> features [F, N, C] -> resampler -> embeddings
sound [L]            -> encoder -> features [S, C] -> resampler -> embeddings
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np

from engines.runtime.fields import take_field, take_graph
from engines.runtime.media.film import is_film, sample_film
from engines.runtime.media.sound import load_chunk
from engines.runtime.pipelines.stages.batching import run_rows
from engines.runtime.pipelines.stages.pictures import PictureGraph
from specs.errors import BundleError, InputError, name_nearest

if TYPE_CHECKING:
    from engines.runtime.arrays import Array
    from engines.runtime.graph_session import GraphSession

    #: A file, a folder of pictures, or an array: a sound [L], a picture [H, W] or [H, W, C], a film [T, H, W, C].
    Source = str | Path | Array

_SOUNDS = (".wav",)


class Medium(ABC):
    """One kind of medium: how it is loaded, and the two graphs that make `tokens` embeddings of it."""

    def __init__(self, config: Mapping[str, Any], graphs: Mapping[str, GraphSession]) -> None:
        self.tokens = take_field(config, "tokens", int, at="pipeline.media")
        self._resampler = take_graph(config, "resampler", graphs, inputs=("features",), outputs=("embeddings",))

    @abstractmethod
    def encode(self, source: Source) -> Array:
        """Features of one of them, as the resampler takes them."""

    def embed(self, source: Source) -> Array:
        """As the decoder reads it: [tokens, C].

        Raises:
            InputError: the file is none of this kind.
        """
        embeddings: Array = run_rows(self._resampler, {"features": self.encode(source)})["embeddings"][0]
        return embeddings

    def make_nothing(self) -> Array:
        """Zeros [1, tokens, C] in the place of embeddings, where no token reads any."""
        made = next(tensor for tensor in self._resampler.graph.outputs if tensor.name == "embeddings")
        return np.zeros((1, self.tokens, int(made.shape[2])), np.float32)


@final
class Pictures(Medium):
    """Of the size and the steps that the bundle says."""

    def __init__(self, config: Mapping[str, Any], graphs: Mapping[str, GraphSession]) -> None:
        super().__init__(config, graphs)
        self._encoder = PictureGraph(config, "encoder", graphs, outputs=("features",))

    def encode(self, source: Source) -> Array:
        return self._encoder.run([source])["features"]


@final
class Films(Medium):
    """`num_frames` frames, evenly chosen, each as a picture."""

    def __init__(self, config: Mapping[str, Any], graphs: Mapping[str, GraphSession]) -> None:
        super().__init__(config, graphs)
        self._encoder = PictureGraph(config, "encoder", graphs, outputs=("features",))
        self.num_frames = take_field(config, "num_frames", int, at="pipeline.media")

    def encode(self, source: Source) -> Array:
        return self._encoder.run(sample_film(source, num_frames=self.num_frames))["features"][None]


@final
class Sounds(Medium):
    """One chunk; what is shorter is followed by silence, what is longer is refused."""

    def __init__(self, config: Mapping[str, Any], graphs: Mapping[str, GraphSession]) -> None:
        super().__init__(config, graphs)
        self._encoder = take_graph(config, "encoder", graphs, inputs=("samples",), outputs=("features",))
        self.sample_rate = take_field(config, "sample_rate", int, at="pipeline.media")
        self.num_samples = take_field(config, "num_samples", int, at="pipeline.media")

    def encode(self, source: Source) -> Array:
        samples = load_chunk(source, sample_rate=self.sample_rate, num_samples=self.num_samples)
        return run_rows(self._encoder, {"samples": samples[None]})["features"]


_KINDS: dict[str, type[Medium]] = {"picture": Pictures, "film": Films, "sound": Sounds}


def open_media(config: Mapping[str, Any], graphs: Mapping[str, GraphSession]) -> dict[str, Medium]:
    """What `pipeline.media` lists, by kind, in the order in which media stand before a text."""
    listed: list[Any] = take_field(config, "media", list)
    media: dict[str, Medium] = {}
    for entry in listed:
        kind = entry.get("kind") if isinstance(entry, dict) else entry
        if kind not in _KINDS:
            raise BundleError(
                f"manifest: unknown medium '{kind}'",
                allowed=name_nearest(str(kind), _KINDS),
                fix="export the bundle again, or upgrade metagen-deploy",
            )
        media[kind] = _KINDS[kind](entry, graphs)
    return media


def name_kind(source: Source, kinds: Sequence[str]) -> str:
    """Which of the `kinds` that a model reads a source is.

    A model of films alone sees a picture as a film of one frame; one of pictures alone sees the first of an animation.

    Raises:
        InputError: it is of a kind that the model does not read.
    """
    if isinstance(source, np.ndarray):
        is_sound = source.ndim == 1
    else:
        is_sound = str(source).lower().endswith(_SOUNDS)
    seen = [kind for kind in kinds if kind != "sound"]
    if not ("sound" in kinds if is_sound else seen):
        raise InputError(
            "this bundle does not read " + ("sounds" if is_sound else "pictures or films"),
            got="array" if isinstance(source, np.ndarray) else str(source),
            allowed=" and ".join(f"{kind}s" for kind in kinds),
            fix="hand over what it reads, or use a bundle of another model",
        )
    if is_sound:
        return "sound"
    return seen[0] if len(seen) == 1 else ("film" if is_film(source) else "picture")
