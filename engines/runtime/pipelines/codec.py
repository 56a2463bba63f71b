"""Sound to codes, and codes to sound.

    encode(samples [B, C, N]) -> vectors [B, D, F]       look_up(codes [B, Q, F]) -> vectors [B, Q, F, D]
    decode(codes [B, Q, F])   -> samples [B, C, F * hop length]

Between the two graphs lies a residual vector quantiser, here on the host in float32: the code of each codebook is its
vector nearest to what the codebooks before left over, argmin |x - e|^2 = argmax 2 x e - |e|^2, one matrix product.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np

from engines.runtime.fields import take_field, take_graph
from engines.runtime.media.sound import load_sound
from engines.runtime.pipelines.base import Pipeline
from engines.runtime.pipelines.stages.batching import run_rows
from engines.runtime.pipelines.stages.caches import get_axis_range
from engines.runtime.request import Answer, Request, Sound, require
from specs.bundle import Manifest
from specs.errors import InputError

if TYPE_CHECKING:
    from engines.runtime.arrays import Array
    from engines.runtime.graph_session import GraphSession


class CodecDecoder:
    """The graph that makes sound of codes, as `manifest.pipeline` describes it."""

    def __init__(self, manifest: Manifest, graphs: Mapping[str, GraphSession]) -> None:
        config = manifest.pipeline
        self._decode = take_graph(config, "codec_decode", graphs, inputs=["codes"], outputs=["samples"])
        self.sample_rate_hz = take_field(config, "sample_rate_hz", int)
        self.audio_channels = take_field(config, "audio_channels", int)
        self.hop_length = take_field(config, "hop_length", int)
        self.num_codebooks = take_field(config, "num_codebooks", int)

    @property
    def max_frames(self) -> int | None:
        """How many frames it takes at once; None when nothing limits it."""
        return get_axis_range(self._decode, "codes", 2)[1]

    def decode(self, codes: Array) -> Array:
        """Samples [B, channels, F * hop length], float32, of codes [B, codebooks, F], int64."""
        return run_rows(self._decode, {"codes": codes})["samples"]


@final
class AudioCodec(Pipeline):
    """A codec by itself. A command line hands it sounds, and hears what is left of them."""

    def __init__(self, folder: Path, manifest: Manifest, graphs: Mapping[str, GraphSession]) -> None:
        config = manifest.pipeline
        self.codec = CodecDecoder(manifest, graphs)
        self._codebook_size = take_field(config, "codebook_size", int)
        self._encode = self._look_up = None
        if "codec_encode" in config:
            self._encode = take_graph(config, "codec_encode", graphs, inputs=["samples"], outputs=["vectors"])
            self._look_up = take_graph(config, "codec_look_up", graphs, inputs=["codes"], outputs=["vectors"])

    def answer(self, request: Request) -> Answer | None:
        if self._encode is None:
            return None
        require(request, "sounds", files=True)
        rows, media = [], []
        for file in request.files:
            samples = load_sound(file, sample_rate=self.codec.sample_rate_hz)
            codes = self.encode(np.stack([samples] * self.codec.audio_channels)[None])
            made = self.decode(codes)[0, :, : len(samples)]
            media.append(Sound(samples=made, sample_rate_hz=self.codec.sample_rate_hz))
            seconds = round(len(samples) / self.codec.sample_rate_hz, 3)
            rows.append((file, seconds, codes.shape[2], codes.shape[1]))
        return Answer(header=("sound", "seconds", "frames", "codebooks"), rows=tuple(rows), media=tuple(media))

    def encode(self, samples: Array, *, codebooks: int | None = None) -> Array:
        """Codes [B, codebooks, F], int64, of samples [B, channels, N], float32 in [-1, 1].

        Args:
            codebooks: the first ones alone, which is what a lower bit rate means; all when absent.

        Raises:
            InputError: this bundle only decodes, or there are not so many codebooks.
        """
        if self._encode is None:
            raise InputError("this bundle makes sound of codes, and no codes of sound", fix="export an EncodecModel")
        most = len(self.codebooks)
        if codebooks is not None and not 1 <= codebooks <= most:
            raise InputError(
                "there are not so many codebooks",
                got=str(codebooks),
                allowed=f"1 to {most}",
                fix="choose a number of these",
            )
        low, _ = get_axis_range(self._encode, "samples", 2)
        missing = low - samples.shape[2]
        padded = np.pad(samples, ((0, 0), (0, 0), (0, missing))) if missing > 0 else samples
        vectors = run_rows(self._encode, {"samples": padded})["vectors"]
        return quantize(vectors, self.codebooks[:codebooks])

    def decode(self, codes: Array) -> Array:
        """Samples [B, channels, F * hop length] of codes [B, codebooks, F]."""
        return self.codec.decode(codes)

    @cached_property
    def codebooks(self) -> Array:
        """The vectors of all codebooks, [Q, size, D]: each code looked up once."""
        assert self._look_up is not None
        count = get_axis_range(self._look_up, "codes", 1)[1] or self.codec.num_codebooks
        step = min(get_axis_range(self._look_up, "codes", 2)[1] or self._codebook_size, self._codebook_size)
        blocks = []
        for start in range(0, self._codebook_size, step):
            codes = np.minimum(np.arange(start, start + step), self._codebook_size - 1)
            blocks.append(run_rows(self._look_up, {"codes": np.tile(codes, (1, count, 1))})["vectors"][0])
        return np.concatenate(blocks, axis=1)[:, : self._codebook_size]


def quantize(vectors: Array, codebooks: Array) -> Array:
    """Codes [B, Q, F] of vectors [B, D, F] by codebooks [Q, size, D]."""
    rest = np.moveaxis(vectors, 1, 2).astype(np.float32)  # [B, F, D]
    codes = []
    for book in codebooks.astype(np.float32):
        scores = 2 * (rest @ book.T) - np.square(book).sum(1)
        codes.append(scores.argmax(-1))
        rest = rest - book[codes[-1]]
    return np.stack(codes, axis=1)
