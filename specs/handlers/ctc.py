"""Speech recognition by one encoder and CTC: wav2vec 2.0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from torch import nn

from specs.families.ctc import get_encoder
from specs.graphs import GraphSpec, name_roles
from specs.handlers.base import Arrays, GraphModule, Handler
from specs.models.audio.wav2vec2 import Wav2Vec2
from specs.samples.sounds import make_sound
from specs.schema import Spec, TensorSpec

_GOLDEN_FRAMES = 23  # more than one, and not a number that tracing saw


@final
class SpeechCtcHandler(Handler):
    """`audio.wav2vec2`."""

    def make_components(self, spec: Spec) -> dict[str, nn.Module]:
        roles = name_roles(spec)
        return {roles["encoder"]: Wav2Vec2(get_encoder(spec.components, roles))}

    def make_tensor(
        self, spec: Spec, graph: GraphSpec, tensor: TensorSpec, shape: tuple[int, ...], random: np.random.Generator
    ) -> NDArray[Any]:
        if tensor.name == "lengths":
            return random.random(shape)  # a share of what is possible; `tie_inputs` knows how much that is
        return make_sound(shape, random, sample_rate=get_encoder(spec.components, name_roles(spec)).sample_rate)

    def tie_inputs(self, graph: GraphSpec, inputs: Arrays) -> Arrays:
        """Ragged rows: the first is as long as can be, the others at least half of that."""
        samples = inputs["samples"].shape[1]
        lengths = np.ceil((0.5 + inputs["lengths"] / 2) * samples)
        lengths[0] = samples
        return inputs | {"lengths": lengths.astype(np.int64)}

    def make_realistic_inputs(self, spec: Spec, graph: GraphModule, *, sizes: Mapping[str, int], seed: int) -> Arrays:
        """Sounds of a good number of frames, though the smallest size that works is a few samples."""
        config = get_encoder(spec.components, name_roles(spec))
        wanted = max(sizes["samples"], config.smallest_input + _GOLDEN_FRAMES * config.total_stride)
        return self.make_inputs(
            spec, graph, sizes={**sizes, "samples": min(wanted, spec.dims["samples"].max)}, seed=seed
        )

    def describe_pipeline(self, spec: Spec) -> dict[str, Any]:
        roles = name_roles(spec)
        config = get_encoder(spec.components, roles)
        return {
            "kind": "speech-ctc",
            "graph": roles["encoder"],
            "sample_rate": config.sample_rate,
            "labels": list(spec.labels),
            "vocab_size": config.vocab_size,
            "blank_token": config.blank_token,
            "word_delimiter": config.word_delimiter,
            "lower_case": config.lower_case,
            "mask_padding": config.mask_padding,
            "frame_samples": config.smallest_input,
            "frame_stride": config.total_stride,
        }
