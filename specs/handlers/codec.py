"""Neural codecs for sound."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast, final

import numpy as np
from numpy.typing import NDArray
from torch import nn

from specs.components.audio.encodec import EncodecComponent
from specs.graphs import GraphSpec, name_roles
from specs.handlers.base import Arrays, GraphModule, Handler
from specs.handlers.shared.codecs import describe_codec, make_codec_graph
from specs.models.audio.encodec import Encodec
from specs.samples.sounds import make_sound
from specs.schema import Spec, TensorSpec


@final
class AudioCodecHandler(Handler):
    """`audio.encodec` and `audio.encodec_decoder`."""

    def make_components(self, spec: Spec) -> dict[str, nn.Module]:
        return {name: Encodec(cast(EncodecComponent, config)) for name, config in spec.components.items()}

    def make_graph_module(self, graph: GraphSpec, component: nn.Module) -> nn.Module:
        return make_codec_graph(graph, component)

    def make_tensor(
        self, spec: Spec, graph: GraphSpec, tensor: TensorSpec, shape: tuple[int, ...], random: np.random.Generator
    ) -> NDArray[Any]:
        if tensor.name == "codes":
            return random.integers(int(tensor.low), int(tensor.high), shape)
        config = cast(EncodecComponent, spec.components[graph.component])
        batch, channels, samples = shape
        sound = make_sound((batch * channels, samples), random, sample_rate=config.sample_rate_hz)
        return sound.reshape(shape)

    def make_realistic_inputs(self, spec: Spec, graph: GraphModule, *, sizes: Mapping[str, int], seed: int) -> Arrays:
        """Several frames, and samples beyond the last whole one."""
        config = cast(EncodecComponent, spec.components[graph.component])
        samples = min(spec.dims["samples"].max, max(sizes["samples"], 7 * config.hop_length + 3))
        return self.make_inputs(spec, graph, sizes={**sizes, "samples": samples}, seed=seed)

    def describe_pipeline(self, spec: Spec) -> dict[str, Any]:
        name = name_roles(spec)["codec"]
        config = cast(EncodecComponent, spec.components[name])
        encoder = {"codec_encode": f"{name}.encode", "codec_look_up": f"{name}.look_up"} if config.has_encoder else {}
        return {"kind": "audio-codec", **describe_codec(name, config), **encoder}
