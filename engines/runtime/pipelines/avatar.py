"""A picture and a voice in, frames out, one at a time and in time.

    appearance(image [B, 3, H, W])                          -> volume, keypoints        once
    motion(samples [B, L], keypoints, past_heard, past_*)   -> moved_keypoints, state   every frame
    renderer(volume, keypoints, moved_keypoints)            -> frame [B, 3, H, W]       every frame

The state is what `motion` gave back; `Stream` keeps it between calls, so an app hands over sound as it comes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np

from engines.runtime.fields import take_field, take_graph
from engines.runtime.media.image import load_image
from engines.runtime.media.sound import load_sound
from engines.runtime.pipelines.base import Pipeline
from engines.runtime.pipelines.stages.batching import get_batch_range, pad_rows
from engines.runtime.pipelines.stages.caches import MOST_LAYERS, choose_kept
from engines.runtime.pipelines.stages.pictures import take_image_size
from engines.runtime.request import Answer, Film, Request
from specs.bundle import Manifest
from specs.errors import InputError

if TYPE_CHECKING:
    from engines.runtime.arrays import Array
    from engines.runtime.graph_session import GraphSession

_SOUNDS = (".wav",)


@final
class Avatar(Pipeline):
    """Somebody's picture, moved by a voice."""

    def __init__(self, folder: Path, manifest: Manifest, graphs: Mapping[str, GraphSession]) -> None:
        config = manifest.pipeline
        layers = range(take_field(config, "num_layers", int, most=MOST_LAYERS))
        self.state_names = ["heard", *(f"layer_{layer}" for layer in layers)]
        self.appearance = take_graph(config, "appearance", graphs, inputs=("image",), outputs=("volume", "keypoints"))
        self.motion = take_graph(
            config,
            "motion",
            graphs,
            inputs=("samples", "keypoints", *(f"past_{name}" for name in self.state_names)),
            outputs=("moved_keypoints", *self.state_names),
        )
        self.renderer = take_graph(
            config, "renderer", graphs, inputs=("volume", "keypoints", "moved_keypoints"), outputs=("frame",)
        )
        self._size = take_image_size(config)
        self.sample_rate_hz = take_field(config, "sample_rate_hz", int)
        self.frames_per_second = take_field(config, "frames_per_second", int, most=self.sample_rate_hz)

    @property
    def samples_per_frame(self) -> int:
        """Samples that one frame needs."""
        return self.sample_rate_hz // self.frames_per_second

    def open_stream(self, picture: str | Path | Array) -> Stream:
        """Look at a picture (see `load_image`), and be ready for its voice."""
        return Stream(self, load_image(picture, **self._size))

    def animate(self, picture: str | Path | Array, voice: str | Path | Array) -> Film:
        """A film as long as the voice (see `load_sound`); the last frame's missing samples are silence."""
        samples = load_sound(voice, sample_rate=self.sample_rate_hz)
        count = -(-len(samples) // self.samples_per_frame)
        padded = np.pad(samples, (0, count * self.samples_per_frame - len(samples)))
        stream = self.open_stream(picture)
        frames = [stream.step(block) for block in padded.reshape(count, -1)]
        return Film(frames=np.stack(frames), frames_per_second=self.frames_per_second)

    def answer(self, request: Request) -> Answer:
        voices = [file for file in request.files if file.lower().endswith(_SOUNDS)]
        pictures = [file for file in request.files if not file.lower().endswith(_SOUNDS)]
        if len(voices) != 1 or len(pictures) != 1 or request.prompts:
            raise InputError(
                "this bundle takes one picture and one voice",
                got=f"{len(pictures)} pictures, {len(voices)} sounds, {len(request.prompts)} prompts",
                fix="metagen-deploy run BUNDLE PICTURE.png VOICE.wav -o FILM.png",
            )
        film = self.animate(pictures[0], voices[0])
        row = (pictures[0], voices[0], len(film.frames), film.frames_per_second)
        return Answer(header=("picture", "voice", "frames", "frames per second"), rows=(row,), media=(film,))


@final
class Stream:
    """One identity, and the state of its voice."""

    def __init__(self, avatar: Avatar, image: Array) -> None:
        self._avatar = avatar
        graphs = (avatar.appearance, avatar.motion, avatar.renderer)
        self._rows = max(get_batch_range(graph)[0] for graph in graphs)
        kept = choose_kept(("volume",), avatar.renderer)  # the largest tensor, drawn from in every frame
        looks = avatar.appearance.run({"image": pad_rows(image, self._rows)}, keep=kept, check_finite=True)
        self._volume, self._keypoints = looks["volume"], looks["keypoints"]
        self._state = dict(self._make_silence())

    def step(self, samples: Array) -> Array:
        """The frame [H, W, 3] in [0, 1] of the next `samples_per_frame` samples, float32 in [-1, 1].

        Raises:
            InputError: more or fewer samples.
        """
        expected = self._avatar.samples_per_frame
        if samples.shape != (expected,):
            raise InputError(
                "a frame takes its own samples",
                got=str(list(samples.shape)),
                allowed=str([expected]),
                fix="cut the sound into pieces of this size, the last one padded with zeros",
            )
        heard = pad_rows(np.asarray(samples, np.float32)[None], self._rows)
        feed = {"samples": heard, "keypoints": self._keypoints, **self._state}
        moved = self._avatar.motion.run(feed, check_finite=True)
        self._state = {f"past_{name}": moved[name] for name in self._avatar.state_names}
        drawn = self._avatar.renderer.run(
            {"volume": self._volume, "keypoints": self._keypoints, "moved_keypoints": moved["moved_keypoints"]},
            keep=(),
            check_finite=True,
        )
        frame: Array = drawn["frame"][0].transpose(1, 2, 0)
        return frame

    def _make_silence(self) -> Iterator[tuple[str, Array]]:
        for tensor in self._avatar.motion.graph.inputs:
            if tensor.name.startswith("past_"):
                sizes = [size for size in tensor.shape[1:] if isinstance(size, int)]
                yield tensor.name, np.zeros((self._rows, *sizes), np.float32)
