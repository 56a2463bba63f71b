"""A codec's graphs, and what a host is told of its codes: alone, and behind what writes codes."""

from __future__ import annotations

from typing import Any

from torch import nn

from specs.components.audio.encodec import EncodecComponent
from specs.graphs import GraphSpec
from specs.models.audio.encodec import Encodec, EncodecDecode, EncodecEncode, EncodecLookUp

_GRAPHS: dict[str, type[EncodecEncode | EncodecLookUp | EncodecDecode]] = {
    "encode": EncodecEncode,
    "look_up": EncodecLookUp,
    "decode": EncodecDecode,
}


def make_codec_graph(graph: GraphSpec, component: nn.Module) -> nn.Module:
    """The module of one of a codec's graphs."""
    assert isinstance(component, Encodec)
    return _GRAPHS[graph.file_stem](component)


def describe_codec(name: str, config: EncodecComponent) -> dict[str, Any]:
    """What a host needs to make sound of codes."""
    return {
        "codec_decode": f"{name}.decode",
        "sample_rate_hz": config.sample_rate_hz,
        "audio_channels": config.audio_channels,
        "hop_length": config.hop_length,
        "num_codebooks": config.num_codebooks,
        "codebook_size": config.codebook_size,
    }
