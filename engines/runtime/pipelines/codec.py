"""Codes to sound and sound to codes.

decode(codes [B, Q, F]) -> samples [B, C, F * hop length]
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, final

from engines.runtime.fields import take_field, take_graph
from engines.runtime.pipelines.base import Pipeline
from engines.runtime.pipelines.batching import run_rows
from engines.runtime.pipelines.decoding import get_axis_range
from specs.bundle import Manifest

if TYPE_CHECKING:
    from engines.runtime.arrays import Array
    from engines.runtime.graph_session import GraphSession
    from engines.runtime.request import Answer, Request


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
    """A codec by itself; a command line hands it tensors."""

    def __init__(self, folder: Path, manifest: Manifest, graphs: Mapping[str, GraphSession]) -> None:
        self.codec = CodecDecoder(manifest, graphs)

    def answer(self, request: Request) -> Answer | None:
        return None
