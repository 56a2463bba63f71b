"""Neural codecs for sound."""

from __future__ import annotations

from typing import Any, cast, final

import numpy as np
from numpy.typing import NDArray
from torch import nn

from specs.components.encodec import EncodecComponent
from specs.graphs import GraphSpec, name_roles
from specs.handlers.base import Handler
from specs.models.encodec import Encodec, EncodecDecode
from specs.schema import Spec, TensorSpec


@final
class CodecHandler(Handler):
    """`audio.encodec_decoder`."""

    def make_components(self, spec: Spec) -> dict[str, nn.Module]:
        return {name: Encodec(cast(EncodecComponent, config)) for name, config in spec.components.items()}

    def make_graph_module(self, graph: GraphSpec, component: nn.Module) -> nn.Module:
        return make_codec_graph(graph, component)

    def make_tensor(
        self, spec: Spec, graph: GraphSpec, tensor: TensorSpec, shape: tuple[int, ...], random: np.random.Generator
    ) -> NDArray[Any]:
        return random.integers(int(tensor.low), int(tensor.high), shape)

    def describe_pipeline(self, spec: Spec) -> dict[str, Any]:
        name = name_roles(spec)["codec"]
        return {"kind": "audio-codec", **describe_codec(name, cast(EncodecComponent, spec.components[name]))}


def make_codec_graph(graph: GraphSpec, component: nn.Module) -> nn.Module:
    """The module of one of a codec's graphs."""
    assert isinstance(component, Encodec)
    return EncodecDecode(component)


def describe_codec(name: str, config: EncodecComponent) -> dict[str, Any]:
    """What a host needs to drive a codec."""
    return {
        "codec_decode": f"{name}.decode",
        "sample_rate_hz": config.sample_rate_hz,
        "audio_channels": config.audio_channels,
        "hop_length": config.hop_length,
        "num_codebooks": config.num_codebooks,
        "codebook_size": config.codebook_size,
    }
